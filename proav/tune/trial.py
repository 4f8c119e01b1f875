"""One trial: train to a rung, measure, write it down, report; then the next rung. Ray Tune decides between
rungs whether it goes on.

Every rung is a Ray Train run a seed, which goes on from its own checkpoint and has ended before the report: a
trial that is stopped leaves no workers and no placement group behind. It runs in a process of its own; what
takes CPUs or GPUs are the workers and tasks that it starts (`trial_measure.py`).
"""

import traceback
from typing import Protocol

from proav import storage
from proav.errors import Stopped, UserError
from proav.tune.record import CRASHED, DONE, FAILED, RUNNING, TrialRecord, is_whole, read_record, write_record
from proav.tune.repeats import budget_of, merge, repeats_of
from proav.tune.space import Trial
from proav.tune.trial_measure import measure


class Report(Protocol):
    def __call__(self, rung: dict, *, passed: bool) -> None:
        """Tells of a rung; returns only where the trial is to go on. passed: it went on from there before."""


def run_trial(trial: Trial, *, rungs: tuple[float, ...], report: Report) -> None:
    """Reports each rung, measured now or found in the record; a failure goes into the record with its reason.

    A user's mistake ends the trial, not the sweep; anything else is raised again once it is written down, and
    Ray Tune starts the trial again as often as tune.max_failures says.
    """
    try:
        _climb(trial, rungs, report)
    except UserError as error:
        _end(trial, FAILED, str(error))
    except Stopped as stopped:  # a signal to one of its workers; Ray Tune expects an Exception
        _end(trial, CRASHED, str(stopped))
        raise RuntimeError(str(stopped)) from None
    except Exception as error:  # whatever it is, the table has to show it; Ray Tune gets it as well
        storage.write_text(storage.join(trial.config.run_folder, "error.txt"), traceback.format_exc())
        _end(trial, CRASHED, f"{type(error).__name__}: {' '.join(str(error).split())}"[:300])
        raise


def _climb(trial: Trial, rungs: tuple[float, ...], report: Report) -> None:
    """From rung to rung. Nothing is trained for a trial that is done; what it measured is reported, for
    others to be compared with.
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
        ):  # measured under another schedule, beyond more than one rung of this one
            continue
        report(rung, passed=record.status in DONE or budget_of(rung) <= record.passed)
        reported = budget_of(rung)
        if record.status not in DONE and reported > record.passed:
            record = record.replace(passed=reported)
            write_record(trial, record)


def _opened(trial: Trial, record: TrialRecord) -> TrialRecord:
    """Of a trial that Ray Tune starts again after a crash: it runs, and the crash is counted."""
    if record.status != CRASHED:
        return record
    record = record.replace(status=RUNNING, failures=record.failures + 1, failure=record.reason, reason="")
    write_record(trial, record)
    return record


def _reach(
    trial: Trial, record: TrialRecord, rung: dict | None, *, budget: float, clips: int | None
) -> tuple[TrialRecord, dict]:
    """Trains and measures the seeds that are missing at a rung; the record with it, written.

    rung: what there is of it, perhaps of another schedule, at more than `budget`. clips: None with a budget
    in seconds.
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
