"""A sweep's trials as rows that can be compared: what was measured, what it costs, who is on the front. Plain values, no files.

Trials are compared at equal numbers of clips only: each rung has its own Pareto front, and the best trial is the best of those that saw most.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from proav.config import Config
from proav.costs import costs
from proav.tune.record import TrialRecord, score
from proav.tune.space import Point, config_at


@dataclass(frozen=True)
class Row:
    """One trial as the table, the CSV file and the page show it."""

    trial: str
    point: Point
    status: str
    reason: str
    pareto: bool
    """On the front of the trials that saw most clips."""
    clips: int
    psnr_db: float | None
    mel_error_db: float | None
    score: float | None
    parameters: int
    flops_per_clip: int
    """One reconstruction: encode and decode, both modalities; a multiply-add is two."""
    clips_per_second: float | None
    """In training, since its beginning."""
    peak_memory_gib: float | None
    """Of a training worker."""
    seconds: float | None
    """In training steps."""
    rungs: list[dict]
    """Every measurement, with its score."""


def make_rows(config: Config, records: Iterable[TrialRecord]) -> list[Row]:
    """The trials, those that saw most clips first, the best of them first."""
    rows = []
    for record in records:
        bill = costs(config_at(config, record.point))
        last = record.rungs[-1] if record.rungs else {}
        rungs = [{**rung, "score": score(rung, config.tune)} for rung in record.rungs]
        rows.append(
            Row(
                trial=record.id, point=record.point, status=record.status, reason=record.reason, pareto=False, clips=record.clips,
                psnr_db=last.get("psnr_db"), mel_error_db=last.get("mel_error_db"), score=rungs[-1]["score"] if rungs else None,
                parameters=bill.mdsa_parameters, flops_per_clip=bill.mdsa_encode_flops + bill.mdsa_decode_flops,
                clips_per_second=last.get("clips_per_second"), peak_memory_gib=last.get("peak_memory_gib"), seconds=last.get("seconds"), rungs=rungs,
            )
        )  # fmt: skip
    rows.sort(key=lambda row: (-row.clips, -(row.score or 0)))
    winners = {row.trial for row in front(rows, max(rungs_of(rows), default=0))}
    return [replace(row, pareto=row.trial in winners) for row in rows]


def rungs_of(rows: Iterable[Row]) -> list[int]:
    """Numbers of clips at which trials were measured, fewest first."""
    return sorted({rung["clips"] for row in rows for rung in row.rungs})


def front(rows: Iterable[Row], clips: int) -> list[Row]:
    """Trials measured at `clips` that no other one measured there beats in one of picture and sound without losing in the other."""
    at = [
        (row, rung["psnr_db"], rung["mel_error_db"])
        for row in rows
        for rung in row.rungs
        if rung["clips"] == clips
    ]
    return [
        row
        for row, psnr, error in at
        if not any(
            other_psnr >= psnr and other_error <= error and (other_psnr, other_error) != (psnr, error)
            for _, other_psnr, other_error in at
        )
    ]


def best_row(rows: list[Row]) -> Row | None:
    """The highest score among the trials that saw most clips; None where nothing was measured."""
    most = max((row.clips for row in rows), default=0)
    return max(
        (row for row in rows if row.clips == most and row.rungs), key=lambda row: row.score, default=None
    )
