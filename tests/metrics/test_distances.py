"""Distances in closed form, against independent references, and under merging."""

import numpy as np
import pytest
import scipy.linalg
import torch
from sklearn.metrics.pairwise import polynomial_kernel as sklearn_kernel
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from proav.errors import UserError
from proav.metrics.distances import (
    Moments,
    check_frechet_counts,
    frechet_bias,
    frechet_distance,
    kernel_distance,
    polynomial_kernel,
)


def draw(seed, count, features=6, *, spread=1.0, shift=0.0):
    generator = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).normal(size=(features, features))
    return shift + spread * generator.normal(size=(count, features)) @ mixing


def moments(mean, covariance, count=1000):
    return Moments(count, np.asarray(mean, float), np.asarray(covariance, float) * (count - 1))


class Given(torch.nn.Module):
    """Returns the features that it is given, since torchmetrics wants a network."""

    num_features = 6

    def forward(self, features):
        return features


def test_frechet_distance_of_known_gaussians():
    """If the covariances commute, it is |m1 - m2|^2 + sum (sqrt(l) - sqrt(k))^2."""
    first, second = (
        moments([0, 0, 0], np.diag([4.0, 1.0, 0.0])),
        moments([1, 2, 0], np.diag([1.0, 9.0, 25.0])),
    )
    assert frechet_distance(first, second) == pytest.approx(5 + 1 + 4 + 25, rel=1e-12)
    assert frechet_distance(second, first) == pytest.approx(35, rel=1e-12)
    turn = scipy.linalg.expm(np.array([[0, 1, 0.5], [-1, 0, 2], [-0.5, -2, 0]]))
    turned = [Moments(m.count, turn @ m.mean, turn @ m.scatter @ turn.T) for m in (first, second)]
    assert frechet_distance(*turned) == pytest.approx(35, rel=1e-9)


def test_frechet_distance_equals_scipys_square_root():
    first, second = Moments.of(draw(1, 300)), Moments.of(draw(2, 200, spread=1.5, shift=0.3))
    root = scipy.linalg.sqrtm(first.covariance @ second.covariance).real
    expected = np.sum((first.mean - second.mean) ** 2) + np.trace(
        first.covariance + second.covariance - 2 * root
    )
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_equals_torchmetrics():
    real, fake = draw(1, 300), draw(2, 200, spread=1.5, shift=0.3)
    metric = FrechetInceptionDistance(feature=Given(), input_img_size=(6,)).set_dtype(torch.float64)
    metric.update(torch.from_numpy(real), real=True)
    metric.update(torch.from_numpy(fake), real=False)
    assert frechet_distance(Moments.of(real), Moments.of(fake)) == pytest.approx(
        metric.compute().item(), rel=1e-6
    )


def test_frechet_distance_of_any_rank_equals_that_of_centred_vectors():
    """The trace term can be computed without the square root of a matrix.

    tr (C1 C2)^(1/2) is the sum of the singular values of X1 X2^T / sqrt((n1 - 1) (n2 - 1)). X1 and X2 are the
    centred vectors.
    """
    for count in (10, 35, 200):
        first, second = draw(1, count, 30, shift=2), draw(2, count + 5, 30, spread=1.2)
        centred = [features - features.mean(0) for features in (first, second)]
        size = np.sqrt((count - 1) * (count + 4))
        fidelity = np.linalg.svd(centred[0] @ centred[1].T, compute_uv=False).sum() / size
        traces = sum((features**2).sum() / (len(features) - 1) for features in centred)
        expected = np.sum((first.mean(0) - second.mean(0)) ** 2) + traces - 2 * fidelity
        assert frechet_distance(Moments.of(first), Moments.of(second)) == pytest.approx(expected, rel=1e-7)


def test_frechet_distance_of_few_vectors_stays_real():
    """With fewer vectors than features, both covariances have zero eigenvalues."""
    few = Moments.of(draw(1, 4, 20))
    assert frechet_distance(few, few) == pytest.approx(0, abs=1e-9 * np.trace(few.covariance))
    assert frechet_distance(few, Moments.of(draw(2, 5, 20))) > 0


def test_moments_merge_to_those_of_the_whole():
    features = draw(3, 97)
    whole, parts = (
        Moments.of(features),
        [Moments.of(features[first : first + 10]) for first in range(0, 97, 10)],
    )
    merged = parts[0]
    for part in parts[1:]:
        merged = merged.merge(part)
    assert merged.count == 97
    np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-12)
    np.testing.assert_allclose(merged.covariance, np.cov(features.T), rtol=1e-12, atol=1e-12)


def test_too_few_vectors_are_reported_with_the_number_needed():
    with pytest.raises(
        UserError, match="at least 22 feature vectors of each set .20 features., there are 21"
    ):
        check_frechet_counts(Moments.of(draw(1, 21, 20)), Moments.of(draw(2, 50, 20)))
    check_frechet_counts(Moments.of(draw(1, 22, 20)), Moments.of(draw(2, 22, 20)))


