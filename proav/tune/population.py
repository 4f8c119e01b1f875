"""Population-based training: Ray Tune's scheduler decides, proav's checkpoints carry the weights.

All members train to a rung and wait for each other. Then the weakest continue from checkpoints of the best,
with settings changed at random. Ray Tune's own checkpoint holds only the name of one of proav's, which is a
copy below the giver's folder. So a sweep can be resumed from its records alone.
"""

import dataclasses
import json
import random
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from ray import tune
from ray.tune.schedulers import PopulationBasedTraining

from proav import storage
from proav.config import Config, TuneConfig
from proav.runs.checkpoint import LATEST, list_checkpoints
from proav.tune.axes import Point, clamped
from proav.tune.record import DONE, TrialRecord, read_record, score, write_record
from proav.tune.repeats import budget_of
from proav.tune.space import Trial, config_at
from proav.tune.trial_measure import copy_folder

KEPT_RUNGS = 2
"""Copies of checkpoints that each member keeps for others. One would do, as all wait at the same rung."""
POINTER = "member.json"


class _Population(PopulationBasedTraining):
    """Ray Tune's synchronous scheduler; it records each decision before a member continues."""

    def __init__(self, members: dict[str, Trial], settings: TuneConfig, **options) -> None:
        super().__init__(synch=True, log_config=False, **options)
        self.members, self.settings = members, settings

    def on_trial_result(self, tune_controller, trial, result: dict) -> str:
        next_rung = self._next_perturbation_sync
        given = {one: one.config for one in tune_controller.get_trials()}
        action = super().on_trial_result(tune_controller, trial, result)
        if self._next_perturbation_sync != next_rung:  # all have reached it
            for one, before in given.items():
                self._decided(one, next_rung, is_changed=one.config is not before)
        return action

    def _decided(self, one, rung: float, *, is_changed: bool) -> None:
        member = self.members[one.custom_trial_name]
        record = read_record(member.config.run_folder)
        if record.status in DONE:
            return
        record = record.replace(passed=max(record.passed, rung))
        if is_changed:
            giver, point = one.config["member"]["id"], _decoded(self.settings, one.config["member"])
            taken = {"budget": rung, "from": giver, "point": point, "before": record.point, "settled": False}
            record = record.replace(point=point, taken=[*record.taken, taken])
        write_record(member, record)


def population_scheduler(
    settings: TuneConfig, members: dict[str, Trial], records: dict[str, TrialRecord]
) -> PopulationBasedTraining:
    """A scheduler under which no member continues before all have reached the rung.

    settings: the sweep's section `tune`.
    members: the population, by id.
    records: those of the members that have begun.
    """
    random.seed(settings.seed)  # both are what Ray Tune draws from
    np.random.seed(settings.seed)
    return _Population(
        members,
        settings,
        time_attr="budget",
        metric="score",
        mode="max",
        perturbation_interval=settings.rungs[0],
        burn_in_period=_decided_rung(records) + settings.rungs[0],
        quantile_fraction=settings.exploit_fraction,
        hyperparam_mutations={"member": {key: _drawn_from(settings, key) for key in settings.space}},
        custom_explore_fn=lambda given: {"member": given["member"] | _within(settings, given["member"])},
    )


def population_space(
    settings: TuneConfig, members: dict[str, Trial], records: dict[str, TrialRecord]
) -> dict:
    """Ray Tune's param_space: each member as it is now."""
    begun = {name: records[name].point if name in records else trial.point for name, trial in members.items()}
    return {
        "member": tune.grid_search([{"id": name, **_coded(settings, point)} for name, point in begun.items()])
    }


def catch_up(members: dict[str, Trial], records: dict[str, TrialRecord]) -> None:
    """Completes an interrupted decision: a rung that was decided for one member is decided for all."""
    decided = _decided_rung(records)
    for name in members.keys() & records.keys():
        record = read_record(members[name].config.run_folder)
        write_record(members[name], record.replace(passed=decided))


