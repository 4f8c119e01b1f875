"""AV-Align (Yariv et al. 2024, TempoTokens): how well onsets of the sound and peaks of motion coincide.

Two releases are in use and give different numbers. In the release of 2023, a peak may match several onsets.
The release of February 2025 (commit bf0b1e3) makes one-to-one pairs and leaves out faint peaks. In the
release of 2023, the search for peaks uses a count that the code never sets. We use the number of all frames,
as the release of 2025 does. librosa finds onsets and OpenCV finds motion: `pip install 'proav[metrics]'`
installs both. At 10 frames a second the tolerance of one frame is 100 ms on either side, so that chance alone
makes many pairs. `clip_synchrony.py` is a measure for clips as short as 1.6 s. Letters: T frames, H W rows
and columns, C=3 colours, L samples of sound.
"""

import importlib.util
from collections.abc import Sequence
from functools import cache
from types import ModuleType

import numpy as np

from proav.errors import UserError

ONSET_RATE = 22_050
"""Hz. The released code resamples sound to this rate, librosa's own."""
FARNEBACK = {
    "pyr_scale": 0.5,
    "levels": 3,
    "winsize": 15,
    "iterations": 3,
    "poly_n": 5,
    "poly_sigma": 1.2,
    "flags": 0,
}
MIN_MOTION = 0.1
"""Pixels a frame. The release of 2025 takes no peak below this."""


def is_installed() -> bool:
    """Whether both libraries, OpenCV and librosa, are installed."""
    return all(importlib.util.find_spec(name) for name in ("cv2", "librosa"))


@cache
def libraries() -> tuple[ModuleType, ModuleType]:
    """(cv2, librosa). Raises UserError that says how to install what is missing."""
    try:
        import cv2
        import librosa
    except ImportError as error:
        raise UserError(f"AV-Align needs {error.name}; type: pip install 'proav[metrics]'") from None
    cv2.setNumThreads(1)
    return cv2, librosa


def audio_onsets(audio_L: np.ndarray, sample_rate: int) -> np.ndarray:
    """Times of onsets in seconds: librosa's onset strength at 22,050 Hz and its peaks, by librosa's defaults.

    audio_L: float32, mono, at `sample_rate` Hz.
    """
    _, librosa = libraries()
    if not np.any(audio_L):
        return np.zeros(0)  # librosa would warn about silence
    audio = librosa.resample(audio_L, orig_sr=sample_rate, target_sr=ONSET_RATE)
    strength = librosa.onset.onset_strength(y=audio, sr=ONSET_RATE)
    return librosa.onset.onset_detect(onset_envelope=strength, sr=ONSET_RATE, units="time")


def motion_strengths(video_THWC: np.ndarray) -> np.ndarray:
    """Mean magnitude of optical flow from the previous frame, in pixels, float64 [T].

    video: uint8 [T, H, W, 3], T of at least 2. The first frame gets the value of the second, so that neither
    can be a peak. The released code measures that flow twice, and OpenCV's result may differ in its last bits
    from call to call. In the released code, this alone makes frame 1 a peak in 2 to 4 of a hundred clips.
    """
    cv2, _ = libraries()
    grey = [cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY) for frame in video_THWC]
    flows = (
        cv2.calcOpticalFlowFarneback(before, after, None, **FARNEBACK)
        for before, after in zip(grey, grey[1:])
    )
    motion = [float(np.hypot(flow[..., 0], flow[..., 1]).mean(dtype=np.float64)) for flow in flows]
    return np.array([motion[0], *motion])


def peak_times(strengths_T: np.ndarray, fps: float, *, min_strength: float = 0.0) -> np.ndarray:
    """Times in seconds of strict local maxima of at least `min_strength`.

    The release of 2025 uses `MIN_MOTION`.
    """
    inner = strengths_T[1:-1]
    return (
        np.flatnonzero((inner > strengths_T[:-2]) & (inner > strengths_T[2:]) & (inner >= min_strength)) + 1
    ) / fps


def av_align(
    video_THWC: np.ndarray, audio_L: np.ndarray, *, fps: float, sample_rate: int
) -> dict[str, float]:
    """Both releases' scores of a clip, with tolerance 1 / fps; NaN if undefined.

    Returns `av_align` (2023) and `av_align_one_to_one` (2025).

    video_THWC: uint8 [T, H, W, 3], T of at least 2.
    audio_L: float32, mono.
    fps: frames a second of the video.
    sample_rate: of the sound, in Hz.
    """
    return from_events(audio_onsets(audio_L, sample_rate), motion_strengths(video_THWC), fps=fps)


def from_events(onsets: Sequence[float], strengths_T: np.ndarray, *, fps: float) -> dict[str, float]:
    """Like `av_align`, from onsets in seconds and from motion strengths.

    If one video is scored with several sounds, its motion is then measured only once.
    """
    return {
        "av_align": matched_share(onsets, peak_times(strengths_T, fps), tolerance_seconds=1 / fps),
        "av_align_one_to_one": paired_share(
            onsets, peak_times(strengths_T, fps, min_strength=MIN_MOTION), tolerance_seconds=1 / fps
        ),
    }


def matched_share(onsets: Sequence[float], peaks: Sequence[float], *, tolerance_seconds: float) -> float:
    """The score of 2023: matches / (onsets + peaks - matches).

    matches is the number of onsets that have a peak nearer than the tolerance. A peak may match several
    onsets. So the score is at least 0 and at most the number of onsets; it exceeds 1 if onsets crowd around
    few peaks. It is NaN if there is neither onset nor peak. In that case the release divides by zero, and
    JavisDiT's code, which adds 1e-6 to the denominator, gives 0.
    """
    matches = sum(any(_near(onset, peak, tolerance_seconds) for peak in peaks) for onset in onsets)
    return _share(matches, len(onsets), len(peaks))


def paired_share(onsets: Sequence[float], peaks: Sequence[float], *, tolerance_seconds: float) -> float:
    """The score of 2025, in [0, 1]: as `matched_share`, but each peak is used once.

    In order of time, an onset takes the first free peak that is nearer than the tolerance.
    """
    free, matches = sorted(peaks), 0
    for onset in sorted(onsets):
        near = next((peak for peak in free if _near(onset, peak, tolerance_seconds)), None)
        if near is not None:
            free.remove(near)
            matches += 1
    return _share(matches, len(onsets), len(peaks))


def _near(onset: float, peak: float, tolerance_seconds: float) -> bool:
    return peak - tolerance_seconds < onset < peak + tolerance_seconds  # same rounding as the releases


def _share(matches: int, num_onsets: int, num_peaks: int) -> float:
    union = num_onsets + num_peaks - matches
    return matches / union if union else float("nan")
