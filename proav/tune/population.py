"""Population-based training: Ray Tune's scheduler decides who takes over from whom, proav's checkpoints pass the weights.

All members train to a rung and wait for each other. Then the weakest continue from checkpoints of the best, with
their settings changed at random. What Ray Tune is given as a checkpoint only names one of ours: a copy below the
giver's folder, so that a sweep goes on from its records alone.
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
from proav.checkpoint import LATEST, list_checkpoints
from proav.config import Config, TuneConfig
from proav.tune.axes import Point, clamped
from proav.tune.measure import copy_folder
from proav.tune.record import DONE, TrialRecord, read_record, score, write_record
from proav.tune.repeats import budget_of
from proav.tune.space import Trial, config_at

KEPT_RUNGS = 2
"""Copies of checkpoints that each member keeps for others: they wait at the same rung, so that one would do."""
POINTER = "member.json"


def population_scheduler(settings: TuneConfig) -> PopulationBasedTraining:
    """Ray Tune's, in step: nobody goes on before all have reached the rung."""
    random.seed(settings.seed)  # both are what it draws from
    np.random.seed(settings.seed)
    return PopulationBasedTraining(
        time_attr="budget", metric="score", mode="max", synch=True, log_config=False,
        perturbation_interval=settings.rungs[0], quantile_fraction=settings.exploit_fraction,
        hyperparam_mutations={"member": {key: _drawn_from(settings, key) for key in settings.space}},
        custom_explore_fn=lambda given: {"member": given["member"] | _within(settings, given["member"])},
    )  # fmt: skip


def population_space(settings: TuneConfig, members: dict[str, Trial], records: dict[str, TrialRecord]) -> dict:
    """Ray Tune's param_space: each member as it is now."""
    begun = {name: records[name].point if name in records else trial.point for name, trial in members.items()}
    return {"member": tune.grid_search([{"id": name, **_coded(settings, point)} for name, point in begun.items()])}


def run_member(
    config: Config,
    members: dict[str, Trial],
    settings: dict,
    run: Callable[..., None],
) -> None:
    """One start of a member: takes over what Ray Tune gave it, then trains on with `run`, which is `run_trial`."""
    name, rungs = tune.get_context().get_trial_name(), config.tune.rungs
    folder = members[name].config.run_folder
    record, given = read_record(folder), _read_pointer(tune.get_checkpoint())
    if given is not None and record.status not in DONE:
        if given["budget"] >= rungs[-1]:
            return
        record = record.replace(passed=max(record.passed, given["budget"]))
        known = any((one["from"], one["budget"]) == (given["from"], given["budget"]) for one in record.taken)
        if given["from"] != name and not known:
            point = _decoded(config.tune, settings["member"])
            taken = {**given, "point": point, "before": record.point, "settled": False}
            record = record.replace(point=point, taken=[*record.taken, taken])
        write_record(members[name], record)
    if record.taken and not record.taken[-1]["settled"]:
        record = _take_over(members[name], members[record.taken[-1]["from"]], record)
    trial = at_point(config, members[name], record.point)

    def report(rung: dict, *, passed: bool) -> None:
        if passed and record.status not in DONE:
            return  # Ray Tune has decided on it
        budget = budget_of(rung)
        _lend(trial, budget)
        with tempfile.TemporaryDirectory(prefix="proav-") as pointer:
            Path(pointer, POINTER).write_text(json.dumps({"from": name, "budget": budget}))
            values = {"budget": budget, "clips": rung["clips"], "score": score(rung, config.tune), "passed": passed}
            tune.report(values, checkpoint=tune.Checkpoint.from_directory(pointer))

    run(trial, rungs=rungs, report=report)


def at_point(config: Config, trial: Trial, point: Point) -> Trial:
    """A member with other settings, in the same folder."""
    resolved = config_at(config, point)
    kept = {name: getattr(trial.config, name) for name in ("name", "run_dir", "stage", "data")}
    return dataclasses.replace(trial, point=dict(point), config=resolved.model_copy(update=kept))


def _take_over(trial: Trial, giver: Trial, record: TrialRecord) -> TrialRecord:
    """The giver's checkpoint in place of the member's own; done again if it was cut off."""
    source = storage.join(_lent(giver), str(int(record.taken[-1]["budget"])))
    target = storage.join(trial.config.run_folder, "mdsa", "checkpoints")
    (name,) = {path.removeprefix(source.rstrip("/") + "/").split("/")[0] for path in storage.list_files(source)}
    storage.delete_folder(target)
    copy_folder(storage.join(source, name), storage.join(target, name))
    storage.write_text(storage.join(target, LATEST), name + "\n")
    record = record.replace(taken=[*record.taken[:-1], record.taken[-1] | {"settled": True}])
    write_record(trial, record)
    return record


def _lend(trial: Trial, budget: float) -> None:
    """A copy of the newest checkpoint, for others; those of earlier rungs are deleted."""
    path = list_checkpoints(storage.join(trial.config.run_folder, "mdsa", "checkpoints"))[0][1]
    target = storage.join(_lent(trial), str(int(budget)), path.rstrip("/").rsplit("/", 1)[-1])
    if not storage.exists(target):
        copy_folder(path, target)
    files = storage.list_files(_lent(trial))
    there = sorted({int(file.removeprefix(_lent(trial) + "/").split("/")[0]) for file in files})
    for old in there[:-KEPT_RUNGS]:
        storage.delete_folder(storage.join(_lent(trial), str(old)))


def _lent(trial: Trial) -> str:
    return storage.join(trial.config.run_folder, "lent")


def _read_pointer(checkpoint) -> dict | None:
    if checkpoint is None:
        return None
    with checkpoint.as_directory() as folder:
        return json.loads(Path(folder, POINTER).read_text())


def _coded(settings: TuneConfig, point: Point) -> dict:
    """Values as the scheduler changes them: a list's is its place, so that neighbours are near."""
    space = settings.space
    return {
        key: space[key].values.index(value) if space[key].values is not None else value for key, value in point.items()
    }


def _decoded(settings: TuneConfig, given: dict) -> Point:
    space = settings.space
    return {
        key: space[key].values[given[key]] if space[key].values is not None else clamped(space[key], given[key])
        for key in settings.axes
    }


def _within(settings: TuneConfig, given: dict) -> dict:
    """What was multiplied, brought back into its range."""
    return {key: clamped(axis, given[key]) for key, axis in settings.space.items() if axis.values is None}


def _drawn_from(settings: TuneConfig, key: str):
    axis = settings.space[key]
    if axis.values is not None:
        return list(range(len(axis.values)))
    if axis.integer is not None:
        return tune.randint(axis.integer[0], axis.integer[1] + 1)
    return tune.loguniform(*axis.loguniform) if axis.loguniform else tune.uniform(*axis.uniform)
