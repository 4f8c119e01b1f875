"""Metrics from nearest neighbours: counted by hand, compared with scikit-learn, and the same in blocks."""

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from proav.errors import UserError
from proav.metrics import neighbours
from proav.metrics.neighbours import (
    density_coverage,
    diversity,
    memorization,
    nearest_training,
    precision_recall,
    squared_distances,
)


def draw(seed, count, *, shift=0.0):
    return shift + np.random.default_rng(seed).normal(size=(count, 5))


LINE = np.arange(6.0)[:, None]


def test_precision_and_recall_counted_on_a_line():
    """Real points are 0 .. 5. With k = 1 the radius of each is 1.

    Of the generated points, 2.5 and 5.5 lie within such a radius, and 9 and 10 do not. The radius of 2.5 and
    of 5.5 is 3, and that of 9 and 10 is 1.
    """
    fake = np.array([[2.5], [5.5], [9.0], [10.0]])
    precision, recall = precision_recall(LINE, fake, k=1)
    assert precision == 0.5
    assert recall == 1.0  # 0 lies within the radius of 2.5


def test_density_and_coverage_counted_on_a_line():
    fake = np.array([[2.0], [2.25], [40.0], [41.0]])
    density, coverage = density_coverage(LINE, fake, k=1)
    # 2 lies within the radius of 1, 2 and 3; 2.25 lies within that of 2 and 3
    assert density == pytest.approx((3 + 2 + 0 + 0) / 4)
    assert coverage == pytest.approx(3 / 6)


def test_equal_and_distant_sets():
    real = draw(0, 200)
    assert precision_recall(real, draw(1, 200, shift=100)) == (0.0, 0.0)
    assert density_coverage(real, draw(1, 200, shift=100)) == (0.0, 0.0)
    precision, recall = precision_recall(real, real)
    assert precision == recall == 1.0 and density_coverage(real, real)[1] == 1.0
    assert density_coverage(real, draw(2, 200))[0] == pytest.approx(1, abs=0.25)


def test_radii_are_scikit_learns():
    features = draw(3, 150)
    expected = NearestNeighbors(n_neighbors=4).fit(features).kneighbors(features)[0][:, 3]
    np.testing.assert_allclose(np.sqrt(neighbours._radii(features, 3)), expected, rtol=1e-9)


def test_diversity_of_a_triangle():
    assert diversity(np.array([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])) == pytest.approx((3 + 4 + 5) / 3)
    assert diversity(np.full((4, 7), 1e6)) == pytest.approx(0, abs=1e-6)
    assert diversity(
        np.array([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]]), sources=["a", "a", "b"]
    ) == pytest.approx((4 + 5) / 2)
    with pytest.raises(UserError, match="at least 2 sources"):
        diversity(LINE, sources=["a"] * 6)


def test_nearest_training_and_memorization():
    training = draw(4, 300)
    found = nearest_training(training[[7, 3]] + 1e-9, training)
    assert found.places.tolist() == [7, 3] and found.distances.max() < 1e-6
    assert memorization(training[:50] + 0.001, draw(5, 80), training) < 0.01
    assert memorization(draw(6, 200), draw(7, 200), training) == pytest.approx(1, abs=0.15)
    with pytest.raises(UserError, match="copies of training clips"):
        memorization(draw(6, 200), 1000 + training[:50], 1000 + training)


def test_blocks_change_nothing(monkeypatch):
    real, fake = draw(8, 70), draw(9, 50, shift=0.5)

    def everything():
        return [
            *precision_recall(real, fake),
            *density_coverage(real, fake),
            diversity(real),
            *nearest_training(fake, real).distances,
        ]

    whole = everything()
    monkeypatch.setattr(neighbours, "BLOCK_ROWS", 16)
    np.testing.assert_allclose(everything(), whole, rtol=1e-9)


def test_distances_far_from_the_origin_keep_their_digits():
    features = 1e5 + draw(10, 30)
    exact = ((features[:, None] - features[None]) ** 2).sum(-1)
    np.testing.assert_allclose(squared_distances(features, features), exact, rtol=1e-8, atol=1e-10)


def test_too_few_vectors_are_reported():
    for measure in (precision_recall, density_coverage):
        with pytest.raises(UserError, match="neighbours.*there are 3"):
            measure(draw(1, 3), draw(2, 50))
