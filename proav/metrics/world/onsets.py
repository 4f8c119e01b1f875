"""Impacts of the made world in the sound of a clip: the time, material and pitch of each.

An onset is a rise of energy in the world's bands. Its time is then refined to about a millisecond in the
samples. Materials and pitches are recognized by comparison with the world's own sounds. Times are in seconds.
Letters: L samples, J columns of a spectrogram, F frequencies or bands.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from proav.metrics.world.laws import MATERIALS, MAX_RADIUS, MIN_RADIUS, impact_sound, pitch_hz

WINDOW_SECONDS, HOP_SECONDS = 0.016, 0.002
"""Window and hop of the spectrogram in which onsets are searched."""
NUM_BANDS, LOWEST_HZ, HIGHEST_HZ = 24, 200.0, 7500.0
"""Bands of equal width in octaves, from below the lowest pitch to above the contact's highest mode."""
FLOOR_DB, CLIP_FLOOR_DB = -75.0, -50.0
"""Fainter sound counts as silence: relative to full scale, and to the loudest band of the clip."""
LAG_SECONDS = 0.012
"""A rise is the energy minus the energy this long before."""
MIN_RISE_DB = 4.0
"""Least mean rise over the bands that is an onset."""
MIN_DISTANCE_SECONDS = 0.05
"""Shortest time between two onsets."""
BEFORE_SECONDS, AFTER_SECONDS = 0.02, 0.012
"""The exact sample is searched in this stretch around a rise."""
TIMBRE_SECONDS = 0.08
"""Sound after an onset by which material and pitch are recognized: the shortest gap of the world."""
TIMBRE_COLUMNS = 6
"""Spectrogram columns of that sound."""
PITCHES_PER_OCTAVE = 24


@dataclass(frozen=True)
class Sound:
    """An impact that is heard.

    likeness: {material: similarity to its sounds}, 1 is equal; empty if too little sound follows the onset.
    """

    time: float
    pitch: float
    likeness: dict[str, float]


def find_sounds(audio_L: np.ndarray, *, sample_rate: int) -> list[Sound]:
    """The impacts of a clip's sound, float [L], mono."""
    audio = np.asarray(audio_L, np.float64)
    onsets = find_onsets(audio, sample_rate=sample_rate)
    ends = [*onsets[1:], len(audio) / sample_rate]
    return [_heard(audio, onset, ends[number], sample_rate) for number, onset in enumerate(onsets)]


def find_onsets(audio_L: np.ndarray, *, sample_rate: int) -> list[float]:
    """Times at which energy rises, in order."""
    window, hop = round(WINDOW_SECONDS * sample_rate), round(HOP_SECONDS * sample_rate)
    if len(audio_L) < 2 * window:
        return []
    energy_JF = np.abs(_spectrogram(audio_L, window, hop)) ** 2
    bands_JF = energy_JF @ _bands(window, sample_rate)
    full = (window / 4) ** 2  # of a sine of amplitude 1 in one column
    level_JF = 10 * np.log10(bands_JF / full + 1e-12)
    level_JF = np.maximum(level_JF, max(FLOOR_DB, float(level_JF.max()) + CLIP_FLOOR_DB))
    lag = round(LAG_SECONDS / HOP_SECONDS)
    rise_J = np.zeros(len(level_JF))
    rise_J[lag:] = np.maximum(level_JF[lag:] - level_JF[:-lag], 0).mean(1)
    onsets: list[float] = []
    distance = round(MIN_DISTANCE_SECONDS / HOP_SECONDS)
    for column in np.flatnonzero(rise_J >= MIN_RISE_DB):
        first = max(0, column - distance)
        if column != first + int(rise_J[first : column + distance + 1].argmax()):
            continue
        time = _begin(audio_L, (column * hop + window / 2) / sample_rate - LAG_SECONDS / 2, sample_rate)
        if not onsets or time - onsets[-1] >= MIN_DISTANCE_SECONDS / 2:
            onsets.append(time)
    return onsets


def _spectrogram(audio_L: np.ndarray, window: int, hop: int) -> np.ndarray:
    """[J, F] complex: Hann windows that lie wholly in the sound."""
    pieces = np.lib.stride_tricks.sliding_window_view(audio_L, window)[::hop]
    return np.fft.rfft(pieces * np.hanning(window + 2)[1:-1], axis=-1)


