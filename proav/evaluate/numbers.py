"""Turns measured sets into numbers, each with its interval and with the same number between real clips.

This runs in one process on stored features, in the order of the sets. So the numbers do not depend on the
number of workers that measured. The mathematics is in proav/metrics.

Letters: N and M feature vectors, W windows of a clip, D feature width.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from proav.errors import UserError
from proav.evaluate.measure import Measured
from proav.metrics.bootstrap import bootstrap_interval, source_groups
from proav.metrics.distances import (
    Moments,
    check_frechet_counts,
    frechet_bias,
    frechet_distance,
    kernel_distance,
)
from proav.metrics.neighbours import density_coverage, diversity, memorization, precision_recall
from proav.metrics.protocols import Distance
from proav.metrics.world import COUNTED_BY, MEDIANS

NO_INTERVAL = {"precision_recall", "density_coverage", "nearest_training"}
"""Kinds of distance without an interval.

They use nearest neighbours, and a resample that holds a clip twice changes the neighbours. So resampling does
not measure their uncertainty.
"""


@dataclass(frozen=True)
class Number:
    """One line of a table.

    value: None if it cannot be computed; `needs` then says what is missing.
    low, high: the interval.
    floor: the same number between real clips.
    """

    metric: str
    value: float | None
    low: float | None = None
    high: float | None = None
    floor: float | None = None
    clips: int = 0
    sources: int = 0
    note: str = ""
    needs: str = ""

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Resampling:
    """How intervals are made. level: the confidence level."""

    num_resamples: int
    seed: int
    level: float = 0.95


def halves(measured: Measured) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the clips of two halves of a set that share no source.

    The sources are ordered by the SHA-256 of their names and go to the two halves alternately.
    """
    order = sorted(set(measured.sources), key=lambda source: hashlib.sha256(source.encode()).hexdigest())
    side = {source: number % 2 for number, source in enumerate(order)}
    sides = np.array([side[source] for source in measured.sources], int)
    return np.flatnonzero(sides == 0), np.flatnonzero(sides == 1)


def set_numbers(
    distance: Distance,
    real: Measured,
    fake: Measured,
    resampling: Resampling,
    *,
    held_out: Measured | None = None,
    paired: bool = False,
) -> list[Number]:
    """The lines of one distance between a real and a generated set: two if it is a pair of numbers, else one.

    distance: which distance, in which network's features.
    real, fake: the measured sets.
    resampling: how intervals are made.
    held_out: real clips of other sources, with which nearest_training is compared.
    paired: whether each generated clip is made from one real clip; intervals then draw the same sources of
        both sets.
    """
    if distance.network not in fake.features or distance.network not in real.features:
        return [Number(distance.name, None, needs=f"the network {distance.network}")]
    about = {"clips": len(fake), "sources": len(set(fake.sources))}
    if distance.kind == "nearest_training":
        if held_out is None or distance.network not in held_out.features:
            return [Number(distance.name, None, needs="real clips of sources that were held out")]
        vectors = [_vectors(measured, distance.network).take() for measured in (fake, held_out, real)]
        try:
            value = memorization(*vectors)
        except UserError as error:
            return [Number(distance.name, None, needs=str(error), **about)]
        note = (
            "median distance to the nearest training clip, divided by that of held-out clips: "
            "1 is new, near 0 is a copy"
        )
        return [Number(distance.name, value, floor=1.0, note=note, **about)]
    # diversity is a number of one set
    metric, sets = _METRICS[distance.kind], (fake, fake) if distance.kind == "diversity" else (real, fake)
    vectors = [_vectors(measured, distance.network) for measured in sets]
    try:
        values = metric(vectors[0].take(), vectors[1].take())
    except UserError as error:
        return [Number(distance.name, None, needs=str(error), **about)]
    low = high = None
    note = ""
    if distance.kind not in NO_INTERVAL:
        groups = [source_groups(measured.sources) for measured in sets]
        interval = bootstrap_interval(
            _of_draws(distance.kind, vectors),
            *groups,
            paired=paired or distance.kind == "diversity",
            **dataclasses.asdict(resampling),
        )
        low, high, note = interval.low, interval.high, interval.reason
    if distance.kind == "frechet":
        bias = frechet_bias(
            Moments.of(vectors[0].take()),
            first_count=len(vectors[0].take()),
            second_count=len(vectors[1].take()),
        )
        note = "; ".join(
            filter(
                None,
                [
                    note,
                    "two samples of one distribution would differ by about "
                    f"{distance.scale * bias:.4g} at these counts",
                ],
            )
        )
    floors = _floor(distance, real)
    names = distance.name.split("_") if len(values) > 1 else [distance.name]
    return [
        Number(
            name, distance.scale * value,
            _times(distance.scale, low), _times(distance.scale, high), _times(distance.scale, floor),
            note=note, **about,
        )
        for name, value, floor in zip(names, values, floors, strict=True)
    ]  # fmt: skip


