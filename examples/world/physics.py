"""Discs that fall, bounce and collide, with exact times of events and paths in closed form.

Between events each object moves on a parabola. As gravity is the same for all, two objects move relative to
each other on straight lines. So times of impacts are roots of quadratic polynomials, and no time steps are
needed. A scene depends only on (seed, index). Pictures are made in `draw.py` and sound in `sound.py`.
"""

import math
from dataclasses import dataclass

import numpy as np

from proav.metrics.world.laws import (
    FLOOR,
    GRAVITY,
    MATERIALS,
    MAX_RADIUS,
    MIN_GAP_SECONDS,
    MIN_OWN_GAP_SECONDS,
    MIN_RADIUS,
    MIN_SPEED,
    Material,
    pitch_hz,
)

SECONDS = 1.6
"""Length of a clip."""
RADIUS_RATIO = 1.2
"""Any two objects of a clip differ in size by at least this factor."""
CLEARANCE = 0.02
"""Least distance at the beginning between objects, and from objects to floor and walls."""
OUTSIDE_SHARE, EMPTY_SHARE, QUIET_SHARE = 0.15, 0.06, 0.06
"""Shares of clips with a sound from outside the picture, without objects, and with one object without
impacts.
"""
OBJECT_SHARES = (0.5, 0.4, 0.1)
"""Shares of clips with one, two and three objects, among the other clips."""
MAX_DRAWS = 20_000
"""A scene is drawn again until the world's rules hold, at most this often."""


@dataclass(frozen=True)
class Flight:
    """A part of an object's path without impacts: a parabola from time `start` on."""

    start: float
    x: float
    y: float
    vx: float
    vy: float

    def at(self, time: float) -> tuple[float, float]:
        """Position, in picture heights."""
        since = time - self.start
        return self.x + self.vx * since, self.y + self.vy * since + GRAVITY * since * since / 2


@dataclass(frozen=True)
class Body:
    """An object: its size, and its path as flights in order of time."""

    radius: float
    flights: tuple[Flight, ...]

    def at(self, time: float) -> tuple[float, float]:
        begun = [flight for flight in self.flights if flight.start <= time]
        return (begun or self.flights)[-1 if begun else 0].at(time)


@dataclass(frozen=True)
class Event:
    """Something that sounds."""

    time: float
    kind: str
    """floor, left_wall, right_wall, objects or outside."""
    bodies: tuple[int, ...]
    """Indices of the objects that collide; empty for a sound from outside."""
    x: float
    y: float
    """Where they touch; NaN outside the picture."""
    radii: tuple[float, ...]
    """Radii of the objects that sound."""
    speed: float
    """Speed of approach along the line of contact, in heights per second; NaN outside the picture."""
    impulse: float
    """It decides the amplitude of the sound (`sound.py`)."""

    @property
    def pitches(self) -> tuple[float, ...]:
        """Lowest mode of each object that sounds, in Hz."""
        return tuple(map(pitch_hz, self.radii))


@dataclass(frozen=True)
class Scene:
    """All that happens in a clip."""

    seed: int
    index: int
    material: Material
    bodies: tuple[Body, ...]
    events: tuple[Event, ...]


def random_of(seed: int, index: int, what: int) -> np.random.Generator:
    """A random generator for one purpose in one clip, independent of all other draws."""
    return np.random.Generator(np.random.Philox(key=[seed, (index << 8) | what]))


def label_of(index: int) -> str:
    """The material of a clip. Labels alternate, so each has a fifth of all clips."""
    return sorted(MATERIALS)[index % len(MATERIALS)]


def make_scene(seed: int, index: int) -> Scene:
    """The scene of this number."""
    generator = random_of(seed, index, 0)
    material = MATERIALS[label_of(index)]
    kind = generator.random()
    if kind < EMPTY_SHARE:
        return Scene(seed, index, material, (), ())
    quiet = kind < EMPTY_SHARE + QUIET_SHARE
    num_bodies = 1 if quiet else 1 + int(generator.choice(len(OBJECT_SHARES), p=OBJECT_SHARES))
    for _ in range(MAX_DRAWS):
        starts = _draw_throw(generator) if quiet else _draw_starts(generator, num_bodies)
        found = starts and run(starts, material.restitution, SECONDS)
        if found and _keeps_rules(*found) and bool(found[1]) != quiet:
            bodies, events = found
            break
    else:
        raise RuntimeError(f"no scene for clip {index} of seed {seed} after {MAX_DRAWS:,} draws")
    if not quiet and generator.random() < OUTSIDE_SHARE:
        events = _with_outside(generator, events)
    return Scene(seed, index, material, bodies, events)


