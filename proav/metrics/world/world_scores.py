"""How well clips of the made world keep its laws: impacts are heard, at the right time, with the right sound.

Impacts are found in the picture (`objects.py`, `trajectories.py`) and, independently, in the sound
(`onsets.py`). Then they are matched. `scale.json` holds the scores of true clips, and of clips whose sound is
late or belongs to another clip (`bench/metrics/world_metric.py`).
"""

import functools
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from proav.metrics.world.laws import MATERIALS, pitch_hz
from proav.metrics.world.objects import MIN_COLOUR, find_tracks
from proav.metrics.world.onsets import Sound, find_sounds, fitting_material
from proav.metrics.world.trajectories import Impact, find_impacts, find_path
from proav.text import LABEL_SEPARATOR

WORLD_SCORES = (
    "impact_synchrony",
    "impacts_heard",
    "sounds_seen",
    "median_offset_ms",
    "label_fits",
    "pitch_fits",
    "followed",
    "impacts",
    "sounds",
)
"""The scores of each clip."""
WITH_SCALE = WORLD_SCORES[:6]
"""The scores that say how good clips are. The others say how much these are based on."""
COUNTED_BY = {"impact_synchrony": "impacts", "impacts_heard": "impacts", "sounds_seen": "sounds"}
"""Means over impacts or sounds. In a mean over many clips, each clip is weighted by this count."""
MEDIANS = ("median_offset_ms",)
"""Over many clips the median is reported, not the mean."""
PAIRING_SECONDS = 0.4
"""Impacts and sounds further apart are not paired. This is half of a window of 0.8 s: offsets of several
frames are measured, not cut off.
"""
PITCH_OCTAVES = 0.25
"""A sound's pitch may differ by this much from the pitch that follows from the object's size. This much is 12
% of the radius. The world's pitches span 1.83 octaves.
"""
EDGE_FRAMES = 0.15
"""Margin of the counted span. An impact just before the second frame has only one frame before it, so it is
found at the second frame.
"""
MANY = 1e4
"""More than the number of events in a clip."""
SCALE_PATH = Path(__file__).with_name("scale.json")
"""Written by `bench/metrics/world_metric.py`."""
MIN_COLOURED = 0.005
"""If a clip has no tracks, but at least this share of its pixels has an object's colour, `followed` is 0."""


def world_scores(
    video_THWC: np.ndarray, audio_L: np.ndarray, *, fps: float, sample_rate: int, label: str = ""
) -> dict[str, float]:
    """The world's scores of one clip; NaN if there is nothing to measure.

    impacts, sounds: how many are counted; a counted event has at least two frames on each side.
    impact_synchrony: mean over counted impacts of max(0, 1 - |offset| / 400 ms) to a sound of the object's
        pitch, one to one; 0 without such a sound.
    impacts_heard: share of counted impacts with a sound at most a frame away, one to one.
    sounds_seen: share of counted sounds with an impact at most a frame away, one to one.
    median_offset_ms: median distance of impacts to their sounds, up to 400 ms.
    label_fits: 1 if the material that the sounds are most similar to is among the label's (`find_labels`),
        else 0.
    pitch_fits: 1 if the median pitch error of heard impacts is small for the objects' sizes, else 0.
    followed: share of the objects' places that lie on paths of this world's gravity; NaN if nothing colourful
        is there.

    video_THWC: uint8, square pictures; impacts need at least 4 frames.
    audio_L: mono.
    fps: frames per second.
    sample_rate: of the sound, in Hz.
    label: the clip's material; empty if unknown.
    """
    impacts, followed = see(video_THWC, fps=fps)
    sounds = find_sounds(audio_L, sample_rate=sample_rate)
    seen, heard = [impact.time for impact in impacts], [sound.time for sound in sounds]
    first, last = counted_span(len(video_THWC), fps)
    counted = [number for number, time in enumerate(seen) if first <= time <= last]
    counted_sounds = [number for number, time in enumerate(heard) if first <= time <= last]
    closeness = [[_closeness(impact, sound) for sound in sounds] for impact in impacts]
    answered = [closeness[impact][sound] for impact, sound in best_pairs(closeness) if impact in counted]
    near = match_times(seen, heard, tolerance=1 / fps)
    pairs = match_times(seen, heard, tolerance=PAIRING_SECONDS)
    offsets = [abs(seen[impact] - heard[sound]) for impact, sound in pairs if impact in counted]
    material, asked = fitting_material(sounds), set(label.split(LABEL_SEPARATOR)) & set(MATERIALS)
    told = [pitch_octaves(impacts[impact], sounds[sound]) for impact, sound in near]
    told = [octaves for octaves in told if np.isfinite(octaves)]
    return {
        "impact_synchrony": sum(answered) / len(counted) if counted else float("nan"),
        "impacts_heard": _share(counted, {impact for impact, _ in near}),
        "sounds_seen": _share(counted_sounds, {sound for _, sound in near}),
        "median_offset_ms": 1000 * float(np.median(offsets)) if offsets else float("nan"),
        "label_fits": float(material in asked) if material and asked else float("nan"),
        "pitch_fits": float(np.median(told) <= PITCH_OCTAVES) if told else float("nan"),
        "followed": followed,
        "impacts": float(len(counted)),
        "sounds": float(len(counted_sounds)),
    }


