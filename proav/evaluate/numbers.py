"""From measured sets to numbers: each with its interval, with what it is between real and real, and with what it rests on.

Runs in one process on features that lie in files, in the sets' own order, so that the numbers do not follow from how many workers measured. The
mathematics is in proav/metrics.
"""

import dataclasses
import hashlib
from collections.abc import Sequence
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
"""Their neighbourhoods change where a draw holds a clip twice: resampling does not tell how sure they are."""


@dataclass(frozen=True)
class Number:
    """One line of a table. value None: `needs` says what is missing. low, high: the interval. floor: the same number between real and real clips."""

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
    """How intervals are drawn."""

    num_resamples: int
    seed: int
    level: float = 0.95


def halves(measured: Measured) -> tuple[np.ndarray, np.ndarray]:
    """Places of the clips of two halves of a set without a common source: sources in order of their names' SHA-256, in turns."""
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
    """The lines of one distance between a real and a generated set: one, or two where it is a pair of numbers.

    held_out: real clips of other sources, against which nearest_training is measured. paired: the generated clips are made from the real ones, clip
    by clip, so that intervals draw the same sources of both.
    """
    if distance.network not in fake.features or distance.network not in real.features:
        return [Number(distance.name, None, needs=f"the network {distance.network}")]
    about = {"clips": len(fake), "sources": len(set(fake.sources))}
    if distance.kind == "nearest_training":
        if held_out is None or distance.network not in held_out.features:
            return [Number(distance.name, None, needs="real clips of sources that were held out")]
        value = memorization(
            *(_vectors(measured, distance.network).take() for measured in (fake, held_out, real))
        )
        note = "median distance to the nearest training clip, over that of held-out clips: 1 is new, near 0 is a copy"
        return [Number(distance.name, value, floor=1.0, note=note, **about)]
    metric, sets = (
        _METRICS[distance.kind],
        (fake, fake) if distance.kind == "diversity" else (real, fake),
    )  # diversity is of one set alone
    vectors = [_vectors(measured, distance.network) for measured in sets]
    try:
        values = metric(vectors[0].take(), vectors[1].take())
    except UserError as error:
        return [Number(distance.name, None, needs=str(error), **about)]
    low = high = None
    note = ""
    if distance.kind not in NO_INTERVAL:
        groups = [source_groups(measured.sources) for measured in sets]

        def of_draw(*places: np.ndarray) -> float:
            return metric(*(each.take(chosen) for each, chosen in zip(vectors, places, strict=True)))[0]

        interval = bootstrap_interval(
            of_draw, *groups, paired=paired or distance.kind == "diversity", **dataclasses.asdict(resampling)
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
                    f"two samples of one distribution would differ by about {distance.scale * bias:.4g} at these counts",
                ],
            )
        )
    floors = _floor(distance, real)
    names = distance.name.split("_") if len(values) > 1 else [distance.name]
    return [
        Number(
            name, distance.scale * value, _times(distance.scale, low), _times(distance.scale, high), _times(distance.scale, floor),
            note=note, **about,
        )
        for name, value, floor in zip(names, values, floors, strict=True)
    ]  # fmt: skip


def score_numbers(
    names: Sequence[str], measured: Measured, resampling: Resampling, *, real: Measured | None = None
) -> list[Number]:
    """Means over clips of scores of single clips; floor: the same of the real clips, where it can be measured of them alone.

    Some are shares of what a clip holds several of, and some are medians: see `_over_clips`.
    """
    lines = []
    for name in names:
        values = measured.scores.get(name, np.full(len(measured), np.nan))
        used = np.flatnonzero(np.isfinite(values))
        if not len(used):
            lines.append(Number(name, None, needs="clips that it is defined for: none of these are"))
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
    """One number of the clips at these places: their mean, each clip weighted by what it counts, or their median."""
    values = measured.scores[name][places]
    if name in MEDIANS:
        return float(np.median(values))
    if name in COUNTED_BY:
        return float(np.average(values, weights=measured.scores[COUNTED_BY[name]][places]))
    return float(values.mean())


@dataclass(frozen=True, eq=False)
class _Rows:
    """Feature vectors [N, D] of a set's clips, all windows of a clip one after the other."""

    features: np.ndarray
    first: np.ndarray
    count: np.ndarray

    def take(self, places: np.ndarray | None = None) -> np.ndarray:
        """Those of the clips at these places, as often as they are named; None: all."""
        if places is None:
            return self.features
        if (self.count == 1).all():
            return self.features[places]
        return np.concatenate(
            [self.features[self.first[place] : self.first[place] + self.count[place]] for place in places]
        )


def _vectors(measured: Measured, network: str) -> _Rows:
    clips = [features_WD.astype(np.float64) for features_WD in measured.features[network]]
    count = np.array([len(clip) for clip in clips])
    return _Rows(np.concatenate(clips), np.cumsum(count) - count, count)


def _floor(distance: Distance, real: Measured) -> tuple[float | None, ...]:
    """The distance between two halves of the real set, by source; None where they are too small. A set's own measure: that of the real set."""
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
"""kind -> the values of a real and a generated array of vectors [N, D]."""
