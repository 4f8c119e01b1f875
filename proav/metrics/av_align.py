"""AV-Align (Yariv et al. 2024, TempoTokens): how many onsets of the sound have a peak of motion at their side, and the other way round.

Two releases are in use, and give other numbers: in that of 2023 a peak may serve several onsets; that of February 2025 (commit bf0b1e3) makes pairs
and leaves out faint peaks. The first one's search for peaks names a count that it never sets; it is taken to be of all frames, as in the second. The
onsets are librosa's and the motion is OpenCV's: `pip install 'proav[metrics]'` brings both. At 10 frames a second the tolerance of a frame is 100 ms
on either side, so that chance alone pairs much. What holds at 1.6 s is `clip_synchrony.py`.
"""

import importlib.util
from collections.abc import Sequence
from functools import cache
from types import ModuleType

import numpy as np

from proav.errors import UserError

ONSET_RATE = 22_050
"""The rate in Hz to which the released code brings sound: librosa's own."""
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
"""Pixels a frame below which the release of 2025 takes no peak."""


def is_installed() -> bool:
    """Whether both libraries are there."""
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
    """Times of onsets in seconds: librosa's onset strength at 22,050 Hz and its peaks, with librosa's own settings."""
    _, librosa = libraries()
    if not np.any(audio_L):
        return np.zeros(0)  # silence, of which librosa warns
    audio = librosa.resample(audio_L, orig_sr=sample_rate, target_sr=ONSET_RATE)
    strength = librosa.onset.onset_strength(y=audio, sr=ONSET_RATE)
    return librosa.onset.onset_detect(onset_envelope=strength, sr=ONSET_RATE, units="time")


def motion_strengths(video_THWC: np.ndarray) -> np.ndarray:
    """Mean magnitude of optical flow from the frame before, in pixels, float64 [T]; uint8 [T, H, W, 3], T of at least 2.

    The first frame has the second's, so that neither can be a peak. The released code measures that flow twice, and OpenCV's result may differ in its
    last bits from call to call: in 2 to 4 of a hundred clips frame 1 becomes a peak there by that alone.
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
    """Times of strict local maxima of at least `min_strength`, in seconds; that is `MIN_MOTION` for the release of 2025."""
    inner = strengths_T[1:-1]
    return (
        np.flatnonzero((inner > strengths_T[:-2]) & (inner > strengths_T[2:]) & (inner >= min_strength)) + 1
    ) / fps


def av_align(
    video_THWC: np.ndarray, audio_L: np.ndarray, *, fps: float, sample_rate: int
) -> dict[str, float]:
    """Both releases' scores of a clip: `av_align` (2023) and `av_align_one_to_one` (2025), tolerance 1 / fps; uint8 [T, H, W, 3], T of at least 2.

    audio_L: float32, mono. NaN where undefined.
    """
    return from_events(audio_onsets(audio_L, sample_rate), motion_strengths(video_THWC), fps=fps)


def from_events(onsets: Sequence[float], strengths_T: np.ndarray, *, fps: float) -> dict[str, float]:
    """The same from onsets in seconds and from motion, for one picture with several sounds."""
    return {
        "av_align": matched_share(onsets, peak_times(strengths_T, fps), tolerance_seconds=1 / fps),
        "av_align_one_to_one": paired_share(
            onsets, peak_times(strengths_T, fps, min_strength=MIN_MOTION), tolerance_seconds=1 / fps
        ),
    }


def matched_share(onsets: Sequence[float], peaks: Sequence[float], *, tolerance_seconds: float) -> float:
    """matches / (onsets + peaks - matches), matches counting onsets that have a peak nearer than the tolerance: that of 2023.

    A peak may serve several onsets, so that it exceeds 1 where onsets crowd around few peaks: at least 0, at most the number of onsets. NaN where
    there is neither onset nor peak; the release divides by zero there, and JavisDiT's, with 1e-6 added below, gives 0.
    """
    matches = sum(any(_near(onset, peak, tolerance_seconds) for peak in peaks) for onset in onsets)
    return _share(matches, len(onsets), len(peaks))


def paired_share(onsets: Sequence[float], peaks: Sequence[float], *, tolerance_seconds: float) -> float:
    """The same with each peak used once: in order of time, an onset takes the first free peak nearer than the tolerance. In [0, 1]."""
    free, matches = sorted(peaks), 0
    for onset in sorted(onsets):
        near = next((peak for peak in free if _near(onset, peak, tolerance_seconds)), None)
        if near is not None:
            free.remove(near)
            matches += 1
    return _share(matches, len(onsets), len(peaks))


def _near(onset: float, peak: float, tolerance_seconds: float) -> bool:
    return peak - tolerance_seconds < onset < peak + tolerance_seconds  # rounded as the releases round it


def _share(matches: int, num_onsets: int, num_peaks: int) -> float:
    union = num_onsets + num_peaks - matches
    return matches / union if union else float("nan")