def run_member(config: Config, members: dict[str, Trial], run: Callable[..., None]) -> None:
    """Starts a member: copies another member's checkpoint if that was decided, then trains with `run`
    (`run_trial`).
    """
    name = tune.get_context().get_trial_name()
    record = read_record(members[name].config.run_folder)
    if record.taken and not record.taken[-1]["settled"]:
        record = _take_over(members[name], members[record.taken[-1]["from"]], record)
    trial = at_point(config, members[name], record.point)

    def report(rung: dict, *, passed: bool) -> None:
        if passed:
            return  # this rung was decided before
        budget = budget_of(rung)
        _lend(trial, budget)
        with tempfile.TemporaryDirectory(prefix="proav-") as pointer:
            Path(pointer, POINTER).write_text(json.dumps({"member": name, "budget": budget}))
            values = {"budget": budget, "clips": rung["clips"], "score": score(rung, config.tune)}
            tune.report(values, checkpoint=tune.Checkpoint.from_directory(pointer))

    run(trial, rungs=tuple(rung for rung in config.tune.rungs if rung > record.passed), report=report)


def at_point(config: Config, trial: Trial, point: Point) -> Trial:
    """A member with other settings, in the same folder."""
    resolved = config_at(config, point)
    kept = {name: getattr(trial.config, name) for name in ("name", "run_dir", "stage", "data")}
    return dataclasses.replace(trial, point=dict(point), config=resolved.model_copy(update=kept))


def _take_over(trial: Trial, giver: Trial, record: TrialRecord) -> TrialRecord:
    """Puts the giver's checkpoint in place of the member's own. If it was interrupted, it runs again as a
    whole."""
    source = storage.join(_lent(giver), str(int(record.taken[-1]["budget"])))
    target = storage.join(trial.config.run_folder, "mdsa", "checkpoints")
    (name,) = {
        path.removeprefix(source.rstrip("/") + "/").split("/")[0] for path in storage.list_files(source)
    }
    storage.delete_folder(target)
    copy_folder(storage.join(source, name), storage.join(target, name))
    storage.write_text(storage.join(target, LATEST), name + "\n")
    record = record.replace(taken=[*record.taken[:-1], record.taken[-1] | {"settled": True}])
    write_record(trial, record)
    return record


def _lend(trial: Trial, budget: float) -> None:
    """Copies the newest checkpoint for others and deletes the copies of earlier rungs."""
    path = list_checkpoints(storage.join(trial.config.run_folder, "mdsa", "checkpoints"))[0][1]
    target = storage.join(_lent(trial), str(int(budget)), path.rstrip("/").rsplit("/", 1)[-1])
    copy_folder(path, target)
    files = storage.list_files(_lent(trial))
    there = sorted({int(file.removeprefix(_lent(trial) + "/").split("/")[0]) for file in files})
    for old in there[:-KEPT_RUNGS]:
        storage.delete_folder(storage.join(_lent(trial), str(old)))


def _lent(trial: Trial) -> str:
    return storage.join(trial.config.run_folder, "lent")


def _decided_rung(records: dict[str, TrialRecord]) -> float:
    return max((record.passed for record in records.values() if record.status not in DONE), default=0)


def _coded(settings: TuneConfig, point: Point) -> dict:
    """Values in the form that the scheduler changes: for a list, the index, so that a step leads to a
    neighbour.
    """
    space = settings.space
    return {
        key: space[key].listed.index(value) if space[key].listed is not None else value
        for key, value in point.items()
    }


def _decoded(settings: TuneConfig, given: dict) -> Point:
    space = settings.space
    return {
        key: space[key].listed[given[key]]
        if space[key].listed is not None
        else clamped(space[key], given[key])
        for key in settings.axes
    }


def _within(settings: TuneConfig, given: dict) -> dict:
    """Multiplied values, clamped to their ranges."""
    return {key: clamped(axis, given[key]) for key, axis in settings.space.items() if axis.listed is None}


def _drawn_from(settings: TuneConfig, key: str):
    axis = settings.space[key]
    if axis.listed is not None:
        return list(range(len(axis.listed)))
    if axis.integer is not None:
        return tune.randint(axis.integer[0], axis.integer[1] + 1)
    return tune.loguniform(*axis.loguniform) if axis.loguniform else tune.uniform(*axis.uniform)
