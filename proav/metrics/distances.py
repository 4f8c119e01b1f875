"""Fréchet and kernel distances between two sets of feature vectors, in float64.

`protocols.py` says which features are used, and under what name a distance is printed. Intervals are in
`bootstrap.py`. Letters: N, M vectors of the two sets, D features.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from proav.errors import UserError

BLOCK_ROWS = 2048
"""Rows of a kernel matrix that are held in memory at a time."""


@dataclass(frozen=True, eq=False)
class Moments:
    """Count, mean [D] and scatter [D, D] of feature vectors, float64.

    The scatter is the sum of outer products of deviations from the mean. Merging is exact algebra (Chan,
    Golub and LeVeque 1979). In floating point it depends on the order of merging, so merge in a fixed order.
    """

    count: int
    mean: np.ndarray
    scatter: np.ndarray

    @classmethod
    def of(cls, features_ND: np.ndarray) -> "Moments":
        features = np.asarray(features_ND, np.float64)
        assert features.ndim == 2 and len(features), (
            f"features of shape {features.shape}; expected [N, D] with N >= 1"
        )
        mean = features.mean(0)
        deviations = features - mean
        return cls(len(features), mean, deviations.T @ deviations)

    def merge(self, other: "Moments") -> "Moments":
        """Moments of both sets together.

        scatter = S1 + S2 + d d^T n1 n2 / (n1 + n2), with d the difference of the means.
        """
        count = self.count + other.count
        difference = other.mean - self.mean
        scatter = (
            self.scatter
            + other.scatter
            + np.outer(difference, difference) * (self.count * other.count / count)
        )
        return Moments(count, self.mean + difference * (other.count / count), scatter)

    @property
    def covariance(self) -> np.ndarray:
        """scatter / (N - 1). Needs two vectors."""
        assert self.count > 1, "a covariance needs at least two vectors"
        return self.scatter / (self.count - 1)


def frechet_distance(first: Moments, second: Moments) -> float:
    """Squared Fréchet distance of the Gaussians with these moments (Dowson and Landau 1982).

    |m1 - m2|^2 + tr C1 + tr C2 - 2 tr (C1 C2)^(1/2). The last trace is the sum of the singular values of
    C1^(1/2) C2^(1/2), with both roots by eigenvalues. It is real and finite for covariances of any rank. For
    some products, scipy's sqrtm returns complex numbers or fails; for the others the result is equal. Like
    this function, MM-Diffusion and PVDM take roots by SVD and add nothing to the diagonal. FID codes that add
    1e-6 to the diagonal when sqrtm fails give slightly different numbers.
    """
    roots = [_square_root(moments.covariance) for moments in (first, second)]
    fidelity = np.linalg.svd(roots[0] @ roots[1], compute_uv=False).sum()
    difference = first.mean - second.mean
    return float(
        difference @ difference + np.trace(first.covariance) + np.trace(second.covariance) - 2 * fidelity
    )


def frechet_bias(moments: Moments, *, first_count: int, second_count: int) -> float:
    """Expected `frechet_distance` between two samples of one Gaussian, to first order in 1 / N.

    b = (1 / n1 + 1 / n2) (5/4 tr C + 1/2 sum_ij l_i l_j / (l_i + l_j)), with l the eigenvalues of C. The
    means contribute tr C, and the sample covariances the rest. The entries of a sample covariance have the
    variance (l_i l_j + [i = j] l_i^2) / n, and the Bures metric is sum_ij dC_ij^2 / (2 (l_i + l_j)).

    The eigenvalues of the moments are first shrunk towards their mean, because those of a sample are too far
    apart. Without this correction, b would be a tenth too small at 2,048 vectors of 400 features, and 40 %
    too small if there are as many vectors as features. With it, 5 % and 20 % remain. Vectors are taken as
    independent. Clips of one source are not, so sets of few sources differ by more.

    moments: of the Gaussian, as measured on a sample.
    first_count, second_count: n1 and n2, the vectors of the two samples.
    """
    values = _eigenvalues_without_spread(moments)
    sums = values[:, None] + values[None]
    pairs = np.divide(values[:, None] * values[None], sums, out=np.zeros_like(sums), where=sums > 0)
    return float((1 / first_count + 1 / second_count) * (1.25 * values.sum() + pairs.sum() / 2))


def least_frechet_count(num_features: int) -> int:
    """Number of vectors that a Fréchet distance needs in each set: the number of features plus two.

    Covariances can then have full rank.
    """
    return num_features + 2


def check_frechet_counts(first: Moments, second: Moments) -> None:
    """Raises UserError, with the number needed, if a set has too few vectors for its covariance."""
    needed = least_frechet_count(len(first.mean))
    fewest = min(first.count, second.count)
    if fewest < needed:
        raise UserError(
            f"at least {needed:,} feature vectors of each set ({len(first.mean):,} features), "
            f"there are {fewest:,}"
        )


def polynomial_kernel(
    first_ND: np.ndarray,
    second_MD: np.ndarray,
    *,
    degree: int = 3,
    gamma: float | None = None,
    coef0: float = 1.0,
) -> np.ndarray:
    """(gamma <x, y> + coef0)^degree, [N, M].

    The defaults are scikit-learn's, which KID and KVD use; gamma None is 1 / D.
    """
    gamma = 1 / first_ND.shape[1] if gamma is None else gamma
    return (gamma * (first_ND @ second_MD.T) + coef0) ** degree


def kernel_distance(
    first_ND: np.ndarray,
    second_MD: np.ndarray,
    *,
    degree: int = 3,
    gamma: float | None = None,
    coef0: float = 1.0,
    sources: tuple[Sequence[str], Sequence[str]] | None = None,
) -> float:
    """Unbiased squared maximum mean discrepancy with the polynomial kernel.

    Gretton et al. 2012, Bińkowski et al. 2018: mean k(x, x') over x != x' + mean k(y, y') over y != y' -
    2 mean k(x, y). Between samples of one distribution it is zero on average, for any number of vectors, so
    it can be negative. Each set needs two vectors.

    first_ND, second_MD: the two sets.
    degree, gamma, coef0: of the kernel, see `polynomial_kernel`.
    sources: the source of each vector of the two sets, or None. If given, pairs of one source are left out of
        all three means. So the distance stays unbiased if a bootstrap draws a source twice, and if clips of
        one source depend on each other. Sources must be independent. Each set needs two sources.

    Raises UserError if there are too few vectors or sources.
    """
    first, second = (np.asarray(features, np.float64) for features in (first_ND, second_MD))
    if min(len(first), len(second)) < 2:
        raise UserError(f"at least 2 feature vectors of each set, there are {min(len(first), len(second))}")
    names = (
        np.arange(len(first) + len(second))
        if sources is None
        else np.concatenate([np.asarray(each) for each in sources])
    )
    assert len(names) == len(first) + len(second), "a source for every vector"
    first_source, second_source = np.split(np.unique(names, return_inverse=True)[1], [len(first)])
    fewest = min(len(np.unique(first_source)), len(np.unique(second_source)))
    if fewest < 2:
        raise UserError(f"feature vectors of at least 2 sources in each set, there is {fewest}")
    options = {"degree": degree, "gamma": gamma, "coef0": coef0}
    return (
        _mean_of_pairs(first, first, first_source, first_source, options)
        + _mean_of_pairs(second, second, second_source, second_source, options)
        - 2 * _mean_of_pairs(first, second, first_source, second_source, options)
    )


def _square_root(covariance: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T  # tiny negative eigenvalues are rounding


def _eigenvalues_without_spread(moments: Moments) -> np.ndarray:
    """Eigenvalues of the covariance [D], shrunk towards their mean.

    After shrinking, the sum of their squares is the unbiased estimate of tr C^2 for Gaussians,
    n^2 / ((n - 1) (n + 2)) (tr S^2 - (tr S)^2 / n), with n = N - 1 and S the sample covariance (Srivastava
    2005).
    """
    values, n = np.clip(np.linalg.eigvalsh(moments.covariance), 0, None), moments.count - 1
    mean, squares = values.mean(), np.sum(values**2)
    spread = squares - len(values) * mean**2
    if n < 2 or spread <= 0:
        return values
    wanted = n**2 / ((n - 1) * (n + 2)) * (squares - values.sum() ** 2 / n) - len(values) * mean**2
    return np.clip(mean + (values - mean) * np.sqrt(np.clip(wanted / spread, 0, 1)), 0, None)


def _mean_of_pairs(
    first: np.ndarray, second: np.ndarray, first_source: np.ndarray, second_source: np.ndarray, options: dict
) -> float:
    """Mean of the kernel over pairs from two different sources.

    first, second: features of the two sets.
    first_source, second_source: the source of each vector, as a number.
    options: keyword arguments of `polynomial_kernel`.
    """
    sums, count = [], 0
    for start in range(0, len(first), BLOCK_ROWS):
        apart = first_source[start : start + BLOCK_ROWS, None] != second_source[None]
        sums.append(
            np.where(apart, polynomial_kernel(first[start : start + BLOCK_ROWS], second, **options), 0).sum()
        )
        count += int(apart.sum())
    return math.fsum(sums) / count
