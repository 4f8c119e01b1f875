"""Decoded sound -> mono float samples at one rate on a clock that starts at a given time (`SoundClock`).

Gaps between time stamps become silence, overlaps are cut. Files are read in `segments.py`, pictures are in
`pictures.py`. This module is private to `proav/media`, except for SILENT_RMS.
"""

from collections import deque
from fractions import Fraction
from typing import NamedTuple

import av
import numpy as np

from proav.media.pictures import MAX_GAP_SECONDS

MAX_JITTER_SECONDS = 0.02
"""Time stamps may disagree with the running sample count by this much. Beyond it, silence is inserted or
samples are cut. The limit is more than millisecond rounding and less than one AAC frame at 48 kHz (21.3 ms),
so a lost frame of that length is noticed."""
CHANNEL_WEIGHTS = {"FL": 1.0, "FR": 1.0, "DL": 1.0, "DR": 1.0, "FC": 2**0.5, "LFE": 0.0, "LFE2": 0.0}
SURROUND_WEIGHT = 0.5**0.5
"""The mean of the ITU-R BS.775 stereo pair: front left and right 1, centre sqrt 2, all others sqrt 1/2, no
low-frequency effects."""
UNNAMED_CHANNEL = "NONE"
USUAL_LAYOUTS = {6: "5.1", 8: "7.1"}
"""Layouts that players assume for a number of channels if the file does not name them (PCM in Matroska, for
example). With any other number of unnamed channels the mean is taken."""
BLOCK_SAMPLES = 8192
"""Sound is mixed and resampled in blocks of at least this many samples, except before a gap or an overlap and
at the end. Decoders return a thousand at a time,
and mixing so few at once is slow."""
MAX_OVERSHOOT = 4.0
"""Samples are clipped to this magnitude before the mix. Float sound may exceed 1 by rounding. Samples far
beyond are damage and must not drown the other channels."""
SILENT_RMS = 1e-3
"""Sound below this root mean square, -60 dB of full scale, counts as silent. Our choice."""
MAX_CANCELLED = 0.01
"""If the mix has at most this share of its channels' power, the channels cancel. Our choice."""