def test_the_bias_is_what_samples_of_one_distribution_show():
    truth = moments(np.zeros(4), np.diag([4.0, 1.0, 0.5, 0.1]))
    generator, root = np.random.default_rng(0), np.sqrt(np.diag([4.0, 1.0, 0.5, 0.1]))
    found = [
        frechet_distance(
            Moments.of(generator.normal(size=(150, 4)) @ root),
            Moments.of(generator.normal(size=(300, 4)) @ root),
        )
        for _ in range(600)
    ]
    expected, error = (
        frechet_bias(truth, first_count=150, second_count=300),
        np.std(found) / np.sqrt(len(found)),
    )
    assert np.mean(found) == pytest.approx(expected, abs=4 * error + 0.03 * expected)


@pytest.mark.parametrize(("count", "power"), [(60, 0.0), (60, 0.5), (300, 0.5), (300, 1.0)])
def test_the_bias_is_estimated_from_a_sample(count, power):
    """The bias can be estimated from the set itself, even with hardly more vectors than the 50 features."""
    spread = np.arange(1, 51.0) ** -power
    generator = np.random.default_rng(1)
    samples = [Moments.of(generator.normal(size=(count, 50)) * spread) for _ in range(600)]
    found = np.mean([frechet_distance(*pair) for pair in zip(samples[::2], samples[1::2], strict=True)])
    told = np.mean([frechet_bias(sample, first_count=count, second_count=count) for sample in samples[:60]])
    assert told == pytest.approx(found, rel=0.1)


def test_kernel_distance_by_hand():
    first, second = np.array([[0.0], [1.0]]), np.array([[1.0], [2.0]])
    expected = (0 * 1 + 1) ** 3 + (1 * 2 + 1) ** 3 - 2 * (1 + 1 + 8 + 27) / 4
    assert kernel_distance(first, second) == pytest.approx(expected)


def test_kernel_and_its_distance_equal_independent_ones():
    real, fake = draw(1, 120), draw(2, 90, spread=1.2)
    np.testing.assert_allclose(polynomial_kernel(real, fake), sklearn_kernel(real, fake), rtol=1e-12)
    metric = KernelInceptionDistance(feature=Given(), subsets=1, subset_size=90).set_dtype(torch.float64)
    metric.update(torch.from_numpy(real[:90]), real=True)
    metric.update(torch.from_numpy(fake), real=False)
    assert kernel_distance(real[:90], fake) == pytest.approx(metric.compute()[0].item(), rel=1e-6)


def test_kernel_distance_is_unbiased_and_blocks_change_nothing(monkeypatch):
    found = [kernel_distance(draw(seed, 20), draw(seed + 1000, 15)) for seed in range(400)]
    assert abs(np.mean(found)) < 4 * np.std(found) / np.sqrt(len(found))
    whole = kernel_distance(draw(1, 70), draw(2, 50))
    monkeypatch.setattr("proav.metrics.distances.BLOCK_ROWS", 16)
    assert kernel_distance(draw(1, 70), draw(2, 50)) == pytest.approx(whole, rel=1e-12)
    with pytest.raises(UserError, match="at least 2"):
        kernel_distance(draw(1, 1), draw(2, 50))


def test_kernel_distance_leaves_out_pairs_of_one_source():
    first, second = draw(1, 12), draw(2, 9, spread=1.3)
    sources = [f"real-{number // 3}" for number in range(12)], [f"fake-{number // 3}" for number in range(9)]
    whole = [sklearn_kernel(*pair) for pair in ((first, first), (second, second), (first, second))]
    blocks = [np.kron(np.eye(count), np.ones((3, 3))) == 0 for count in (4, 3)]
    expected = whole[0][blocks[0]].mean() + whole[1][blocks[1]].mean() - 2 * whole[2].mean()
    assert kernel_distance(first, second, sources=sources) == pytest.approx(expected, rel=1e-9)
    assert kernel_distance(first, first, sources=(sources[0], sources[0])) == pytest.approx(
        0, abs=1e-12
    )  # across the sets too
    names = [f"r{number}" for number in range(12)], [f"f{number}" for number in range(9)]
    assert kernel_distance(first, second, sources=names) == kernel_distance(first, second)
    with pytest.raises(UserError, match="at least 2 sources in each set, there is 1"):
        kernel_distance(first, second, sources=(["one"] * 12, sources[1]))


def test_kernel_distance_by_sources_is_unbiased_where_clips_of_one_are_alike():
    def drawn(seed):
        generator = np.random.default_rng(seed)
        return np.repeat(generator.normal(size=(8, 6)), 3, axis=0) + 0.5 * generator.normal(size=(24, 6))

    names = [[f"{kind}{number // 3}" for number in range(24)] for kind in ("real", "fake")]
    found = [kernel_distance(drawn(seed), drawn(seed + 1000), sources=names) for seed in range(400)]
    plain = [kernel_distance(drawn(seed), drawn(seed + 1000)) for seed in range(400)]
    error = np.std(found) / np.sqrt(len(found))
    assert abs(np.mean(found)) < 4 * error and np.mean(plain) > 10 * error
