"""Impacts of the made world in the paths of its objects: turns at the floor, a wall or another object.

If the known fall by gravity is subtracted, a path is a line that breaks at each impact. Lines are fitted to
stretches of frames. An impact is where two lines meet, at a time between frames. Letters: T frames. Lengths
are in picture heights, times in seconds.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from proav.metrics.world.laws import FLOOR, GRAVITY, MIN_SPEED
from proav.metrics.world.objects import Track, without_gravity

NOISE = 0.006
"""Standard deviation of a place: 0.4 pixels of 64."""
BREAK_COST = 14.0
"""A further line must reduce the sum of squares, divided by NOISE^2, by this much."""
MAX_MISFIT = 0.02
"""Largest root mean square distance from the lines for a path of this world."""
MIN_TURN = 0.7 * MIN_SPEED
"""Least change of velocity that counts as a turn."""
CONTACT = 0.05
"""How far from contact a turn may be found: errors of place and time together."""
SAME_IMPACT_SECONDS = 0.1
"""Turns of two objects that meet are one impact if they are nearer in time than this."""
SLACK_FRAMES = 0.5
"""The meeting of two lines may lie this far outside the frames between which it is expected."""


NUM_WAYS = 6
"""How many ways to divide the beginning of a path into stretches are kept."""


@dataclass(frozen=True)
class Turn:
    """A break of one path."""

    time: float
    place: np.ndarray
    change: np.ndarray
    """Change of velocity."""


@dataclass(frozen=True)
class Line:
    """A stretch of frames without impacts: the line of least squares through its places without gravity."""

    start: float
    end: float
    origin: np.ndarray
    """Where the line is at time 0."""
    velocity: np.ndarray
    square: float
    """Sum of squared distances of the places from the line."""

    @classmethod
    def through(cls, times_N: np.ndarray, points_N2: np.ndarray) -> "Line":
        """The line of two or more places."""
        middle, centre = times_N.mean(), points_N2.mean(0)
        since = times_N - middle
        velocity = since @ points_N2 / (since @ since)
        rest = points_N2 - centre - since[:, None] * velocity
        origin = centre - velocity * middle
        return cls(float(times_N[0]), float(times_N[-1]), origin, velocity, float((rest**2).sum()))

    def at(self, time: float) -> np.ndarray:
        """Place without gravity."""
        return self.origin + self.velocity * time


@dataclass(frozen=True)
class Path:
    """The path of one track: lines, and the turns between them."""

    track: Track
    lines: tuple[Line, ...]
    turns: tuple[Turn, ...]
    misfit: float
    """Root mean square of two kinds of distances: of places from their lines, and between successive lines
    where they should meet.
    """

    @property
    def is_followed(self) -> bool:
        """Whether it is a path of this world."""
        return self.misfit <= MAX_MISFIT

    def at(self, time: float) -> np.ndarray:
        """Place at a time."""
        number = sum(turn.time < time for turn in self.turns)
        return _with_gravity(self.lines[number].at(time), time)


@dataclass(frozen=True)
class Impact:
    """An impact that is seen."""

    time: float
    kind: str
    """What was hit."""
    objects: tuple[int, ...]
    """The objects that it moves, as numbers of their paths, in order."""
    radii: tuple[float, ...]
    """Of the objects, from the smallest."""


def find_path(track: Track, *, fps: float) -> Path | None:
    """The lines that fit a track at the least cost; None for a track of fewer than 4 places."""
    seconds = np.arange(len(track.places_T2)) / fps
    known = np.flatnonzero(np.isfinite(track.places_T2[:, 0]))
    count = len(known)
    if count < 4:
        return None
    times, points = seconds[known], without_gravity(track.places_T2, seconds)[known]
    possible = {
        (first, last): Line.through(times[first:last], points[first:last])
        for first in range(count)
        for last in range(first + 2, count + 1)
    }
    # The cheapest ways to divide the first n places: (cost, ends of stretches). The cost of a further line
    # depends on the one before it, so more than one way is kept.
    best: list[list[tuple[float, tuple[int, ...]]]] = [[(0.0, (0,))]] + [[] for _ in range(count)]
    for last in range(2, count + 1):
        options = []
        for first in range(last - 1):
            line = possible[first, last]
            for cost, ends in best[first]:
                own = line.square / NOISE**2
                if len(ends) > 1:
                    own += BREAK_COST + _meet(possible[ends[-2], first], line, fps)[1] / (2 * NOISE**2)
                options.append((cost + own, (*ends, last)))
        best[last] = sorted(options)[:NUM_WAYS]
    ends = min(best[count])[1]
    lines = [possible[stretch] for stretch in itertools.pairwise(ends)]
    meetings = [_meet(before, after, fps) for before, after in itertools.pairwise(lines)]
    turns = [
        Turn(
            time,
            _with_gravity((before.at(time) + after.at(time)) / 2, time),
            after.velocity - before.velocity,
        )
        for (time, _), (before, after) in zip(meetings, itertools.pairwise(lines), strict=True)
    ]
    square = sum(line.square for line in lines) + sum(gap for _, gap in meetings)
    return Path(track, tuple(lines), tuple(turns), float(np.sqrt(square / count)))


def _meet(before: Line, after: Line, fps: float) -> tuple[float, float]:
    """(time, squared distance) where two lines are nearest: between them, or up to SLACK_FRAMES outside."""
    apart, change = after.origin - before.origin, after.velocity - before.velocity
    time = -(apart @ change) / max(change @ change, 1e-9)
    slack = SLACK_FRAMES / fps
    time = float(np.clip(time, before.end - slack, after.start + slack))
    gap = after.at(time) - before.at(time)
    return time, float(gap @ gap)


def _with_gravity(place: np.ndarray, time: float) -> np.ndarray:
    return place + np.array([0.0, GRAVITY * time**2 / 2])


def find_impacts(paths: Sequence[Path]) -> list[Impact]:
    """Turns that a contact explains, in order of time; the two turns of objects that meet are one impact."""
    found = []
    for number, path in enumerate(paths):
        for turn in path.turns:
            impact = _explained(turn, number, paths)
            if impact is not None:
                found.append(impact)
    found.sort(key=lambda impact: impact.time)
    merged: list[Impact] = []
    for impact in found:
        same = next((place for place, other in enumerate(merged) if _are_one(other, impact)), None)
        if same is None:
            merged.append(impact)
        else:
            merged[same] = replace(impact, time=(merged[same].time + impact.time) / 2)
    return sorted(merged, key=lambda impact: impact.time)


def _are_one(earlier: Impact, later: Impact) -> bool:
    """Whether two turns are of the same two objects, which meet once."""
    alike = earlier.kind == later.kind == "objects" and earlier.objects == later.objects
    return alike and later.time - earlier.time < SAME_IMPACT_SECONDS


def _explained(turn: Turn, number: int, paths: Sequence[Path]) -> Impact | None:
    """The impact that explains a turn; None if the object touches nothing that would turn it this way."""
    radius = paths[number].track.radius
    x, y = turn.place
    options = [
        (abs(FLOOR - radius - y), "floor", -turn.change[1], (number,)),
        (abs(x - radius), "left_wall", turn.change[0], (number,)),
        (abs(1 - radius - x), "right_wall", -turn.change[0], (number,)),
    ]
    for other, path in enumerate(paths):
        if other == number:
            continue
        away = turn.place - path.at(turn.time)
        distance = float(np.hypot(*away))
        change = turn.change @ away / max(distance, 1e-6)
        gap = abs(distance - radius - path.track.radius)
        options.append((gap, "objects", change, tuple(sorted((number, other)))))
    possible = [option for option in options if option[0] <= CONTACT and option[2] >= MIN_TURN]
    if not possible:
        return None
    # The velocity should change away from what is hit, and the object should touch it.
    size = np.hypot(*turn.change)
    _, kind, _, objects = min(possible, key=lambda option: option[0] / CONTACT - option[2] / size)
    return Impact(turn.time, kind, objects, tuple(sorted(paths[place].track.radius for place in objects)))