@functools.lru_cache(maxsize=4)
def _bands(window: int, sample_rate: int) -> np.ndarray:
    """[F, bands]: 1 where a frequency is in a band; bands without any frequency are left out."""
    highest = min(HIGHEST_HZ, sample_rate / 2)
    edges = np.geomspace(LOWEST_HZ, highest, NUM_BANDS + 1)
    hertz = np.fft.rfftfreq(window, 1 / sample_rate)
    members = (hertz[:, None] >= edges[:-1]) & (hertz[:, None] < edges[1:])
    return members[:, members.any(0)].astype(np.float64)


def _begin(audio_L: np.ndarray, time: float, sample_rate: int) -> float:
    """Time in seconds of the sample at which energy changes most.

    It is the sample k of least k log v(before) + (n - k) log v(after), with v the variances of the two parts
    (Maeda 1985).
    """
    first = max(0, round((time - BEFORE_SECONDS) * sample_rate))
    last = round((time + AFTER_SECONDS) * sample_rate)
    part = np.diff(audio_L[first:last], prepend=audio_L[max(0, first - 1)])
    square = np.cumsum(part**2) + 1e-12
    count, edge = len(part), max(4, sample_rate // 2000)
    if count <= 2 * edge:
        return time
    places = np.arange(edge, count - edge)
    floor = 1e-7 * square[-1] / count + 1e-12
    before = square[places - 1] / places + floor
    after = (square[-1] - square[places - 1]) / (count - places) + floor
    best = np.argmin(places * np.log(before) + (count - places) * np.log(after))
    return float((first + places[best]) / sample_rate)


def _heard(audio_L: np.ndarray, onset: float, end: float, sample_rate: int) -> Sound:
    """The sound that begins at an onset; `end` is the time of the next onset, or the end of the clip."""
    length = round(TIMBRE_SECONDS * sample_rate)
    first = round(onset * sample_rate)
    if min(round(end * sample_rate), len(audio_L)) - first < length // 2:
        return Sound(onset, float("nan"), {})
    stop = min(first + length, round(end * sample_rate), len(audio_L))
    piece = np.zeros(length)
    piece[: stop - first] = audio_L[first:stop]
    before = audio_L[max(0, first - length // 4) : max(0, first - 16)]
    shape = _shape(piece, before, (stop - first) / length)
    templates, names, pitches = _templates(sample_rate)
    alike = templates @ shape
    if not np.isfinite(alike).all() or not alike.any():
        return Sound(onset, float("nan"), {})
    likeness = {name: float(alike[names == name].max()) for name in MATERIALS}
    return Sound(onset, float(pitches[int(alike.argmax())]), likeness)


def _shape(piece_L: np.ndarray, before_L: np.ndarray, share: float) -> np.ndarray:
    """Features for material and pitch: square roots of magnitudes minus earlier ringing, normalized to length
    1.

    share: the share of the piece that holds sound; later columns are left out.
    """
    window = len(piece_L) // 2
    hop = (len(piece_L) - window) // (TIMBRE_COLUMNS - 1)
    magnitude_JF = np.abs(_spectrogram(piece_L, window, hop))[:TIMBRE_COLUMNS]
    if len(before_L):
        ringing_F = np.abs(np.fft.rfft(before_L * np.hanning(len(before_L) + 2)[1:-1], window))
        magnitude_JF = np.maximum(magnitude_JF - ringing_F * window / len(before_L), 0)
    ends = (np.arange(len(magnitude_JF)) * hop + window / 2) / len(piece_L)
    magnitude_JF[ends > share] = 0
    shape = np.sqrt(magnitude_JF).ravel()
    return shape / max(np.linalg.norm(shape), 1e-9)


@functools.lru_cache(maxsize=4)
def _templates(sample_rate: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(shapes [K, F], materials [K], pitches [K]) of the world's own sounds, over all pitches of objects."""
    seconds = np.arange(round(TIMBRE_SECONDS * sample_rate)) / sample_rate
    low, high = pitch_hz(MAX_RADIUS) / 1.1, pitch_hz(MIN_RADIUS) * 1.1
    pitches = np.geomspace(low, high, round(np.log2(high / low) * PITCHES_PER_OCTAVE) + 1)
    pairs = [(name, pitch) for name in MATERIALS for pitch in pitches]
    sounds = (impact_sound(MATERIALS[name], pitch, seconds) for name, pitch in pairs)
    shapes = [_shape(sound, np.zeros(0), 1.0) for sound in sounds]
    return np.stack(shapes), np.array([name for name, _ in pairs]), np.array([pitch for _, pitch in pairs])


def fitting_material(sounds: Sequence[Sound]) -> str | None:
    """The material most similar to all sounds of a clip together; None if no sound has a likeness."""
    told = [sound.likeness for sound in sounds if sound.likeness]
    if not told:
        return None
    return max(MATERIALS, key=lambda name: sum(likeness[name] for likeness in told))
