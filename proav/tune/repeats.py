"""A trial's seeds: one training each, their mean, and its confidence interval. Plain numbers.

The interval is Student's: mean +- t(n - 1) s / sqrt(n), for n repeats with standard deviation s. If results
are normally distributed, it contains the mean over all possible seeds in 95 of 100 sweeps.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from proav import storage
from proav.config import Config, TuneConfig
from proav.tune.metrics import number_in, score, value_of

LEVEL = 0.95
STUDENT_95 = (
    12.706,
    4.303,
    3.182,
    2.776,
    2.571,
    2.447,
    2.365,
    2.306,
    2.262,
    2.228,
    2.201,
    2.179,
    2.160,
    2.145,
    2.131,
    2.120,
    2.110,
    2.101,
    2.093,
    2.086,
    2.080,
    2.074,
    2.069,
    2.064,
    2.060,
    2.056,
    2.052,
    2.048,
    2.045,
    2.042,
)
"""The 0.975 quantile of Student's t for 1, 2, ... 30 degrees of freedom; tests compare it with scipy's."""
NORMAL_95 = 1.960
"""The same quantile for infinitely many degrees of freedom."""


@dataclass(frozen=True)
class Interval:
    """A mean over repeats. low and high are None for a single repeat, which says nothing about chance."""

    mean: float
    low: float | None
    high: float | None
    count: int

    @property
    def half(self) -> float | None:
        return None if self.low is None else (self.high - self.low) / 2


def interval(values: Sequence[float]) -> Interval:
    """Student's interval of the mean of `values`, one for each seed."""
    centre, count = mean(values), len(values)
    if count < 2:
        return Interval(centre, None, None, count)
    quantile = STUDENT_95[count - 2] if count - 2 < len(STUDENT_95) else NORMAL_95
    half = quantile * stdev(values) / math.sqrt(count)
    return Interval(centre, centre - half, centre + half, count)


def interval_words(found: Interval, digits: int = 3) -> str:
    """`11.27 +- 0.31`, or the mean alone."""
    half = "" if found.half is None else f" +- {found.half:.{digits}f}"
    return f"{found.mean:.{digits}f}{half}"


def repeats_of(rung: dict, most: int | None = None) -> list[dict]:
    """The measurements of each seed at a rung, at most the first `most`."""
    return rung.get("repeats", [rung])[:most]


def budget_of(rung: dict) -> float:
    """The budget of a rung: clips, clips of equal FLOPs, or seconds."""
    return rung.get("budget", rung["clips"])


def merge(measured: Sequence[dict], *, budget: float) -> dict:
    """One rung from several repeats, with each one's own numbers in `repeats`.

    Seconds are summed. The peak memory is the largest. Clips and step are those of the first repeat. All
    other numbers are means.
    """
    first = measured[0]
    merged = {key: _mean([each[key] for each in measured]) for key in first if key not in ("numbers", "seed")}
    merged |= {key: max(each[key] for each in measured) for key in ("peak_memory_gib",) if key in first}
    merged |= {key: first[key] for key in ("clips", "step") if key in first}
    merged |= {key: sum(each[key] for each in measured) for key in ("seconds",) if key in first}
    if "numbers" in first:
        common = [key for key in first["numbers"] if all(key in each["numbers"] for each in measured)]
        merged["numbers"] = {key: mean(each["numbers"][key] for each in measured) for key in common}
    return {**merged, "budget": budget, "repeats": list(measured)}


def judged(rung: dict, tune: TuneConfig) -> Interval:
    """The metric of a rung: mean and interval over the repeats."""
    return interval([value_of(each, tune) for each in repeats_of(rung, tune.repeats)])


def difference(rung: dict, other: dict, tune: TuneConfig) -> Interval:
    """The metric of a rung minus that of another trial's, taken seed by seed, over the seeds that both have.

    Trials with the same seed see the same clips in the same order, with the same noise. So the effect of the
    seed cancels in the difference, and the mean of the differences has a narrower interval than either
    metric.
    """
    pairs = zip(repeats_of(rung, tune.repeats), repeats_of(other, tune.repeats), strict=False)
    return interval([value_of(one, tune) - value_of(another, tune) for one, another in pairs])


def shown(rung: dict, tune: TuneConfig) -> dict[str, Interval]:
    """The numbers of tune.show at a rung that all repeats have."""
    repeats = repeats_of(rung, tune.repeats)
    values = {name: [number_in(each, name, tune) for each in repeats] for name in tune.show}
    return {name: interval(each) for name, each in values.items() if None not in each}


def rung_score(rung: dict, tune: TuneConfig) -> float:
    """The mean over the repeats, with its sign such that more is better."""
    return mean(score(each, tune) for each in repeats_of(rung, tune.repeats))


def repeat_config(config: Config, repeat: int) -> Config:
    """A repeat's configuration, with its own seed and folder; the first repeat has those of the trial."""
    if repeat == 0:
        return config
    seed = config.seed + repeat
    return config.model_copy(
        update={
            "seed": seed,
            "run_dir": storage.join(config.run_folder, f"seed-{seed}"),
            "name": f"{config.name}-{seed}",
        }
    )


def _mean(values: list):
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    if not numeric:
        return values[0]
    return values[0] if len(set(values)) == 1 else mean(values)
