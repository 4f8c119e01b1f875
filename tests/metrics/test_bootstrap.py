"""Intervals over sources: known answers, and the order of clips changes nothing."""

import math

import numpy as np
import pytest

from proav.errors import UserError
from proav.metrics.bootstrap import bootstrap_interval, source_groups
from proav.metrics.distances import Moments, frechet_distance, kernel_distance
from proav.metrics.neighbours import diversity


def test_the_interval_of_a_mean_covers_the_truth_as_often_as_it_says():
    """100 sources of 4 clips that share their source's level.

    The 400 clips are worth 100 independent ones.
    """
    covered, num_trials = 0, 200
    for trial in range(num_trials):
        generator = np.random.default_rng(trial)
        values = np.repeat(generator.normal(size=100), 4) + 0.1 * generator.normal(size=400)
        groups = source_groups([f"s{number // 4}" for number in range(400)])
        interval = bootstrap_interval(
            lambda places, values=values: values[places].mean(), groups, num_resamples=200, seed=trial
        )
        covered += interval.low <= 0 <= interval.high
    assert covered / num_trials == pytest.approx(0.95, abs=0.05)


def test_the_width_is_that_of_the_normal_distribution():
    values = np.random.default_rng(0).normal(size=400)
    groups = source_groups([str(number) for number in range(400)])
    interval = bootstrap_interval(lambda places: values[places].mean(), groups, num_resamples=2000)
    assert interval.high - interval.low == pytest.approx(2 * 1.96 / np.sqrt(400), rel=0.1)


def test_the_shift_that_draws_add_to_a_distance_is_taken_out():
    """Two samples of one distribution have a Fréchet distance above 0, though the true one is 0.

    The distances of bootstrap draws are larger still. But the interval reaches down to the true distance.
    """
    real, fake = (np.random.default_rng(seed).normal(size=(300, 8)) for seed in range(2))
    groups = [source_groups([str(number // 2) for number in range(300)])] * 2

    def distance(first, second):
        return frechet_distance(Moments.of(real[first]), Moments.of(fake[second]))

    value, interval = (
        distance(np.arange(300), np.arange(300)),
        bootstrap_interval(distance, *groups, num_resamples=200),
    )
    assert value > 0.05 and interval.low <= 0 < interval.high + 0.5 * value and interval.high < value


def _intervals_of_sources(statistic, *, num_trials=40, num_sources=50, width=12, shift=0.0):
    """Intervals of a statistic for clips that share their source's vector in part.

    statistic: of the vectors of both sets and the pair of their sources.
    num_trials: how many intervals, each of new clips.
    num_sources: in each set; a source has two clips.
    width: how many numbers a vector has.
    shift: added to every number of the second set.
    """
    sources = [[f"{kind}{number // 2}" for number in range(2 * num_sources)] for kind in ("real", "fake")]
    groups = [source_groups(each) for each in sources]
    names = [np.asarray(each) for each in sources]
    for trial in range(num_trials):
        generator = np.random.default_rng(trial)
        centres = generator.normal(size=(2, num_sources, width))
        first, second = np.sqrt(0.5) * (
            np.repeat(centres, 2, axis=1) + generator.normal(size=(2, 2 * num_sources, width))
        )
        second = second + shift

        def of_draw(real, fake, first=first, second=second):
            return statistic(first[real], second[fake], (names[0][real], names[1][fake]))

        yield bootstrap_interval(of_draw, *groups, num_resamples=100, seed=trial)


def test_the_interval_of_a_kernel_distance_covers_the_truth():
    """Equal distributions first, then k(x, y) = <x, y> / 12, whose distance is |shift|^2 / 12.

    If pairs of clips of one source are left in, about half the intervals lie below the truth.
    """
    covered = np.mean(
        [
            i.low <= 0 <= i.high
            for i in _intervals_of_sources(lambda f, s, sources: kernel_distance(f, s, sources=sources))
        ]
    )
    assert covered >= 0.85
    linear = {"degree": 1, "coef0": 0.0}
    found = _intervals_of_sources(
        lambda f, s, sources: kernel_distance(f, s, sources=sources, **linear), shift=0.5
    )
    assert np.mean([i.low <= 0.25 <= i.high for i in found]) >= 0.85
    plain = _intervals_of_sources(lambda f, s, sources: kernel_distance(f, s))
    assert np.mean([interval.high < 0 for interval in plain]) > 0.4


def test_the_interval_of_a_diversity_covers_the_truth():
    """Vectors from a Gaussian of variance 1 in D dimensions have a known mean distance.

    It is 2 Gamma((D + 1) / 2) / Gamma(D / 2).
    """
    truth = 2 * math.gamma(6.5) / math.gamma(6)
    found = _intervals_of_sources(lambda f, s, sources: diversity(f, sources=sources[0]))
    assert np.mean([interval.low <= truth <= interval.high for interval in found]) >= 0.85


def test_draws_that_the_statistic_refuses_give_no_interval_but_a_reason():
    """With sources of 12 clips and of 1, the set is large enough but a draw may be too small."""
    groups = source_groups(["long"] * 12 + [f"s{number}" for number in range(8)])

    def needs_fifteen(places):
        if len(places) < 15:
            raise UserError(f"at least 15 clips, there are {len(places)}")
        return 0.0

    interval = bootstrap_interval(needs_fifteen, groups)
    assert (interval.low, interval.high) == (
        None,
        None,
    ) and "draws of sources are too small: at least 15 clips" in interval.reason


def test_a_draw_holds_two_sources_at_least():
    names = np.array(list("abcde"))
    numbers = []
    bootstrap_interval(
        lambda places: float(numbers.append(len(set(names[places]))) or 0),
        source_groups(names),
        num_resamples=3000,
    )
    assert min(numbers) == 2


def test_paired_sets_draw_the_same_sources():
    values = np.random.default_rng(0).normal(size=50)
    groups = source_groups([str(number) for number in range(50)])
    same = bootstrap_interval(
        lambda first, second: (values[first] - values[second]).mean(), groups, groups, paired=True
    )
    apart = bootstrap_interval(
        lambda first, second: values[first].mean() - values[second].mean(), groups, groups
    )
    assert same.low == same.high == 0 and apart.high - apart.low > 0.3


def test_seed_and_order():
    sources = [f"s{number % 10}" for number in range(40)]
    values = np.arange(40.0) % 7

    def interval(order, **options):
        groups = source_groups([sources[place] for place in order])
        found = bootstrap_interval(lambda places: np.sort(values[order][places]).mean(), groups, **options)
        return found.low, found.high

    straight = interval(np.arange(40))
    assert interval(np.arange(40)) == straight == interval(np.arange(40)[::-1])
    assert interval(np.arange(40), seed=1) != straight


def test_few_sources_give_no_interval_but_a_reason():
    interval = bootstrap_interval(lambda places: 0.0, source_groups(["a", "b", "b"]))
    assert (interval.low, interval.high) == (
        None,
        None,
    ) and "at least 5 sources, there are 2" in interval.reason
