"""From features to numbers: known answers, floors, intervals, and the reason for each missing number."""

import dataclasses
import math

import numpy as np
import pytest

from proav.evaluate.measure import Measured
from proav.evaluate.numbers import Resampling, halves, score_numbers, set_numbers
from proav.metrics.protocols import Distance

DRAWS = Resampling(num_resamples=40, seed=0)


def measured(seed, count=120, *, shift=0.0, windows=1, clips_a_source=2, scores=None):
    generator = np.random.default_rng(seed)
    return Measured(
        ids=[str(number) for number in range(count)],
        sources=[f"s{number // clips_a_source}" for number in range(count)],
        labels=[""] * count,
        scores=scores or {},
        features={"net": list((shift + generator.normal(size=(count, windows, 6))).astype(np.float32))},
        problems={},
        cost={},
    )


def line(kind, real, fake, **options):
    return set_numbers(Distance("D", kind, "net", options.pop("scale", 1.0)), real, fake, DRAWS, **options)


def test_a_set_against_itself_and_against_another():
    real = measured(0)
    (same,) = line("frechet", real, real)
    assert (
        same.value == pytest.approx(0, abs=1e-9)
        and same.floor > 0.05
        and "would differ by about" in same.note
    )
    (far,) = line("frechet", real, measured(1, shift=2.0))
    assert (
        far.value == pytest.approx(24, rel=0.2)
        and far.low < 24 < far.high
        and far.clips == 120
        and far.sources == 60
    )
    (scaled,) = line("frechet", real, measured(1, shift=2.0), scale=1e4)
    assert (
        scaled.value == pytest.approx(1e4 * far.value)
        and scaled.low == pytest.approx(1e4 * far.low)
        and scaled.floor == pytest.approx(1e4 * far.floor)
    )


def test_windows_of_a_clip_are_vectors_of_their_own():
    real, fake = measured(0, 30, windows=4), measured(1, 30, windows=4)
    flat = [
        dataclasses.replace(
            each,
            ids=[str(number) for number in range(120)],
            sources=[source for source in each.sources for _ in range(4)],
            labels=[""] * 120,
            features={"net": [row[None] for clip in each.features["net"] for row in clip]},
        )
        for each in (real, fake)
    ]
    (windows,), (vectors,) = line("kernel", real, fake), line("kernel", *flat)
    assert windows.value == pytest.approx(vectors.value, rel=1e-12) and windows.floor == pytest.approx(
        vectors.floor, rel=1e-12
    )
    # the same sources are drawn
    assert (windows.low, windows.high) == pytest.approx((vectors.low, vectors.high), rel=1e-9)


@pytest.mark.parametrize("windows", [1, 3])
def test_intervals_of_unbiased_numbers_cover_the_truth(windows):
    """A draw holds some sources twice. With pairs of one source, intervals lay below the true distance 0."""
    truth = 2 * math.gamma(3.5) / math.gamma(3)  # the mean distance of two vectors of six normal numbers
    sets = [
        (measured(2 * trial, windows=windows), measured(2 * trial + 1, windows=windows))
        for trial in range(20)
    ]
    for kind, expected in (("kernel", 0.0), ("diversity", truth)):
        lines = [line(kind, real, fake)[0] for real, fake in sets]
        assert np.mean([each.low <= expected <= each.high for each in lines]) >= 0.85, kind
        assert all(each.low < each.value < each.high for each in lines), kind


def test_halves_share_no_source():
    real = measured(0, clips_a_source=3)
    first, second = halves(real)
    assert len(first) == len(second) == 60
    assert not {real.sources[place] for place in first} & {real.sources[place] for place in second}


def test_too_few_say_how_many():
    (few,) = line("frechet", measured(0, 7), measured(1, 7))
    assert (
        few.value is None and few.needs == "at least 8 feature vectors of each set (6 features), there are 7"
    )
    (kernel,) = line("kernel", measured(0, 7), measured(1, 7))
    assert (
        kernel.value is not None and kernel.low is None and "at least 5 sources, there are 4" in kernel.note
    )
    (absent,) = set_numbers(Distance("D", "kernel", "other"), measured(0), measured(1), DRAWS)
    assert absent.value is None and "network other" in absent.needs


def test_pairs_of_numbers_and_memorization():
    real, fake, held_out = measured(0), measured(1), measured(2)
    precision, recall = set_numbers(
        Distance("precision_recall", "precision_recall", "net"), real, fake, DRAWS
    )
    assert (
        (precision.metric, recall.metric) == ("precision", "recall")
        and precision.value > 0.5 < recall.value
        and precision.low is None
    )
    (new,) = line("nearest_training", real, fake, held_out=held_out)
    (copied,) = line("nearest_training", real, real, held_out=held_out)
    assert (
        new.value == pytest.approx(1, abs=0.2)
        and copied.value == pytest.approx(0, abs=1e-6)
        and copied.floor == 1
    )
    assert line("nearest_training", real, fake)[0].needs
    (of_copies,) = line("nearest_training", real, fake, held_out=real)
    assert of_copies.value is None and "copies of training clips" in of_copies.needs


def test_diversity_is_of_the_generated_clips_beside_that_of_the_real():
    wide, narrow = measured(0), measured(1)
    narrow = dataclasses.replace(narrow, features={"net": [clip / 10 for clip in narrow.features["net"]]})
    (found,) = line("diversity", dataclasses.replace(wide, sources=["one"] * 120), narrow)
    assert found.floor == pytest.approx(10 * found.value, rel=0.2) and found.low < found.value < found.high


def test_scores_are_means_with_what_is_left_out():
    values = np.where(np.arange(120) % 3 == 0, np.nan, 2.0)
    found, absent = score_numbers(
        ["synchrony", "ssim"],
        measured(0, scores={"synchrony": values}),
        DRAWS,
        real=measured(1, scores={"synchrony": values + 1}),
    )
    assert (found.value, found.low, found.high, found.floor, found.clips) == (
        2.0,
        2.0,
        2.0,
        3.0,
        80,
    ) and "undefined for 40 clips" in found.note
    assert absent.value is None


def test_infinite_scores_are_left_out_of_the_mean_and_of_the_real_clips_beside_it():
    values = np.where(np.arange(120) < 10, np.inf, 3.0)
    of_real = np.where(np.arange(120) < 30, np.nan, np.where(np.arange(120) < 40, np.inf, 1.0))
    measured_real = measured(1, scores={"blockiness": of_real})
    made = measured(0, scores={"blockiness": values})
    (found,) = score_numbers(["blockiness"], made, DRAWS, real=measured_real)
    assert (found.value, found.floor, found.clips) == (3.0, 1.0, 110)
    assert "undefined for 10 clips" in found.note


def test_numbers_do_not_follow_from_the_order_of_clips():
    real, fake = measured(0), measured(1, shift=0.3)
    order = np.random.default_rng(3).permutation(120)
    mixed = dataclasses.replace(
        fake,
        sources=[fake.sources[n] for n in order],
        features={"net": [fake.features["net"][n] for n in order]},
    )
    assert line("kernel", real, mixed)[0].value == pytest.approx(
        line("kernel", real, fake)[0].value, rel=1e-9
    )