def score_numbers(
    names: Sequence[str], measured: Measured, resampling: Resampling, *, real: Measured | None = None
) -> list[Number]:
    """One line for each score: its mean over clips, or a weighted mean or a median, see `_over_clips`.

    names: of the scores.
    measured: the set.
    resampling: how intervals are made.
    real: the real clips; the floor is the score of these clips, if they have it.
    """
    lines = []
    for name in names:
        values = measured.scores.get(name, np.full(len(measured), np.nan))
        used = np.flatnonzero(np.isfinite(values))
        if not len(used):
            lines.append(Number(name, None, needs="clips for which it is defined; there are none here"))
            continue
        sources = [measured.sources[place] for place in used]
        interval = bootstrap_interval(
            lambda places, used=used: _over_clips(name, measured, used[places]),
            source_groups(sources),
            **dataclasses.asdict(resampling),
        )
        of_real = np.array([]) if real is None else real.scores.get(name, np.array([]))
        real_used = np.flatnonzero(np.isfinite(of_real))
        floor = _over_clips(name, real, real_used) if len(real_used) else None
        left_out = len(measured) - len(used)
        note = "; ".join(
            filter(
                None,
                [
                    interval.reason,
                    f"undefined for {left_out:,} clips, which are left out" if left_out else "",
                ],
            )
        )
        lines.append(
            Number(
                name,
                _over_clips(name, measured, used),
                interval.low,
                interval.high,
                floor,
                len(used),
                len(set(sources)),
                note,
            )
        )
    return lines


def _over_clips(name: str, measured: Measured, places: np.ndarray) -> float:
    """One number from the clips with these indices: the median for MEDIANS, else the mean.

    If the score is in COUNTED_BY, each clip is weighted by the count that COUNTED_BY names.
    """
    values = measured.scores[name][places]
    if name in MEDIANS:
        return float(np.median(values))
    if name in COUNTED_BY:
        return float(np.average(values, weights=measured.scores[COUNTED_BY[name]][places]))
    return float(values.mean())


@dataclass(frozen=True, eq=False)
class _Rows:
    """Feature vectors [N, D] of a set's clips; the windows of a clip follow each other."""

    features: np.ndarray
    first: np.ndarray
    count: np.ndarray
    sources: np.ndarray
    """The source of each clip."""

    def take(self, places: np.ndarray | None = None) -> np.ndarray:
        """The vectors of the clips with these indices; an index may occur several times. None: all clips."""
        if places is None:
            return self.features
        if (self.count == 1).all():
            return self.features[places]
        return np.concatenate(
            [self.features[self.first[place] : self.first[place] + self.count[place]] for place in places]
        )

    def sources_of(self, places: np.ndarray) -> np.ndarray:
        """The source of each vector that `take` returns."""
        return np.repeat(self.sources[places], self.count[places])


def _vectors(measured: Measured, network: str) -> _Rows:
    clips = [features_WD.astype(np.float64) for features_WD in measured.features[network]]
    count = np.array([len(clip) for clip in clips])
    return _Rows(np.concatenate(clips), np.cumsum(count) - count, count, np.asarray(measured.sources))


def _of_draws(kind: str, sets: list[_Rows]) -> Callable[..., float]:
    """The statistic of `bootstrap_interval` for a kind of distance: a function of the places of each set."""

    def of_draw(*places: np.ndarray) -> float:
        vectors = [rows.take(drawn) for rows, drawn in zip(sets, places, strict=True)]
        if kind not in UNBIASED:
            return _METRICS[kind](*vectors)[0]
        sources = [rows.sources_of(drawn) for rows, drawn in zip(sets, places, strict=True)]
        return UNBIASED[kind](*vectors, sources)

    return of_draw


def _floor(distance: Distance, real: Measured) -> tuple[float | None, ...]:
    """The distance between two halves of the real set, split by source; None if they are too small.

    Diversity needs only one set, so its value is that of the whole real set.
    """
    metric, vectors = _METRICS[distance.kind], _vectors(real, distance.network)
    try:
        if distance.kind == "diversity":
            return metric(vectors.take(), vectors.take())
        return metric(*(vectors.take(half) for half in halves(real)))
    except (UserError, ValueError):
        return (None, None) if distance.kind in ("precision_recall", "density_coverage") else (None,)


def _times(scale: float, value: float | None) -> float | None:
    return None if value is None else scale * value


def _frechet(real_ND: np.ndarray, fake_MD: np.ndarray) -> tuple[float, ...]:
    if min(len(real_ND), len(fake_MD)) < 2:
        raise UserError(
            f"at least 2 feature vectors of each set, there are {min(len(real_ND), len(fake_MD))}"
        )
    first, second = Moments.of(real_ND), Moments.of(fake_MD)
    check_frechet_counts(first, second)
    return (frechet_distance(first, second),)


_METRICS = {
    "frechet": _frechet,
    "kernel": lambda real, fake: (kernel_distance(real, fake),),
    "precision_recall": precision_recall,
    "density_coverage": density_coverage,
    "diversity": lambda real, fake: (diversity(fake),),
}
"""{kind of distance: function of real and generated vectors [N, D] that returns one or two values}."""

UNBIASED = {
    "kernel": lambda real, fake, sources: kernel_distance(real, fake, sources=tuple(sources)),
    "diversity": lambda real, fake, sources: diversity(fake, sources=sources[1]),
}
"""{kind of distance: the same number without pairs of one source}, for the draws of `bootstrap_interval`."""
