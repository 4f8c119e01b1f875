"""Decoded sound -> mono float samples at one rate on a clock that starts at a given time (`SoundClock`).

Knows nothing of files or pictures. Gaps between time stamps become silence, overlaps are cut. Private to `proav/media/container.py`.
"""

from fractions import Fraction

import av
import numpy as np

from proav.media.pictures import MAX_GAP_SECONDS

MAX_JITTER_SECONDS = 0.02
"""Time stamps may disagree with the running sample count by this much before silence is put in or samples are cut: more than
millisecond rounding, less than one AAC frame at 48 kHz (21.3 ms), so that a lost frame is always noticed."""
CHANNEL_WEIGHTS = {"FL": 1.0, "FR": 1.0, "DL": 1.0, "DR": 1.0, "FC": 2**0.5, "LFE": 0.0, "LFE2": 0.0}
SURROUND_WEIGHT = 0.5**0.5
"""The mean of the ITU-R BS.775 stereo pair: front left and right 1, centre sqrt 2, all others sqrt 1/2, no low-frequency effects."""
UNNAMED_CHANNEL = "NONE"
USUAL_LAYOUTS = {6: "5.1", 8: "7.1"}
"""What players take so many channels for where the file (PCM in Matroska, say) does not name them; any other number is averaged."""
BLOCK_SAMPLES = 8192
"""Sound is mixed and resampled in blocks of at least this many samples: decoders hand out a thousand at a time, which is dear."""
MAX_OVERSHOOT = 4.0
"""Float sound may pass 1 by rounding; what is far beyond is damage and must not drown the other channels."""


class SoundClock:
    """Collects decoded sound as float32 mono samples in [-1, 1]; sample 0 is at `start` (seconds of the file's clock).

    Samples that are not numbers become silence and are counted in `num_cleaned`.
    """

    def __init__(self, *, sample_rate: int, start: float) -> None:
        self.sample_rate, self.start = sample_rate, start
        self.num_samples = 0
        self.num_cleaned = 0
        self.broke_off = False
        self._chunks: list[np.ndarray] = []
        self._taken = 0
        self._run: _Run | None = None
        self._to_drop = 0

    @property
    def seconds(self) -> float:
        """Time covered from the start."""
        return self.num_samples / self.sample_rate

    def push(self, frame: av.AudioFrame) -> None:
        """Takes the next decoded frame."""
        if not frame.samples or not frame.sample_rate:
            return
        if self._run is None or _kind(frame) != self._run.kind:
            self._begin_run(frame)
        run = self._run
        late = 0.0 if frame.time is None else frame.time - run.end
        self.broke_off |= late > MAX_GAP_SECONDS
        if self.broke_off:
            return
        if late > MAX_JITTER_SECONDS:
            self._collect(run.add_silence(round(late * run.rate)))
        if late < -MAX_JITTER_SECONDS:
            self._collect(run.add_end_of(frame, round(-late * run.rate)))
        else:
            self._collect(run.add(frame))

    def finish(self) -> None:
        """Lets out what is held on the way."""
        if self._run is not None:
            self._collect(self._run.finish())
            self.num_cleaned += self._run.num_cleaned
            self._run = None

    def take(self, first: int, count: int) -> np.ndarray:
        """Samples first .. first + count - 1, zeros beyond the end; earlier ones are forgotten."""
        held = np.concatenate([*self._chunks, np.zeros(0, np.float32)])
        held = held[first - self._taken :]
        self._chunks, self._taken = [held], first
        return np.pad(held[:count], (0, max(0, count - len(held))))

    def _begin_run(self, frame: av.AudioFrame) -> None:
        """Places the first sample of a run: silence before it where it is late, its early part dropped where it is early."""
        self.finish()
        end = self.start + self.num_samples / self.sample_rate
        start = frame.time if frame.time is not None else end
        offset = round((start - end) * self.sample_rate)
        if offset > MAX_GAP_SECONDS * self.sample_rate:
            self.broke_off = True
        elif offset > 0:
            self._append(np.zeros(offset, np.float32))
        self._to_drop = max(0, -offset)
        self._run = _Run(frame, start, self.sample_rate)

    def _collect(self, pieces: list[np.ndarray]) -> None:
        for samples in pieces:
            dropped = min(self._to_drop, len(samples))
            self._to_drop -= dropped
            self._append(np.clip(samples[dropped:], -1.0, 1.0))

    def _append(self, samples: np.ndarray) -> None:
        self._chunks.append(samples)
        self.num_samples += len(samples)


