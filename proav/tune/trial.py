"""One trial: train to a rung, measure, write the record, report, and continue to the next rung.

Ray Tune decides between rungs whether the trial continues. At every rung each seed is a Ray Train run, which
continues from its own checkpoint and ends before the report. So a stopped trial leaves no workers and no
placement group behind. The trial runs in a process of its own, without CPUs or GPUs. These are for the
workers and tasks that it starts (`trial_measure.py`).
"""

import traceback
from typing import Protocol

from proav import storage
from proav.errors import Stopped, UserError
from proav.train.engines.base import NonFiniteError
from proav.tune.record import CRASHED, DONE, FAILED, RUNNING, TrialRecord, is_whole, read_record, write_record
from proav.tune.repeats import budget_of, merge, repeats_of
from proav.tune.space import Trial
from proav.tune.trial_measure import measure


class Report(Protocol):
    def __call__(self, rung: dict, *, passed: bool) -> None:
        """Reports a rung; returns only if the trial is to continue.

        passed: whether Ray Tune let the trial continue after this rung in an earlier run.
        """


def run_trial(trial: Trial, *, rungs: tuple[float, ...], report: Report) -> None:
    """Reports each rung, measured now or found in the record. A failure is recorded with its reason.

    A loss or metric that is not finite ends the trial for good, as it would happen again. Any other UserError
    ends it for this run of the sweep: the user can mend it, and the next run tries the trial again. All other
    errors are raised too. Then Ray Tune starts the trial again, up to tune.max_failures times.
    """
    try:
        _climb(trial, rungs, report)
    except NonFiniteError as error:
        _end(trial, FAILED, str(error))
    except UserError as error:  # it returns, so that Ray Tune does not start the trial again
        _end(trial, CRASHED, str(error))
    except Stopped as stopped:  # a signal to one of its workers; Ray Tune expects an Exception
        _end(trial, CRASHED, str(stopped))
        raise RuntimeError(str(stopped)) from None
    except Exception as error:  # the sweep's table shows any error, and Ray Tune gets it too
        storage.write_text(storage.join(trial.config.run_folder, "error.txt"), traceback.format_exc())
        _end(trial, CRASHED, f"{type(error).__name__}: {' '.join(str(error).split())}"[:300])
        raise


def _climb(trial: Trial, rungs: tuple[float, ...], report: Report) -> None:
    """Reaches and reports one rung after the other.

    If the trial is done, it is not trained. Its measurements are reported, as others are compared with them.
    """
    record, reported = read_record(trial.config.run_folder), 0.0
    assert record is not None, "the sweep writes the record before it starts a trial"
    record = _opened(trial, record)
    lengths = dict(zip(trial.tune.rungs, trial.lengths, strict=True))
    for budget in rungs:
        rung = record.rung(budget)
        if record.status in DONE and rung is None:
            return
        if record.status not in DONE and (rung is None or not is_whole(rung, trial.tune)):
            record, rung = _reach(trial, record, rung, budget=budget, clips=lengths[budget])
        if (
            budget_of(rung) <= reported
        ):  # one measurement of another schedule may cover several rungs of this one
            continue
        report(rung, passed=record.status in DONE or budget_of(rung) <= record.passed)
        reported = budget_of(rung)
        if record.status not in DONE and reported > record.passed:
            record = record.replace(passed=reported)
            write_record(trial, record)


def _opened(trial: Trial, record: TrialRecord) -> TrialRecord:
    """The record of a trial that starts. If Ray Tune restarts it after a crash, the crash is counted."""
    if record.status != CRASHED:
        return record
    record = record.replace(status=RUNNING, failures=record.failures + 1, failure=record.reason, reason="")
    write_record(trial, record)
    return record


def _reach(
    trial: Trial, record: TrialRecord, rung: dict | None, *, budget: float, clips: int | None
) -> tuple[TrialRecord, dict]:
    """Trains and measures the seeds that are missing at a rung. Returns the written record and the rung.

    trial: the trial.
    record: what it has reached.
    rung: earlier measurements for this rung; if made under another schedule, their budget may be larger.
    budget: budget of the rung.
    clips: the same in clips; None for a budget in seconds.
    """
    others = [one for one in record.rungs if one is not rung]
    measured = [] if rung is None else repeats_of(rung)
    if rung is not None:
        budget, clips = budget_of(rung), clips and rung["clips"]
    for repeat in range(len(measured), trial.tune.repeats):
        measured = [*measured, measure(trial, repeat=repeat, clips=clips, seconds=None if clips else budget)]
        rung = merge(measured, budget=budget)
        record = record.replace(rungs=sorted([*others, rung], key=budget_of))
        write_record(trial, record)
    return record, rung


def _end(trial: Trial, status: str, reason: str) -> None:
    record = read_record(trial.config.run_folder)
    write_record(trial, record.replace(status=status, reason=reason))