def run(
    starts: list[tuple[float, Flight]], restitution: float, seconds: float
) -> tuple[tuple[Body, ...], tuple[Event, ...]] | None:
    """(bodies, events) of a scene from time 0 on.

    None if two impacts of one object, or any two sounds, are closer in time than the world's rules allow.
    starts: (radius, first flight) of each object.
    """
    radii = [radius for radius, _ in starts]
    flights = [[flight] for _, flight in starts]
    last, events = [-math.inf] * len(starts), []
    while True:
        time, kind, bodies = _next_event([path[-1] for path in flights], radii)
        if time >= seconds:
            break
        if time - max(last[body] for body in bodies) < MIN_OWN_GAP_SECONDS:
            return None
        if events and time - events[-1].time < MIN_GAP_SECONDS:
            return None
        after, event = _meet(time, kind, bodies, [path[-1] for path in flights], radii, restitution)
        events.append(event)
        for body, flight in zip(bodies, after, strict=True):
            flights[body].append(flight)
            last[body] = time
    made = (Body(radius, tuple(path)) for radius, path in zip(radii, flights, strict=True))
    return tuple(made), tuple(events)


def _next_event(paths: list[Flight], radii: list[float]) -> tuple[float, str, tuple[int, ...]]:
    """(time, kind, objects) of the next impact."""
    found = [(math.inf, "floor", (0,))]
    for body, (flight, radius) in enumerate(zip(paths, radii, strict=True)):
        height = FLOOR - radius - flight.y
        fall = (-flight.vy + math.sqrt(flight.vy**2 + 2 * GRAVITY * max(height, 0.0))) / GRAVITY
        found.append((flight.start + fall, "floor", (body,)))
        if flight.vx < 0:
            found.append((flight.start + (radius - flight.x) / flight.vx, "left_wall", (body,)))
        if flight.vx > 0:
            found.append((flight.start + (1 - radius - flight.x) / flight.vx, "right_wall", (body,)))
        for other in range(body):
            found.append((_meeting(flight, paths[other], radius + radii[other]), "objects", (other, body)))
    return min(found)


def _meeting(first: Flight, second: Flight, distance: float) -> float:
    """The first time at which two approaching objects on parabolas have this distance; infinity if never.

    It solves |d + w s| = distance, with d and w the differences of positions and velocities. Gravity cancels.
    """
    start = max(first.start, second.start)
    (x1, y1), (x2, y2) = first.at(start), second.at(start)
    vy1, vy2 = (flight.vy + GRAVITY * (start - flight.start) for flight in (first, second))
    dx, dy, wx, wy = x1 - x2, y1 - y2, first.vx - second.vx, vy1 - vy2
    a, b, c = wx * wx + wy * wy, dx * wx + dy * wy, dx * dx + dy * dy - distance * distance
    if b >= 0 or b * b < a * c:
        return math.inf
    return start + max(0.0, c / (-b + math.sqrt(b * b - a * c)))


