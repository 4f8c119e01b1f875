"""The measures of seams (bench/train/masked_tasks.py) and of restless pictures (bench/train/contact_sheet.py)
on clips whose jumps are known."""

import numpy as np
import pytest

from bench.train.contact_sheet import unrest
from bench.train.masked_tasks import LOUDNESS_SECONDS, SILENCE_RMS, seam_ratios
from proav.media.container import Clip

FPS, RATE, FRAMES, SEAM = 10, 16_000, 4, 2
STRETCHES = FRAMES * round(1 / (FPS * LOUDNESS_SECONDS))


def clip(given_db: float, seam_db: float, made_db: float) -> Clip:
    """Sound whose level jumps by so many dB within the given half, at the seam, and within the made half."""
    half = STRETCHES // 2 - 1
    jumps_db = np.array([given_db] * half + [seam_db] + [made_db] * half) * np.resize([1, -1], STRETCHES - 1)
    levels_db = -30 + np.concatenate([[0.0], np.cumsum(jumps_db)])
    samples = int(LOUDNESS_SECONDS * RATE)
    audio = np.repeat(10 ** (levels_db / 20) - SILENCE_RMS, samples).astype(np.float32)
    video = np.repeat(np.uint8([0, 5, 35, 50]), 16 * 3).reshape(FRAMES, 4, 4, 3)
    return Clip(video, audio, FPS, RATE)


def test_a_seam_is_compared_with_what_is_elsewhere_and_with_made_sound():
    made_2T = np.array([[False, False, True, True]] * 2)
    found = seam_ratios([clip(1, 5, 4)] * 6, [SEAM], [SEAM], made_2T=made_2T)
    expected = {"picture": 30 / 10, "P in made": 30 / 15, "loudness": 5 / 2.5, "L in made": 5 / 4}
    assert found == pytest.approx(expected, rel=1e-3)
    assert seam_ratios([clip(1, 5, 4)] * 6, [], [SEAM])["picture"] is None


def test_intervals_are_over_sources():
    """Equal clips have an interval of no width; unlike ones have one around the ratio; four are too few."""
    names = list("abcdef")
    equal = seam_ratios([clip(2, 2, 2)] * 6, [], [SEAM], sources=names)
    assert equal["loudness_interval"] == pytest.approx([1.0, 1.0], rel=1e-3)
    unlike = [clip(2, 2 * seam, 2) for seam in (0.5, 0.5, 0.5, 1.5, 1.5, 1.5)]
    found = seam_ratios(unlike, [], [SEAM], sources=names)
    low, high = found["loudness_interval"]
    assert found["loudness"] == pytest.approx(1.0, rel=1e-3)
    assert 0.5 < low < 0.9 and 1.1 < high < 1.5
    assert seam_ratios(unlike[:4], [], [SEAM], sources=names[:4])["loudness_interval"] is None


def test_restless_pictures_are_told_by_frames_and_by_pixels():
    ramp_W = np.arange(0, 40, 5, dtype=np.uint8)
    still = np.broadcast_to(ramp_W[None, None, None, :, None], (2, 3, 8, 8, 3))
    assert unrest(still) == (0.0, 5.0)
    brighter = still + np.arange(3, dtype=np.uint8)[None, :, None, None, None] * np.uint8(7)
    assert unrest(brighter) == (7.0, 5.0)