def see(video_THWC: np.ndarray, *, fps: float) -> tuple[list[Impact], float]:
    """(impacts in the picture in order of time, share of places on paths of this world)."""
    tracks = find_tracks(video_THWC)
    paths = [path for path in (find_path(track, fps=fps) for track in tracks) if path and path.is_followed]
    if not tracks:
        video = video_THWC.astype(np.int16)
        coloured = float((video.max(-1) - video.min(-1) > MIN_COLOUR).mean())
        return [], 0.0 if coloured >= MIN_COLOURED else float("nan")
    found = sum(int(np.isfinite(path.track.places_T2[:, 0]).sum()) for path in paths)
    return find_impacts(paths), found / (len(tracks) * len(video_THWC))


def counted_span(num_frames: int, fps: float) -> tuple[float, float]:
    """Start and end of the span in which events are counted, in seconds.

    There, an event has two frames on each side. EDGE_FRAMES is a margin at both ends.
    """
    return (1 + EDGE_FRAMES) / fps, (num_frames - 2 - EDGE_FRAMES) / fps


def match_times(
    first: Sequence[float], second: Sequence[float], *, tolerance: float
) -> list[tuple[int, int]]:
    """One-to-one pairs of indices of two sorted lists of times.

    Of the pairings with the most pairs at most `tolerance` apart, it is the one with the smallest sum of
    distances.
    """
    apart = [[abs(one - other) / tolerance for other in second] for one in first]
    # One more pair is worth more than any sum of distances. 1e-9 allows for rounding.
    return best_pairs([[MANY - value if value <= 1 + 1e-9 else 0.0 for value in row] for row in apart])


def best_pairs(worth: Sequence[Sequence[float]]) -> list[tuple[int, int]]:
    """The pairs (row, column) with the largest sum of worth; one to one, and in order in both lists.

    Pairs of worth 0 do not count. Nearest pairs of two sorted lists of times never cross. So dynamic
    programming over the beginnings of both lists finds the best pairing.
    """
    columns = len(worth[0]) if worth else 0
    best = np.zeros((len(worth) + 1, columns + 1))
    for row, values in enumerate(worth):
        for column, value in enumerate(values):
            paired = best[row, column] + value
            best[row + 1, column + 1] = max(best[row, column + 1], best[row + 1, column], paired)
    pairs, row, column = [], len(worth), columns
    while row and column:
        if best[row, column] == best[row - 1, column]:
            row -= 1
        elif best[row, column] == best[row, column - 1]:
            column -= 1
        else:
            row, column = row - 1, column - 1
            pairs.append((row, column))
    return pairs[::-1]


def _closeness(impact: Impact, sound: Sound) -> float:
    """1 - |offset| / PAIRING_SECONDS, at least 0; 0 if the sound is not of the object's pitch."""
    if not pitch_octaves(impact, sound) <= PITCH_OCTAVES:  # also if a pitch is not a number
        return 0.0
    return max(0.0, 1 - abs(impact.time - sound.time) / PAIRING_SECONDS)


def pitch_octaves(impact: Impact, sound: Sound) -> float:
    """Difference in octaves between a sound's pitch and the nearest pitch of the objects of an impact."""
    return min(abs(float(np.log2(sound.pitch / pitch_hz(radius)))) for radius in impact.radii)


def _share(counted: Sequence[int], matched: set[int]) -> float:
    return sum(number in matched for number in counted) / len(counted) if counted else float("nan")


@functools.cache
def world_scale() -> dict:
    """The scores of clips with known ground truth; {} before they are measured."""
    return json.loads(SCALE_PATH.read_text()) if SCALE_PATH.is_file() else {}


def scale_texts(metrics: Sequence[str]) -> dict[str, str]:
    """{metric: its value for each kind of known clips} for those among `metrics` that have a scale."""
    rows = world_scale().get("windows", {}).get("scores", {})
    texts = {}
    for metric in metrics:
        values = {kind: row[metric] for kind, row in rows.items() if row.get(metric) is not None}
        if metric in WITH_SCALE and values:
            texts[metric] = ", ".join(f"{kind} {value:.3g}" for kind, value in values.items())
    return texts
