"""What each trial of a sweep has reached, on disk: trials/<id>/trial.json, written whole after every rung.

After an interruption the sweep is resumed from these files. Its results are made from them alone. Ray Tune's
own state is not needed again.
"""

import dataclasses
import json
from dataclasses import dataclass, field

from proav import storage
from proav.config import TuneConfig
from proav.errors import UserError
from proav.tune.axes import Point
from proav.tune.repeats import budget_of, repeats_of, rung_score
from proav.tune.space import Trial

RECORD = "trial.json"
FORMAT = 1
RUNNING, FINISHED, STOPPED, FAILED, CRASHED = "running", "finished", "stopped", "failed", "crashed"
"""The states of a trial.

running: being trained, or interrupted.
finished: the whole budget was used.
stopped: by the scheduler.
failed: a loss or metric that is not finite; it would happen again, so the trial is not tried again.
crashed: another error: one that only the user can mend, or one that came more often than tune.max_failures
    allows. The next run of the sweep tries the trial again.
"""
DONE = (FINISHED, STOPPED, FAILED)


@dataclass(frozen=True)
class TrialRecord:
    """One trial and its measurements, in order of clips."""

    id: str
    point: Point
    data_hash: str
    """Hash of the prepared data's manifest."""
    number: int
    """Order in which the sweep began its trials."""
    status: str = RUNNING
    reason: str = ""
    """Why it failed or crashed."""
    schedule: list | None = None
    """The schedule that decided whether it continues. Under another schedule, the decision is made again."""
    passed: float = 0
    """The last rung, as a budget, after which this schedule let it continue."""
    rungs: list[dict] = field(default_factory=list)
    """One dict for each rung, made by `repeats.merge`: budget, clips, step, loss, psnr_db, mel_error_db, ...

    The measurements of each seed are in its entry `repeats`.
    """
    failures: int = 0
    """Crashes in this run of the sweep after which the trial was tried again."""
    failure: str = ""
    """Reason of the last of these crashes."""
    taken: list[dict] = field(default_factory=list)
    """For a member of a population: {budget, from, point, before, settled} of each time it took over
    another's weights. `point` are the settings afterwards, `before` those until then.
    """

    @property
    def clips(self) -> int:
        """Clips seen at the last measurement."""
        return self.rungs[-1]["clips"] if self.rungs else 0

    @property
    def budget(self) -> float:
        """Clips, or seconds, of the rung of the last measurement."""
        return budget_of(self.rungs[-1]) if self.rungs else 0

    def point_at(self, budget: float) -> Point:
        """The settings with which it was measured at a rung, before it took over others there."""
        return next((taken["before"] for taken in self.taken if taken["budget"] >= budget), self.point)

    def rung(self, budget: float) -> dict | None:
        """The first measurement with at least this budget."""
        return next((rung for rung in self.rungs if budget_of(rung) >= budget), None)

    @classmethod
    def begin(cls, trial: Trial, tune: TuneConfig, *, number: int, data_hash: str) -> "TrialRecord":
        return cls(
            id=trial.id, point=trial.point, data_hash=data_hash, number=number, schedule=schedule_of(tune)
        )

    def reopened(self, tune: TuneConfig) -> "TrialRecord":
        """The record with which a trial that is not done continues."""
        schedule = schedule_of(tune)
        passed = self.passed if self.schedule == schedule else 0
        return self.replace(
            status=RUNNING, reason="", schedule=schedule, passed=passed, failures=0, failure=""
        )

    def replace(self, **changes) -> "TrialRecord":
        return dataclasses.replace(self, **changes)


def schedule_of(tune: TuneConfig) -> list:
    """The settings that decide which trials are stopped. A trial stays stopped while these are the same."""
    schedule = [
        tune.scheduler,
        list(tune.rungs),
        tune.reduction_factor,
        tune.picture_weight,
        tune.sound_weight,
    ]
    return schedule + (
        [tune.metric, tune.mode, tune.repeats] if tune.metric != "score" or tune.repeats > 1 else []
    )


def is_done(record: TrialRecord, tune: TuneConfig) -> bool:
    """Whether nothing is left to do for the trial under these settings."""
    if record.status == FINISHED:
        return record.budget >= tune.rungs[-1] and all(is_whole(rung, tune) for rung in record.rungs)
    return record.status == FAILED or (record.status == STOPPED and record.schedule == schedule_of(tune))


def is_whole(rung: dict, tune: TuneConfig) -> bool:
    """Whether as many seeds were measured at a rung as the sweep has."""
    return len(repeats_of(rung)) >= tune.repeats


def score(rung: dict, tune: TuneConfig) -> float:
    """Mean of the metric over the seeds at a rung, with its sign such that more is better."""
    return rung_score(rung, tune)


def write_record(trial: Trial | str, record: TrialRecord) -> None:
    """Writes trial.json whole. trial: the trial, or its folder."""
    folder = trial if isinstance(trial, str) else trial.config.run_folder
    storage.write_text(
        storage.join(folder, RECORD), json.dumps({"format": FORMAT} | dataclasses.asdict(record), indent=1)
    )


def read_record(trial_folder: str) -> TrialRecord | None:
    """The record in a trial's folder; None if there is none. Raises UserError if it cannot be read."""
    path = storage.join(trial_folder, RECORD)
    if not storage.exists(path):
        return None
    try:
        values = json.loads(storage.read_text(path))
        if values.pop("format") != FORMAT:
            raise ValueError("another format")
        return TrialRecord(**values)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} cannot be read ({error}); delete {trial_folder} to run that trial anew"
        ) from None


def read_records(folder: str) -> dict[str, TrialRecord]:
    """{id: record} of every trial below the folder of trials, in the order in which they were begun."""
    folders = {path.rsplit("/", 1)[0] for path in storage.list_files(folder) if path.endswith("/" + RECORD)}
    records = [read_record(path) for path in folders]
    return {record.id: record for record in sorted(records, key=lambda record: (record.number, record.id))}
