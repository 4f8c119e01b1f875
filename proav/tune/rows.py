"""A sweep's trials as rows that can be compared: measurements, costs, and the Pareto front.

Trials are compared only at equal budgets. Each rung has its own Pareto front. The best trial is the best one
among those with the largest budget. Plain values, no files.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from proav.config import Config, TuneConfig
from proav.costs import costs
from proav.tune.axes import Point
from proav.tune.budgets import train_flops
from proav.tune.record import TrialRecord, score
from proav.tune.repeats import Interval, budget_of, difference, judged, repeats_of, shown
from proav.tune.space import config_at


@dataclass(frozen=True)
class Row:
    """One trial as the table, the CSV file and the page show it."""

    trial: str
    point: Point
    """The settings of the last measurement."""
    status: str
    reason: str
    pareto: bool
    """Whether it is on the front of the trials with the largest budget."""
    clips: int
    psnr_db: float | None
    mel_error_db: float | None
    score: float | None
    """The metric with its sign such that more is better, mean over the seeds."""
    parameters: int
    flops_per_clip: int
    """One reconstruction, or with tune.stage=stdit one sample; a multiply-add is two."""
    clips_per_second: float | None
    """Mean over the whole training."""
    peak_memory_gib: float | None
    """Peak memory of a training worker."""
    seconds: float | None
    """Time spent in training steps, over all seeds."""
    rungs: list[dict]
    """Every measurement, with its score and the interval of the metric; see also `point_at`."""
    budget: float = 0
    """Clips or seconds of the last rung. Trials are compared at equal budgets."""
    metric: float | None = None
    """The sweep's metric, mean over the seeds."""
    metric_low: float | None = None
    metric_high: float | None = None
    """The 95 % interval of that mean; None for a single seed."""
    difference: float | None = None
    """The metric minus that of the best trial, mean over the seeds that both have; None for the best itself.
    """
    difference_low: float | None = None
    difference_high: float | None = None
    """The 95 % interval of that difference. Trials share the random draws of a seed, so the difference is
    taken seed by seed. Its interval is much narrower than that of the metric."""
    num_seeds: int = 0
    train_flops: int | None = None
    """FLOPs of one seed's training up to the last rung, in closed form."""
    failures: int = 0
    """Crashes after which the trial was tried again."""
    shown: dict[str, Interval] = field(default_factory=dict)
    """The numbers of tune.show at the last rung, as far as they were measured."""


def make_rows(config: Config, records: Iterable[TrialRecord]) -> list[Row]:
    """The trials, by budget, largest first; at equal budget, the best first."""
    rows, tune = [], config.tune
    for record in records:
        point = record.point_at(record.budget)
        resolved = config_at(config, point)
        bill = costs(resolved)
        last = record.rungs[-1] if record.rungs else {}
        rungs = [_told(rung, config) for rung in record.rungs]
        for rung in rungs:
            if (earlier := record.point_at(rung["budget"])) != point:
                rung["point"] = earlier
        both = tune.stage == "stdit"
        rows.append(
            Row(
                trial=record.id,
                point=point,
                status=record.status,
                reason=record.reason,
                pareto=False,
                clips=record.clips,
                psnr_db=last.get("psnr_db"),
                mel_error_db=last.get("mel_error_db"),
                score=rungs[-1]["score"] if rungs else None,
                parameters=bill.stdit_parameters if both else bill.mdsa_parameters,
                flops_per_clip=bill.sample_flops if both else bill.mdsa_encode_flops + bill.mdsa_decode_flops,
                clips_per_second=last.get("clips_per_second"),
                peak_memory_gib=last.get("peak_memory_gib"),
                seconds=last.get("seconds"),
                rungs=rungs,
                budget=record.budget,
                num_seeds=len(repeats_of(last, tune.repeats)) if last else 0,
                failures=record.failures,
                metric=rungs[-1]["metric"] if rungs else None,
                metric_low=rungs[-1]["metric_low"] if rungs else None,
                metric_high=rungs[-1]["metric_high"] if rungs else None,
                shown=shown(last, tune) if last else {},
                train_flops=train_flops(resolved, tune.stage, int(record.clips)) if rungs else None,
            )
        )
    rows.sort(key=lambda row: (-row.budget, -(row.score or 0)))
    winners = {row.trial for row in front(rows, max(rungs_of(rows), default=0))}
    rows = [replace(row, pareto=row.trial in winners) for row in rows]
    best = best_row(rows)
    return [_compared(row, best, tune) for row in rows]


def _compared(row: Row, best: Row | None, tune: TuneConfig) -> Row:
    """The row with its difference from the best trial, if both were measured at the same budget."""
    if best is None or row.trial == best.trial or row.budget != best.budget:
        return row
    found = difference(row.rungs[-1], best.rungs[-1], tune)
    return replace(row, difference=found.mean, difference_low=found.low, difference_high=found.high)


def _told(rung: dict, config: Config) -> dict:
    """A measurement with its score and the interval of its metric."""
    found = judged(rung, config.tune)
    told = {"budget": budget_of(rung), **rung, "score": score(rung, config.tune)}
    return told | {"metric": found.mean, "metric_low": found.low, "metric_high": found.high}


def point_at(row: Row, rung: dict) -> Point:
    """The settings with which a measurement was made; a member of a population may have others later."""
    return rung.get("point", row.point)


def rungs_of(rows: Iterable[Row]) -> list[float]:
    """Budgets at which trials were measured, smallest first."""
    return sorted({rung["budget"] for row in rows for rung in row.rungs})


def front(rows: Iterable[Row], budget: float) -> list[Row]:
    """The Pareto front of picture and sound among the trials measured at a rung."""
    at = [
        (row, rung["psnr_db"], rung["mel_error_db"])
        for row in rows
        for rung in row.rungs
        if rung["budget"] == budget
    ]
    return [
        row
        for row, psnr, error in at
        if not any(
            other_psnr >= psnr and other_error <= error and (other_psnr, other_error) != (psnr, error)
            for _, other_psnr, other_error in at
        )
    ]


def cost_front(rows: Iterable[Row], budget: float) -> list[Row]:
    """The Pareto front of metric and cost among the trials measured at a rung, cheapest first."""
    at = [
        (row, row.flops_per_clip, rung["score"])
        for row in rows
        for rung in row.rungs
        if rung["budget"] == budget
    ]
    kept = [
        row
        for row, cost, reached in at
        if not any(
            less <= cost and more >= reached and (less, more) != (cost, reached) for _, less, more in at
        )
    ]
    return sorted(kept, key=lambda row: row.flops_per_clip)


def best_row(rows: list[Row]) -> Row | None:
    """The highest score among the trials with the largest budget; None if nothing was measured."""
    most = max((row.budget for row in rows), default=0)
    return max(
        (row for row in rows if row.budget == most and row.rungs), key=lambda row: row.score, default=None
    )


def rivals_of(rows: list[Row]) -> list[Row]:
    """Trials of the best one's budget whose difference from it may be none: chance may have chosen."""
    known = [row for row in rows if row.difference_low is not None]
    return [row for row in known if row.difference_low <= 0 <= row.difference_high]