class SoundClock:
    """Collects decoded sound as float32 mono samples in [-1, 1].

    Sample 0 is at `start`, in seconds of the file's clock. `sample_rate` is in Hz.
    `holes` are the stretches without sound of more than `hole_seconds`, [from, to] in seconds after the
    start; they are filled with silence. Samples that are not numbers become silence and are counted in
    `num_cleaned`.
    """

    def __init__(self, *, sample_rate: int, start: float, hole_seconds: float = MAX_GAP_SECONDS) -> None:
        self.sample_rate, self.start, self.hole_seconds = sample_rate, start, hole_seconds
        self.num_samples = 0
        self.num_cleaned = 0
        self.holes: list[list[float]] = []
        self._chunks: deque[np.ndarray | int] = deque()  # an int is a number of silent samples
        self._first = 0  # the number of the first sample in memory
        self._run: _Run | None = None
        self._to_drop = 0
        self._levels: deque[_Level] = deque()

    @property
    def seconds(self) -> float:
        """Time covered from the start."""
        return self.num_samples / self.sample_rate

    @property
    def end_seconds(self) -> float:
        """When the sound ends, from the start."""
        return self.seconds

    def push(self, frame: av.AudioFrame) -> None:
        """Takes the next decoded frame."""
        if not frame.samples or not frame.sample_rate:
            return
        if self._run is None or _kind(frame) != self._run.kind:
            self._begin_run(frame)
        late = 0.0 if frame.time is None else frame.time - self._run.end
        if late > MAX_GAP_SECONDS:
            self._begin_run(frame)
            late = 0.0
        run = self._run
        if late > MAX_JITTER_SECONDS:
            self._note_hole(run.end - self.start, run.end - self.start + late)
            self._collect(run.add_silence(round(late * run.rate)))
        if late < -MAX_JITTER_SECONDS:
            self._collect(run.add_end_of(frame, round(-late * run.rate)))
        else:
            self._collect(run.add(frame))

    def finish(self) -> None:
        """Collects the buffered samples, at the end of the stream or of a run."""
        if self._run is not None:
            self._collect(self._run.finish())
            self.num_cleaned += self._run.num_cleaned
            self._run = None

    def silence_until(self, seconds: float) -> None:
        """Fills with silence up to this time, in seconds after the start.

        If sound for this time comes later, it is left out.
        """
        self.finish()
        if (missing := round(seconds * self.sample_rate) - self.num_samples) > 0:
            self._note_hole(self.seconds, seconds)
            self._append_silence(missing)

    def take(self, first: int, count: int) -> np.ndarray:
        """Samples first .. first + count - 1, zeros beyond the end. Earlier samples are forgotten."""
        self.forget(first)
        taken, filled = np.zeros(count, np.float32), 0
        for chunk in self._chunks:
            if filled >= count:
                break
            size = chunk if isinstance(chunk, int) else len(chunk)
            if not isinstance(chunk, int):
                taken[filled : filled + size] = chunk[: count - filled]
            filled += size
        return taken

    def forget(self, first: int) -> None:
        """Drops the samples before `first`."""
        while self._chunks and self._first < first:
            chunk = self._chunks.popleft()
            size = chunk if isinstance(chunk, int) else len(chunk)
            excess = min(size, first - self._first)
            self._first += excess
            if excess < size:
                self._chunks.appendleft(chunk - excess if isinstance(chunk, int) else chunk[excess:])

    def cancels(self, first: float, last: float) -> bool:
        """Whether the channels hold sound from `first` to `last` (seconds), but cancel each other in the mix.

        They cancel if the mix is 20 dB below the power that uncorrelated channels would give. Earlier times
        are forgotten.
        """
        while self._levels and self._levels[0].end <= first:
            self._levels.popleft()
        apart = mixed = 0.0
        for level in self._levels:
            share = max(0.0, min(level.end, last) - max(level.begin, first)) / (last - first)
            apart, mixed = apart + share * level.apart, mixed + share * level.mixed
        return apart >= SILENT_RMS**2 and mixed <= MAX_CANCELLED * apart

    def _begin_run(self, frame: av.AudioFrame) -> None:
        """Places the first sample of a run.

        If the run is late, silence is put before it. If it is early, its early part is dropped.
        """
        self.finish()
        start = frame.time if frame.time is not None else self.start + self.seconds
        offset = round((start - self.start) * self.sample_rate) - self.num_samples
        if offset > 0:
            self._note_hole(self.seconds, start - self.start)
            self._append_silence(offset)
        self._to_drop = max(0, -offset)
        self._run = _Run(frame, start, self.start, self.sample_rate)

    def _note_hole(self, begin: float, end: float) -> None:
        begin = max(begin, self.seconds)  # late sound is dropped, and its gaps with it
        if self.holes and begin - self.holes[-1][1] < MAX_JITTER_SECONDS:
            self.holes[-1][1] = max(self.holes[-1][1], end)
        elif end - begin > self.hole_seconds:
            self.holes.append([begin, end])

    def _collect(self, pieces: list[np.ndarray]) -> None:
        for samples in pieces:
            dropped = min(self._to_drop, len(samples))
            self._to_drop -= dropped
            self._chunks.append(np.clip(samples[dropped:], -1.0, 1.0))
            self.num_samples += len(samples) - dropped
        self._levels += self._run.levels
        self._run.levels.clear()

    def _append_silence(self, count: int) -> None:
        self._chunks.append(count)
        self.num_samples += count


class _Level(NamedTuple):
    """Mean power of a piece of sound from `begin` to `end`, in seconds after the clock's start.

    apart: power of the mix if the channels were uncorrelated.
    mixed: power of the mix.
    """

    begin: float
    end: float
    apart: float
    mixed: float


