"""AV-Align: both matchings by hand, and onsets and peaks of made clips at known times.

One test checks what it says about a library that is not installed.
"""

import builtins

import numpy as np
import pytest

from proav.errors import UserError
from proav.metrics import av_align
from proav.metrics.av_align import (
    audio_onsets,
    from_events,
    matched_share,
    motion_strengths,
    paired_share,
    peak_times,
)

RATE = 16_000


def clicks(times, seconds=2.0):
    sound = np.zeros(int(seconds * RATE), np.float32)
    for time in times:
        first = int(time * RATE)
        sound[first : first + 800] = 0.8 * np.sin(np.arange(800) * 0.8) * np.exp(-np.arange(800) / 150)
    return sound


def test_matchings_by_hand():
    onsets, peaks = [0.50, 0.55, 1.50], [0.52, 1.0]
    # the first two onsets share a peak
    assert matched_share(onsets, peaks, tolerance_seconds=0.1) == pytest.approx(2 / (3 + 2 - 2))
    assert paired_share(onsets, peaks, tolerance_seconds=0.1) == pytest.approx(1 / (3 + 2 - 1))
    assert (
        matched_share([0.5], [0.625], tolerance_seconds=0.125) == 0
    )  # at exactly the tolerance there is no match
    for share in (matched_share, paired_share):
        assert share([0.5, 1.0], [0.5, 1.0], tolerance_seconds=0.1) == 1
        assert share([0.5], [], tolerance_seconds=0.1) == 0
        assert np.isnan(share([], [], tolerance_seconds=0.1))


def test_only_one_to_one_stays_below_one():
    onsets, peaks = [0.46, 0.48, 0.52, 0.54], [0.5]
    assert matched_share(onsets, peaks, tolerance_seconds=0.1) == 4  # 4 / (4 + 1 - 4)
    assert paired_share(onsets, peaks, tolerance_seconds=0.1) == pytest.approx(1 / 4)


def test_a_peak_is_strict_and_the_release_of_2025_leaves_out_faint_ones():
    # a faint peak, a plateau, a peak exactly at the limit
    motion = np.array([0.0, 0.05, 0.0, 0.3, 0.3, 0.0, 0.1, 0.0])
    assert peak_times(motion, 10).tolist() == [0.1, 0.6]
    assert peak_times(motion, 10, min_strength=av_align.MIN_MOTION).tolist() == [0.6]
    scores = from_events([0.1, 0.6], motion, fps=10)
    assert scores == {"av_align": 1, "av_align_one_to_one": 1 / 2}


def test_onsets_are_where_clicks_are():
    times = [0.4, 0.9, 1.3]
    assert audio_onsets(clicks(times), RATE) == pytest.approx(times, abs=0.04)
    assert len(audio_onsets(np.zeros(RATE, np.float32), RATE)) == 0


def test_peaks_are_where_the_picture_moves_most():
    texture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    texture = np.kron(texture[::8, ::8], np.ones((8, 8, 1), np.uint8))
    offsets = np.cumsum([0, 0, 0, 0, 3, 0, 0, 0, 0, 4, 0, 0])  # jumps into frames 4 and 9
    video = np.stack([np.roll(texture, offset, axis=1) for offset in offsets])
    assert peak_times(motion_strengths(video), 10).tolist() == [0.4, 0.9]
    sound = clicks([0.4, 0.9], seconds=1.2)
    assert av_align.av_align(video, sound, fps=10, sample_rate=RATE) == {
        "av_align": 1,
        "av_align_one_to_one": 1,
    }
    assert av_align.av_align(video, np.zeros_like(sound), fps=10, sample_rate=RATE) == {
        "av_align": 0,
        "av_align_one_to_one": 0,
    }


def test_a_missing_library_is_reported_with_what_to_type(monkeypatch):
    real = builtins.__import__

    def without(name, *arguments, **options):
        if name == "librosa":
            raise ImportError("gone", name="librosa")
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    av_align.libraries.cache_clear()
    with pytest.raises(UserError, match=r"needs librosa; type: pip install 'proav\[metrics\]'"):
        audio_onsets(clicks([0.4]), RATE)
    av_align.libraries.cache_clear()
