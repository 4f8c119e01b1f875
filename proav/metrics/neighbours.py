"""Measures of generated clips by nearest neighbours in a feature space.

They measure quality, coverage, diversity, and whether clips repeat training clips. Distances are exact, in
float64, and computed in blocks of rows. Letters: N real or training, M generated vectors, D features.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from proav.errors import UserError

BLOCK_ROWS = 1024


def squared_distances(first_ND: np.ndarray, second_MD: np.ndarray) -> np.ndarray:
    """[N, M], float64, never negative: |x|^2 + |y|^2 - 2 <x, y> about the mean of `second`.

    Subtracting the mean first preserves precision if features lie far from 0.
    """
    centre = second_MD.mean(0, dtype=np.float64)
    first, second = first_ND - centre, second_MD - centre
    squares = (first**2).sum(1)[:, None] + (second**2).sum(1)[None] - 2 * first @ second.T
    return np.maximum(squares, 0)


def precision_recall(real_ND: np.ndarray, fake_MD: np.ndarray, *, k: int = 3) -> tuple[float, float]:
    """(precision, recall), both in [0, 1] (Kynkäänniemi et al. 2019, section 2).

    precision: share of generated vectors that lie within a real vector's distance to its k-th real neighbour.
    recall: the same with real and generated exchanged. Raises UserError if a set has no more than k vectors.
    """
    real, fake = _checked(real_ND, fake_MD, k)
    return _covered(fake, real, _radii(real, k)), _covered(real, fake, _radii(fake, k))


def density_coverage(real_ND: np.ndarray, fake_MD: np.ndarray, *, k: int = 5) -> tuple[float, float]:
    """(density, coverage) (Naeem et al. 2020, equations 4 and 5).

    A real vector's neighbourhood reaches to its k-th real neighbour. density: the mean over generated vectors
    of the number of neighbourhoods that contain the vector, divided by k; it may exceed 1. coverage: share of
    real vectors whose neighbourhood contains a generated vector, in [0, 1]. Raises UserError if a set has no
    more than k vectors.
    """
    real, fake = _checked(real_ND, fake_MD, k)
    radii, inside, covered = _radii(real, k), 0, 0
    for first in range(0, len(real), BLOCK_ROWS):
        within = (
            squared_distances(real[first : first + BLOCK_ROWS], fake)
            <= radii[first : first + BLOCK_ROWS, None]
        )
        inside, covered = inside + int(within.sum()), covered + int(within.any(1).sum())
    return inside / (k * len(fake)), covered / len(real)


def diversity(features_ND: np.ndarray, *, sources: Sequence[str] | None = None) -> float:
    """Mean distance of two different vectors of a set, which needs two.

    sources: the source of each vector. If given, pairs of one source are left out, as in
        `distances.kernel_distance`, and the set needs two sources.
    """
    features = np.asarray(features_ND, np.float64)
    if len(features) < 2:
        raise UserError(f"at least 2 feature vectors, there are {len(features)}")
    names = np.arange(len(features)) if sources is None else np.asarray(sources)
    assert len(names) == len(features), "a source for every vector"
    source = np.unique(names, return_inverse=True)[1]
    if not source.any():
        raise UserError("feature vectors of at least 2 sources, there is 1")
    whole, count = 0.0, 0
    for first in range(0, len(features), BLOCK_ROWS):
        apart = source[first : first + BLOCK_ROWS, None] != source[None]
        distances = np.sqrt(squared_distances(features[first : first + BLOCK_ROWS], features))
        whole, count = whole + float(np.where(apart, distances, 0).sum()), count + int(apart.sum())
    return whole / count


@dataclass(frozen=True)
class Nearest:
    """Distance [M] of each vector to its nearest training vector, and that vector's index [M]."""

    distances: np.ndarray
    places: np.ndarray


def nearest_training(features_MD: np.ndarray, training_ND: np.ndarray) -> Nearest:
    """The nearest training vector of each vector; ties go to the first."""
    features, training = np.asarray(features_MD, np.float64), np.asarray(training_ND, np.float64)
    distances, places = np.zeros(len(features)), np.zeros(len(features), np.int64)
    for first in range(0, len(features), BLOCK_ROWS):
        squares = squared_distances(features[first : first + BLOCK_ROWS], training)
        part = squares.argmin(1)
        places[first : first + BLOCK_ROWS] = part
        distances[first : first + BLOCK_ROWS] = np.sqrt(squares[np.arange(len(part)), part])
    return Nearest(distances, places)


def memorization(fake_MD: np.ndarray, held_out_KD: np.ndarray, training_ND: np.ndarray) -> float:
    """Median distance of generated vectors to their nearest training vector, divided by that of held-out
    ones.

    1: generated clips are as far from the training clips as clips of other sources. Near 0: generated clips
    repeat training clips.

    fake_MD: generated.
    held_out_KD: real, not trained on.
    training_ND: trained on.
    Raises UserError if the median held-out clip is a copy of a training clip: there is nothing to divide by.
    """
    usual = np.median(nearest_training(held_out_KD, training_ND).distances)
    if usual <= 1e-6 * np.sqrt(training_ND.var(0, dtype=np.float64).sum()):  # no more than rounding
        raise UserError("held-out clips that are new; half of these or more are copies of training clips")
    return float(np.median(nearest_training(fake_MD, training_ND).distances) / usual)


def _checked(real_ND: np.ndarray, fake_MD: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    real, fake = np.asarray(real_ND, np.float64), np.asarray(fake_MD, np.float64)
    if min(len(real), len(fake)) <= k:
        raise UserError(
            f"at least {k + 1} feature vectors of each set ({k} neighbours), "
            f"there are {min(len(real), len(fake))}"
        )
    return real, fake


def _radii(features: np.ndarray, k: int) -> np.ndarray:
    """Squared distance of each vector to its k-th neighbour; the vector itself is not counted."""
    radii = np.zeros(len(features))
    for first in range(0, len(features), BLOCK_ROWS):
        squares = squared_distances(features[first : first + BLOCK_ROWS], features)
        rows = np.arange(len(squares))
        squares[rows, first + rows] = np.inf
        radii[first : first + BLOCK_ROWS] = np.partition(squares, k - 1, axis=1)[:, k - 1]
    return radii


def _covered(queries: np.ndarray, centres: np.ndarray, radii: np.ndarray) -> float:
    """Share of queries inside the ball of at least one centre."""
    found = 0
    for first in range(0, len(queries), BLOCK_ROWS):
        found += int(
            (squared_distances(queries[first : first + BLOCK_ROWS], centres) <= radii[None]).any(1).sum()
        )
    return found / len(queries)