class _Run:
    """Converts gapless sound of one rate, layout and format to mono at another rate.

    `num_samples` have come in since `start`. Samples wait in a queue until there is a block to mix. Every
    method returns the samples that are ready.
    """

    def __init__(self, frame: av.AudioFrame, start: float, clock_start: float, sample_rate: int) -> None:
        """frame: the first frame; it has the rate, layout and format of the run.
        start, clock_start: of the run and of its clock, seconds of the file's clock.
        sample_rate: of the result, Hz.
        """
        self._offset = start - clock_start
        self.kind, self.rate, self.start = _kind(frame), frame.sample_rate, start
        self.num_samples = 0
        self.num_cleaned = 0
        self.levels: list[_Level] = []  # of sound of more than one channel
        self._num_mixed = 0
        self._weights = _channel_weights(frame.layout)
        self._queue = av.AudioFifo()
        # Interleaved samples: with planar sound of 8 channels and more, PyAV reads beyond the planes.
        self._packer = av.AudioResampler(format="flt", layout=frame.layout, rate=frame.sample_rate)
        self._resampler = av.AudioResampler(format="fltp", layout="mono", rate=sample_rate)

    @property
    def end(self) -> float:
        return self.start + self.num_samples / self.rate

    def add(self, frame: av.AudioFrame) -> list[np.ndarray]:
        frame.pts = None  # with time stamps, the queue would refuse any that are not exact
        self._queue.write(frame)
        self.num_samples += frame.samples
        return self._mix_queue() if self._queue.samples >= BLOCK_SAMPLES else []

    def add_end_of(self, frame: av.AudioFrame, first: int) -> list[np.ndarray]:
        """Adds the frame without its first `first` samples."""
        self.num_samples += max(0, frame.samples - first)
        return self._mix_queue() + self._resample(self._mix(frame, first))

    def add_silence(self, count: int) -> list[np.ndarray]:
        self.num_samples += count
        return self._mix_queue() + self._resample(np.zeros(count, np.float32))

    def finish(self) -> list[np.ndarray]:
        return self._mix_queue() + _samples(self._resampler.resample(None))

    def _mix_queue(self) -> list[np.ndarray]:
        block = self._queue.read()
        return [] if block is None else self._resample(self._mix(block))

    def _resample(self, mono: np.ndarray) -> list[np.ndarray]:
        if not len(mono):
            return []
        frame = av.AudioFrame.from_ndarray(mono[None], "fltp", "mono")
        frame.sample_rate, frame.time_base, frame.pts = self.rate, Fraction(1, self.rate), self._num_mixed
        self._num_mixed += len(mono)
        return _samples(self._resampler.resample(frame))

    def _mix(self, frame: av.AudioFrame, first: int = 0) -> np.ndarray:
        """Decoded sound of any number type, from sample `first` on, as float32 mono in [-1, 1]."""
        packed = [
            piece.to_ndarray().reshape(-1, len(self._weights)) for piece in self._packer.resample(frame)
        ]
        values = np.concatenate(packed)[first:]
        finite = np.isfinite(values)
        if not finite.all():
            self.num_cleaned += int((~finite).any(axis=1).sum())
            values = np.where(finite, values, np.float32(0))
        values = values.clip(-MAX_OVERSHOOT, MAX_OVERSHOOT)
        mono = values @ self._weights
        if len(self._weights) > 1 and len(values):
            begin = self._offset + self._num_mixed / self.rate
            apart = float(np.einsum("ij,ij->j", values, values) @ self._weights**2) / len(values)
            self.levels.append(
                _Level(begin, begin + len(values) / self.rate, apart, float(mono @ mono) / len(values))
            )
        return mono.clip(-1.0, 1.0)


class Silence:
    """Stands in for the SoundClock if only pictures are read.

    `end_seconds`, settable: when the sound that is not read ends, from the start; infinite if there is none.
    """

    seconds = float("inf")
    end_seconds = float("inf")
    num_cleaned = 0
    holes = ()

    def finish(self) -> None:
        """Nothing is held."""

    def take(self, first: int, count: int) -> np.ndarray:
        return np.zeros(count, np.float32)

    def forget(self, first: int) -> None:
        """Nothing is held."""

    def cancels(self, first: float, last: float) -> bool:
        return False


def _kind(frame: av.AudioFrame) -> tuple:
    return frame.sample_rate, frame.layout.name, frame.format.name


def _samples(frames: list) -> list[np.ndarray]:
    """The samples of resampled mono frames.

    If the rate is already right, the resampler passes frames through, and the end mark (None), too.
    """
    return [frame.to_ndarray()[0] for frame in frames if frame is not None]


def _channel_weights(layout: av.AudioLayout) -> np.ndarray:
    """The share of each channel in the mono mix.

    The shares add up to 1, so the mix of samples in [-1, 1] stays there.
    """
    names = [channel.name for channel in layout.channels]
    if set(names) == {UNNAMED_CHANNEL}:
        usual = USUAL_LAYOUTS.get(len(names))
        names = [channel.name for channel in av.AudioLayout(usual).channels] if usual else names
    weights = np.array([CHANNEL_WEIGHTS.get(name, SURROUND_WEIGHT) for name in names], np.float32)
    if not weights.any():
        weights[:] = 1.0  # nothing but a low-frequency channel
    return weights / weights.sum()
