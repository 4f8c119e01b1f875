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
        # a run: frames of one rate, layout and format, through one resampler
        self._kind: tuple | None = None
        self._source_rate = 0
        self._weights = np.ones(1, np.float32)
        self._resampler: av.AudioResampler | None = None
        self._run_start = 0.0
        self._run_samples = 0
        self._to_drop = 0
        self._pending: list[np.ndarray] = []  # decoded [channels, samples], not yet mixed

    @property
    def seconds(self) -> float:
        """Time covered from the start."""
        return self.num_samples / self.sample_rate

    def push(self, frame: av.AudioFrame) -> None:
        """Takes the next decoded frame."""
        if not frame.samples or not frame.sample_rate:
            return
        if (frame.sample_rate, frame.layout.name, frame.format.name) != self._kind:
            self._begin_run(frame)
        values = frame.to_ndarray()
        if not frame.format.is_planar:
            values = values.reshape(-1, len(self._weights)).T
        if frame.time is not None:
            late = frame.time - self._run_start - self._run_samples / self._source_rate
            self.broke_off |= late > MAX_GAP_SECONDS
            if self.broke_off:
                return
            if late > MAX_JITTER_SECONDS:
                silence = 128 if values.dtype == np.uint8 else 0
                self._feed(np.full((len(values), round(late * self._source_rate)), silence, values.dtype))
            elif late < -MAX_JITTER_SECONDS:
                values = values[:, round(-late * self._source_rate) :]
        self._feed(values)

    def finish(self) -> None:
        """Lets out what is held on the way."""
        if self._resampler is not None:
            self._mix_pending()
            self._collect(self._resampler.resample(None))
            self._resampler, self._kind = None, None

    def take(self, first: int, count: int) -> np.ndarray:
        """Samples first .. first + count - 1, zeros beyond the end; earlier ones are forgotten."""
        held = np.concatenate([*self._chunks, np.zeros(0, np.float32)])
        held = held[first - self._taken :]
        self._chunks, self._taken = [held], first
        return np.pad(held[:count], (0, max(0, count - len(held))))

    def _begin_run(self, frame: av.AudioFrame) -> None:
        """Places the first sample of a run: silence before it where it is late, its early part dropped where it is early."""
        self.finish()
        self._kind = frame.sample_rate, frame.layout.name, frame.format.name
        self._source_rate, self._run_samples = frame.sample_rate, 0
        self._weights = _channel_weights([channel.name for channel in frame.layout.channels])
        self._resampler = av.AudioResampler(format="fltp", layout="mono", rate=self.sample_rate)
        end = self.start + self.num_samples / self.sample_rate
        self._run_start = frame.time if frame.time is not None else end
        offset = round((self._run_start - end) * self.sample_rate)
        if offset > MAX_GAP_SECONDS * self.sample_rate:
            self.broke_off = True
        elif offset > 0:
            self._append(np.zeros(offset, np.float32))
        self._to_drop = max(0, -offset)

    def _feed(self, values: np.ndarray) -> None:
        self._pending.append(values)
        self._run_samples += values.shape[1]
        if sum(piece.shape[1] for piece in self._pending) >= BLOCK_SAMPLES:
            self._mix_pending()

    def _mix_pending(self) -> None:
        values = np.concatenate(self._pending, axis=1) if self._pending else np.zeros((1, 0), np.float32)
        self._pending = []
        if not values.size:
            return
        mono = self._mix(values)
        frame = av.AudioFrame.from_ndarray(mono[None], "fltp", "mono")
        frame.sample_rate, frame.time_base = self._source_rate, Fraction(1, self._source_rate)
        frame.pts = self._run_samples - len(mono)
        self._collect(self._resampler.resample(frame))

    def _collect(self, frames: list) -> None:
        for frame in frames:
            if frame is None:  # the resampler passes sound of the right rate through, the end mark too
                continue
            samples = frame.to_ndarray()[0]
            dropped = min(self._to_drop, len(samples))
            self._to_drop -= dropped
            self._append(np.clip(samples[dropped:], -1.0, 1.0))

    def _append(self, samples: np.ndarray) -> None:
        self._chunks.append(samples)
        self.num_samples += len(samples)

    def _mix(self, values: np.ndarray) -> np.ndarray:
        """Decoded sound [channels, samples] of any number type as float32 mono in [-1, 1]."""
        if values.dtype == np.uint8:
            values = (values.astype(np.float32) - 128) / 128
        elif values.dtype.kind == "i":
            values = values.astype(np.float32) / -float(np.iinfo(values.dtype).min)
        finite = np.isfinite(values)
        if not finite.all():
            self.num_cleaned += int((~finite).any(axis=0).sum())
            values = np.where(finite, values, 0)
        mono = self._weights @ values.astype(np.float32, copy=False).clip(-MAX_OVERSHOOT, MAX_OVERSHOOT)
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


def _channel_weights(names: list[str]) -> np.ndarray:
    """The share of each channel in the mono mix; they add up to 1, so that the mix of samples in [-1, 1] stays there."""
    weights = np.array([CHANNEL_WEIGHTS.get(name, SURROUND_WEIGHT) for name in names], np.float32)
    if not weights.any():
        weights[:] = 1.0  # nothing but a low-frequency channel
    return weights / weights.sum()