def _meet(
    time: float,
    kind: str,
    bodies: tuple[int, ...],
    paths: list[Flight],
    radii: list[float],
    restitution: float,
) -> tuple[list[Flight], Event]:
    """(flights after the impact, the event). Mass is radius^2; without friction nothing rotates."""
    state = []
    for body in bodies:
        flight = paths[body]
        state.append([*flight.at(time), flight.vx, flight.vy + GRAVITY * (time - flight.start)])
    masses = [radii[body] ** 2 for body in bodies]
    if kind == "objects":
        (x1, y1, *_), (x2, y2, *_) = state
        reach = math.hypot(x1 - x2, y1 - y2)
        nx, ny = (x1 - x2) / reach, (y1 - y2) / reach
        touch = x2 + nx * radii[bodies[1]], y2 + ny * radii[bodies[1]]
        mass = masses[0] * masses[1] / (masses[0] + masses[1])
        signs = (1.0, -1.0)
    else:
        radius = radii[bodies[0]]
        nx, ny = {"floor": (0.0, -1.0), "left_wall": (1.0, 0.0), "right_wall": (-1.0, 0.0)}[kind]
        held = {"floor": (1, FLOOR - radius), "left_wall": (0, radius), "right_wall": (0, 1 - radius)}
        axis, place = held[kind]
        state[0][axis] = place  # so that rounding errors do not add up over bounces
        touch = state[0][0] - nx * radius, state[0][1] - ny * radius
        mass, signs = masses[0], (1.0,)
    approach = -sum(sign * (nx * each[2] + ny * each[3]) for sign, each in zip(signs, state, strict=True))
    impulse = mass * (1 + restitution) * approach
    after = []
    for sign, own, each in zip(signs, masses, state, strict=True):
        x, y, vx, vy = each
        after.append(Flight(time, x, y, vx + sign * impulse / own * nx, vy + sign * impulse / own * ny))
    touched = tuple(radii[body] for body in bodies)
    return after, Event(time, kind, bodies, *touch, touched, approach, impulse)


def _keeps_rules(bodies: tuple[Body, ...], events: tuple[Event, ...]) -> bool:
    """Whether no object leaves the picture, and every impact changes some velocity by at least MIN_SPEED."""
    for body in bodies:
        ends = [flight.start for flight in body.flights[1:]] + [SECONDS]
        for flight, end in zip(body.flights, ends, strict=True):
            rise = max(0.0, min(-flight.vy / GRAVITY, end - flight.start))
            if flight.at(flight.start + rise)[1] < body.radius:
                return False
    return all(event.impulse / min(event.radii) ** 2 >= MIN_SPEED for event in events)


def _draw_starts(generator: np.random.Generator, num_bodies: int) -> list[tuple[float, Flight]] | None:
    """Radii and first flights; None if two objects are too near."""
    room = math.log(MAX_RADIUS / MIN_RADIUS) - (num_bodies - 1) * math.log(RADIUS_RATIO)
    drawn = np.sort(generator.uniform(0, room, num_bodies)) + np.arange(num_bodies) * math.log(RADIUS_RATIO)
    starts = []
    for radius in map(float, generator.permutation(MIN_RADIUS * np.exp(drawn))):
        left, top, bottom = radius + CLEARANCE, radius + CLEARANCE, FLOOR - radius - CLEARANCE
        x, y = generator.uniform((left, top), (1 - left, bottom))
        vx, vy = generator.uniform((-0.6, -0.9), (0.6, 0.6))
        starts.append((radius, Flight(0.0, float(x), float(y), float(vx), float(vy))))
    for number, (radius, flight) in enumerate(starts):
        for other_radius, other in starts[:number]:
            if math.hypot(flight.x - other.x, flight.y - other.y) < radius + other_radius + CLEARANCE:
                return None
    return starts


def _draw_throw(generator: np.random.Generator) -> list[tuple[float, Flight]]:
    """A small object thrown up from near the floor; it stays in the air for the whole clip."""
    radius = float(generator.uniform(MIN_RADIUS, 0.09))
    x = float(generator.uniform(0.2, 0.8))
    y = FLOOR - radius - float(generator.uniform(CLEARANCE, 0.1))
    vx, vy = float(generator.uniform(-0.3, 0.3)), -float(generator.uniform(1.4, 1.7))
    return [(radius, Flight(0.0, x, y, vx, vy))]


def _with_outside(generator: np.random.Generator, events: tuple[Event, ...]) -> tuple[Event, ...]:
    """The events, with a sound from outside the picture added if there is time for it."""
    for _ in range(20):
        time = float(generator.uniform(0.1, SECONDS - 0.1))
        radius = float(np.exp(generator.uniform(math.log(MIN_RADIUS), math.log(MAX_RADIUS))))
        impulse = 1.8 * radius**2 * float(generator.uniform(0.5, 1.5))
        if all(abs(time - event.time) >= MIN_GAP_SECONDS for event in events):
            outside = Event(time, "outside", (), math.nan, math.nan, (radius,), math.nan, impulse)
            return tuple(sorted([*events, outside], key=lambda event: event.time))
    return events
