"""Confidence intervals by a bootstrap over sources.

Clips of one source are not independent, so a source is drawn with all its clips or not at all.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from proav.errors import UserError

MIN_SOURCES = 5
"""Fewer sources say too little about how sources vary."""


@dataclass(frozen=True)
class Interval:
    """low, high: bounds at the requested level. Both are None if there are too few sources or clips.

    reason: why there is no interval; empty if there is one.
    """

    low: float | None
    high: float | None
    reason: str = ""


def source_groups(sources: Sequence[str]) -> list[np.ndarray]:
    """Places of each source's clips. Sources are sorted by name: the order of clips changes nothing."""
    names = np.asarray(sources)
    return [np.flatnonzero(names == name) for name in sorted(set(sources))]


def bootstrap_interval(
    statistic: Callable[..., float],
    *groups: Sequence[np.ndarray],
    paired: bool = False,
    num_resamples: int = 200,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Interval of a statistic over sources drawn with replacement from each set.

    It is the basic bootstrap: [2 v - q_high, 2 v - q_low], with v the statistic of all clips and q the
    quantiles of the draws. A draw holds some clips twice. So the Fréchet distance of draws is larger than
    that of the sets. Because the sets are finite, their distance is itself larger than the true distance, by
    about as much. Reflecting the quantiles about v removes this bias, while percentiles would count it twice
    (Efron and Tibshirani 1993, sections 10.2 and 13). So the interval estimates the true distance, whatever
    the number of clips, and mostly lies below v. At 95 % it contained the true distance of Gaussians 93 to 97
    times in a hundred with 5 vectors or more per feature, 72 to 88 times with 3, and hardly ever with fewer
    than 2.

    An unbiased statistic must stay unbiased in a draw. Give it the sources, so that it leaves out pairs of
    one source (`kernel_distance`, `diversity`). Otherwise the reflection removes a bias that v does not have,
    and the interval of a kernel distance misses the true value.

    statistic: a function of (places of the first set, places of the second, ...).
    groups: for each set, the places of each source's clips (`source_groups`).
    paired: whether all sets have the same sources; the same sources are then drawn from each.
    num_resamples: number of draws.
    level: of the interval, 0 to 1.
    seed: draw number i depends on (seed, i) alone. A draw of one single source is repeated, because it says
        nothing about how sources differ.

    If the statistic refuses a draw, returns the reason instead of an interval: sources differ in size, and a
    draw can be smaller than the set.
    """
    fewest = min(len(group) for group in groups)
    if fewest < MIN_SOURCES:
        return Interval(None, None, f"an interval needs at least {MIN_SOURCES} sources, there are {fewest}")
    assert not paired or len({len(group) for group in groups}) == 1, "paired sets have the same sources"
    value = statistic(*(np.sort(np.concatenate(group)) for group in groups))
    draws = np.zeros(num_resamples)
    for number in range(num_resamples):
        generator = np.random.Generator(np.random.Philox(key=[seed, number]))
        chosen = [_drawn(generator, len(group)) for group in (groups[:1] if paired else groups)]
        chosen = chosen * len(groups) if paired else chosen
        try:
            draws[number] = statistic(
                *(
                    np.concatenate([group[place] for place in places])
                    for group, places in zip(groups, chosen, strict=True)
                )
            )
        except UserError as error:
            return Interval(None, None, f"no interval, because some draws of sources are too small: {error}")
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(2 * value - high), float(2 * value - low))


def _drawn(generator: np.random.Generator, num_sources: int) -> np.ndarray:
    """Indices of sources: `num_sources` draws with replacement, of which at least two differ."""
    while True:
        drawn = generator.integers(0, num_sources, num_sources)
        if (drawn != drawn[0]).any():
            return drawn