class _Run:
    """Gapless sound of one rate, layout and format, on its way to mono at another rate; `num_samples` have come in since `start`.

    What comes in waits in a queue until there is a block to mix: every method returns the samples that are ready.
    """

    def __init__(self, frame: av.AudioFrame, start: float, sample_rate: int) -> None:
        self.kind, self.rate, self.start = _kind(frame), frame.sample_rate, start
        self.num_samples = 0
        self.num_cleaned = 0
        self._num_mixed = 0
        self._weights = _channel_weights(frame.layout)
        self._queue = av.AudioFifo()
        # Samples of one channel after the other: PyAV reads beyond the planes of planar sound of 8 channels and more.
        self._packer = av.AudioResampler(format="flt", layout=frame.layout, rate=frame.sample_rate)
        self._resampler = av.AudioResampler(format="fltp", layout="mono", rate=sample_rate)

    @property
    def end(self) -> float:
        return self.start + self.num_samples / self.rate

    def add(self, frame: av.AudioFrame) -> list[np.ndarray]:
        frame.pts = None  # the queue insists on exact time stamps
        self._queue.write(frame)
        self.num_samples += frame.samples
        return self._mix_queue() if self._queue.samples >= BLOCK_SAMPLES else []

    def add_end_of(self, frame: av.AudioFrame, first: int) -> list[np.ndarray]:
        """Without the frame's first samples."""
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
        packed = [piece.to_ndarray().reshape(-1, len(self._weights)) for piece in self._packer.resample(frame)]
        values = np.concatenate(packed)[first:]
        finite = np.isfinite(values)
        if not finite.all():
            self.num_cleaned += int((~finite).any(axis=1).sum())
            values = np.where(finite, values, np.float32(0))
        mono = values.clip(-MAX_OVERSHOOT, MAX_OVERSHOOT) @ self._weights
        return mono.clip(-1.0, 1.0)


class Silence:
    """Stands in for the SoundClock of a file without sound, where the caller allows that."""

    seconds = float("inf")
    num_cleaned = 0
    broke_off = False

    def finish(self) -> None:
        """Nothing is held."""

    def take(self, first: int, count: int) -> np.ndarray:
        return np.zeros(count, np.float32)


def _kind(frame: av.AudioFrame) -> tuple:
    return frame.sample_rate, frame.layout.name, frame.format.name


def _samples(frames: list) -> list[np.ndarray]:
    """Of resampled mono frames; the resampler passes sound of the right rate through, the end mark (None) too."""
    return [frame.to_ndarray()[0] for frame in frames if frame is not None]


def _channel_weights(layout: av.AudioLayout) -> np.ndarray:
    """The share of each channel in the mono mix; they add up to 1, so that the mix of samples in [-1, 1] stays there."""
    names = [channel.name for channel in layout.channels]
    if set(names) == {UNNAMED_CHANNEL}:
        usual = USUAL_LAYOUTS.get(len(names))
        names = [channel.name for channel in av.AudioLayout(usual).channels] if usual else names
    weights = np.array([CHANNEL_WEIGHTS.get(name, SURROUND_WEIGHT) for name in names], np.float32)
    if not weights.any():
        weights[:] = 1.0  # nothing but a low-frequency channel
    return weights / weights.sum()
