"""Runs a sweep: Ray Tune starts trials, compares them at each rung and stops the weaker ones.

Each trial's measurements are in its record. A sweep is resumed from the records alone: finished trials are
replayed without training, interrupted ones continue from their checkpoint. Ray Tune's own files
(<run_dir>/.ray/tune) are temporary and made anew each time.
"""

import json
import logging
import os

from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler

from proav import storage
from proav.config import Config
from proav.data.feeds.feed import evaluation_windows
from proav.data.prepare.preprocess import preprocess
from proav.data.store.shards import SegmentStore, manifest_hash
from proav.errors import Stopped, UserError
from proav.on_ray.resources import largest_resources
from proav.storage.lease import Lease
from proav.train.worker import plan_stage
from proav.tune.allowed import data_axes, data_name, shares_mdsa
from proav.tune.axes import Point, describe, is_on_axes, num_trials, planned_points
from proav.tune.budgets import budget_words, budgets_words
from proav.tune.population import catch_up, population_scheduler, population_space, run_member
from proav.tune.record import (
    CRASHED,
    FINISHED,
    RUNNING,
    STOPPED,
    TrialRecord,
    is_done,
    read_record,
    read_records,
    score,
    write_record,
)
from proav.tune.repeats import budget_of, interval_words, judged
from proav.tune.results import metrics_lines, write_results
from proav.tune.room import concurrent_trials
from proav.tune.search import OptunaPoints, PlannedPoints, Points, TrialSearcher
from proav.tune.space import Trial, check_sweep, data_points, make_trial, prepared_configs, trials_folder
from proav.tune.sweep_yardsticks import sweep_yardsticks
from proav.tune.trial import run_trial
from proav.tune.trial_measure import make_shared

ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # CSV, JSON and TensorBoard files that repeat the records
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial that fails before its first rung reports nothing
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends this job as it ends the other jobs; nothing is lost
    "RAY_AIR_NEW_OUTPUT": "0",  # only the older output can be silenced
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # a failed trial is a line here and a row of the table
}
AT_HEAD = {"node:__internal_head__": 0.001}
"""Resources of a trial's own process. It runs on the head node, which is never a spot node. It takes no CPU,
so that its workers get all of them.
"""


def sweep(config: Config) -> dict:
    """Runs the remaining trials, writes <run_dir>/tune/ and returns the results (`results.json`).

    Ray must be initialized. Raises UserError before any trial starts (wrong axes or values, no prepared
    data, Optuna missing, another sweep running in the folder), and at the end if every trial failed.
    """
    check_sweep(config)
    _check_prepared(config)
    data = _open_data(config)
    with Lease(storage.make_folder(storage.join(config.run_folder, "tune")), name="sweep"):
        runner = _Sweep(config, data)
        is_finished = runner.is_finished()
        if not is_finished:
            runner.run()
        records = runner.records()
        yardsticks = sweep_yardsticks(config, records.values())
        results = write_results(
            config,
            records,
            data=data.manifest,
            yardsticks=yardsticks,
            quiet=is_finished,
            data_sets=data.hashes,
            data_folders=data.folders,
        )
        _check_measured(config, results)
    if is_finished:
        page = storage.join(config.run_folder, "tune", "report.html")
        print(f"tune: done already, {len(results['trials'])} trials; {page}")
    return results


class _Data:
    """The prepared data of a sweep's trials: one set, or one for each value of the axes that change data."""

    def __init__(self, folders: dict[str, str], hashes: dict[str, str], manifest: dict) -> None:
        self.folders, self.hashes, self.manifest = folders, hashes, manifest


def _open_data(config: Config) -> _Data:
    """Prepares the data that the axes need and that is missing, and opens all of it. Raises UserError."""
    folders, hashes, manifests = {}, {}, []
    for name, own in prepared_configs(config, data_points(config.tune)).items():
        if data_axes(config.tune):  # a variant may use the sweep's own data
            preprocess(own)
        plan_stage(own, "mdsa")
        store = SegmentStore(own.data_folder)
        evaluation_windows(store, own, split=config.evaluate.split, max_clips=config.evaluate.max_clips)
        folders[name], hashes[name] = own.data_folder, manifest_hash(store.manifest)
        manifests.append(store.manifest)
    return _Data(folders, hashes, manifests[0])


class _Sweep:
    """One sweep and the records of its trials."""

    def __init__(self, config: Config, data: _Data) -> None:
        self.config, self.data = config, data
        self.total = num_trials(config.tune)

    def trial(self, point: Point, member: int | None = None) -> Trial:
        name = data_name(self.config.tune, point)
        folder = self.data.folders[name]
        return make_trial(
            self.config, point, data_hash=self.data.hashes[name], data_folder=folder, member=member
        )

    def members(self) -> dict[str, Trial]:
        """A population with its first points, by id."""
        trials = [self.trial(point, number) for number, point in enumerate(planned_points(self.config.tune))]
        return {trial.id: trial for trial in trials}

    def records(self) -> dict[str, TrialRecord]:
        """The records of this sweep's trials, by id, in the order in which they began.

        The folder may also hold trials with other settings or other data, under other ids.
        """
        settings, planned = self.config.tune, None
        if settings.scheduler == "pbt":
            planned = self.members().keys()
        elif settings.search != "optuna":
            planned = {self.trial(point).id for point in planned_points(settings)}
        return {
            name: record
            for name, record in read_records(trials_folder(self.config)).items()
            if (name in planned if planned is not None else self._is_own(record))
        }

    def _is_own(self, record: TrialRecord) -> bool:
        settings = self.config.tune
        if not is_on_axes(settings, record.point):
            return False
        if data_name(settings, record.point) not in self.data.folders:
            return False
        return self.trial(record.point).id == record.id

    def is_finished(self) -> bool:
        return sum(is_done(record, self.config.tune) for record in self.records().values()) >= self.total

    def run(self) -> None:
        known, settings = self.records(), self.config.tune
        self._tell_what_is_left(known)
        at_a_time, notes = concurrent_trials(self.config, largest_resources())
        print(*notes, sep="\n", end="\n" if notes else "")
        points = None if settings.scheduler == "pbt" else self._points(known)
        if shares_mdsa(self.config):
            make_shared(self.config)
        for name in ENVIRONMENT:
            os.environ.setdefault(name, ENVIRONMENT[name])
        logging.getLogger("ray.tune").setLevel(
            logging.CRITICAL
        )  # it would also print failed trials, which `_Watch` prints
        folder = storage.join(self.config.run_folder, ".ray")
        storage.delete_folder(storage.join(folder, "tune"))
        filesystem, path = storage.open_filesystem(folder)
        run_config = tune.RunConfig(
            name="tune",
            storage_path=path,
            storage_filesystem=filesystem if storage.is_remote(folder) else None,
            callbacks=[_Watch(self, known)],
            failure_config=tune.FailureConfig(max_failures=settings.max_failures),
            stop={"budget": settings.rungs[-1]} if points is None else None,
            verbose=0,
        )
        tuner = (
            self._population(known, at_a_time, run_config)
            if points is None
            else self._trials(points, at_a_time, run_config)
        )
        try:
            tuner.fit()
        except KeyboardInterrupt:  # `StopRequest` raises Stopped, a KeyboardInterrupt
            kept = "finished rungs are kept: run the same command again to go on"
            raise Stopped(f"tune: stopped; {kept}") from None

    def _trials(self, points: Points, at_a_time: int, run_config: tune.RunConfig) -> tune.Tuner:
        """Independent trials, from a search."""
        return tune.Tuner(
            tune.with_resources(_driver(self.config, self.data), tune.PlacementGroupFactory([AT_HEAD])),
            tune_config=tune.TuneConfig(
                search_alg=TrialSearcher(points, self._begin),
                scheduler=_scheduler(self.config),
                num_samples=self.total,
                max_concurrent_trials=at_a_time,
                trial_name_creator=_name_of,
            ),
            run_config=run_config,
        )

    def _population(
        self, known: dict[str, TrialRecord], at_a_time: int, run_config: tune.RunConfig
    ) -> tune.Tuner:
        """Members of a population, which take over each other's weights.

        Ray Tune counts waiting members as running, so resources on the head limit how many train.
        """
        members, settings = self.members(), self.config.tune
        left = {
            name: trial
            for name, trial in members.items()
            if name not in known or not is_done(known[name], settings)
        }
        for trial in left.values():
            self._open(trial)
        begun = {name: record for name, record in self.records().items() if name in left}
        catch_up(left, begun)
        share = {kind: 1 / (at_a_time + 0.5) for kind in AT_HEAD}
        return tune.Tuner(
            tune.with_resources(_member_driver(self.config, members), tune.PlacementGroupFactory([share])),
            param_space=population_space(settings, left, begun),
            tune_config=tune.TuneConfig(
                scheduler=population_scheduler(settings, members, begun), trial_name_creator=_name_of
            ),
            run_config=run_config,
        )

    def _points(self, known: dict[str, TrialRecord]) -> Points:
        """Known points come first, so that the scheduler and the sampler can compare with them at once."""
        begun = sorted(
            known.values(), key=lambda record: (not is_done(record, self.config.tune), record.number)
        )
        if self.config.tune.search == "optuna":
            return OptunaPoints(self.config.tune, [record.point for record in begun])
        rest = [point for point in planned_points(self.config.tune) if self.trial(point).id not in known]
        useful = [record.point for record in begun if record.rungs or not is_done(record, self.config.tune)]
        return PlannedPoints(useful + rest)

    def _begin(self, point: Point) -> Trial:
        """The trial at a point with its record on disk."""
        trial = self.trial(point)
        self._open(trial)
        return trial

    def _open(self, trial: Trial) -> None:
        """Begins a trial's record, or opens it again if the trial is not done."""
        record, settings = read_record(trial.config.run_folder), self.config.tune
        if record is None:
            data_hash = self.data.hashes[data_name(self.config.tune, trial.point)]
            write_record(
                trial, TrialRecord.begin(trial, settings, number=len(self.records()), data_hash=data_hash)
            )
        elif not is_done(record, settings):
            write_record(trial, record.reopened(settings))

    def _tell_what_is_left(self, known: dict[str, TrialRecord]) -> None:
        settings = self.config.tune
        done = sum(is_done(record, settings) for record in known.values())
        begun = f"; {done} done, {len(known) - done} begun" if known else ""
        seeds = f", {settings.repeats} seeds each" if settings.repeats > 1 else ""
        print(
            f"tune: {self.total} trials over {', '.join(settings.axes)}; {settings.search}, "
            f"{settings.scheduler}{seeds}, "
            f"compared at {budgets_words(settings)}{begun}"
        )


class _Watch(tune.Callback):
    """Lines of progress, metrics.jsonl, and how each trial ended; in the process of the sweep."""

    def __init__(self, runner: _Sweep, known: dict[str, TrialRecord]) -> None:
        self.runner = runner
        self.told = {(name, budget_of(rung)) for name, record in known.items() for rung in record.rungs}

    def on_trial_result(self, iteration, trials, trial, result, **info) -> None:
        name, record = self._record(trial)
        if "budget" not in result or (name, result["budget"]) in self.told:
            return
        self.told.add((name, result["budget"]))
        records, settings = self.runner.records(), self.runner.config.tune
        storage.write_text(
            storage.join(self.runner.config.run_folder, "tune", "metrics.jsonl"),
            metrics_lines(records.values(), settings),
        )
        rung = record.rung(result["budget"])
        said = budget_words(settings, result["budget"]) + (
            f" ({rung['clips']:,} clips)" if settings.budget != "clips" else ""
        )
        print(
            f"tune: {self._what(record)}: {said}, picture {rung['psnr_db']:.2f} dB, sound "
            f"{rung['mel_error_db']:.2f} dB off, "
            f"{settings.metric} {interval_words(judged(rung, settings))}"
        )

    def on_trial_complete(self, iteration, trials, trial, **info) -> None:
        name, record = self._record(trial)
        settings = self.runner.config.tune
        if record.status == RUNNING:
            status = FINISHED if record.budget >= settings.rungs[-1] else STOPPED
            self._write(trial, record.replace(status=status))
            stopped = f"stopped after {budget_words(settings, record.budget)}"
            print(f"tune: {self._what(record)}: {'the whole budget used' if status == FINISHED else stopped}")
        elif record.reason:
            print(f"tune: {self._what(record)}: {record.status}: {record.reason}")

    def on_trial_recover(self, iteration, trials, trial, **info) -> None:
        record = self._crashed(trial)
        limit = self.runner.config.tune.max_failures
        print(
            f"tune: {self._what(record)}: crashed: {record.reason}; tried again ({record.failures + 1} of "
            f"{limit})"
        )

    def on_trial_error(self, iteration, trials, trial, **info) -> None:
        record = self._crashed(trial)
        print(f"tune: {self._what(record)}: {record.status}: {record.reason}")

    def _crashed(self, trial) -> TrialRecord:
        """The record of a trial whose process is gone."""
        _, record = self._record(trial)
        if record.status == RUNNING:
            record = record.replace(
                status=CRASHED, reason="the trial's process ended without a word; was it out of memory?"
            )
            self._write(trial, record)
        return record

    def _record(self, trial) -> tuple[str, TrialRecord]:
        name = trial.custom_trial_name
        return name, read_record(self._folder(name))

    def _write(self, trial, record: TrialRecord) -> None:
        write_record(self._folder(trial.custom_trial_name), record)

    def _folder(self, name: str) -> str:
        return storage.join(trials_folder(self.runner.config), name)

    def _what(self, record: TrialRecord) -> str:
        return f"trial {record.number + 1} of {self.runner.total}, {record.id} ({describe(record.point)})"


def _check_prepared(config: Config) -> None:
    """Raises UserError if data.prepared names a folder without prepared data."""
    prepared = config.data.prepared
    if prepared and not storage.exists(storage.join(prepared, "manifest.json")):
        parent, _, name = prepared.rstrip("/").rpartition("/")
        command = "python ray_jobs/preprocess.py --config FILE" + (
            f" run_dir={parent}" if name == "data" else ", with that run's file"
        )
        raise UserError(
            f"data.prepared={prepared} holds no prepared data (no manifest.json); make it with: {command}; "
            "or name another run's data folder"
        )


def _check_measured(config: Config, results: dict) -> None:
    """Raises UserError if no trial was measured: the sweep has no result."""
    if results["best"] is None:
        reasons = [row["reason"] for row in results["trials"]]
        path = storage.join(config.run_folder, "tune", "results.csv")
        raise UserError(
            f"none of the {len(reasons)} trials could be measured, the first one because: {reasons[0]}; all "
            f"reasons are in {path}"
        )


def _name_of(trial) -> str:
    """Ray Tune's name of a trial: our id. A member of a population keeps its id when its settings change."""
    return trial.config["member"]["id"] if "member" in trial.config else trial.config["trial"]


def _driver(config: Config, data: _Data):
    """The function that Ray Tune runs for each trial, in a process of its own."""

    def drive(settings: dict) -> None:
        point = json.loads(settings["point"])
        name = data_name(config.tune, point)
        trial = make_trial(config, point, data_hash=data.hashes[name], data_folder=data.folders[name])

        def report(rung: dict, *, passed: bool) -> None:
            values = {"budget": budget_of(rung), "clips": rung["clips"], "score": score(rung, config.tune)}
            tune.report(values | {"passed": passed})

        run_trial(trial, rungs=config.tune.rungs, report=report)

    return drive


def _member_driver(config: Config, members: dict[str, Trial]):
    """The function that Ray Tune runs for each member of a population."""

    def drive(settings: dict) -> None:
        logging.getLogger("ray").setLevel(
            logging.WARNING
        )  # it would log every checkpoint, although these are only names of others
        run_member(config, members, run_trial)

    return drive


class _Halving(ASHAScheduler):
    """If a trial was once let past a rung, now or in an earlier run, it is not stopped there later."""

    def on_trial_result(self, tune_controller, trial, result: dict) -> str:
        action = super().on_trial_result(tune_controller, trial, result)
        return self.CONTINUE if result.get("passed") else action


def _scheduler(config: Config):
    settings = config.tune
    if settings.scheduler == "none" or len(settings.rungs) == 1:
        return FIFOScheduler()
    return _Halving(
        time_attr="budget",
        metric="score",
        mode="max",
        max_t=settings.rungs[-1],
        grace_period=settings.rungs[0],
        reduction_factor=settings.reduction_factor,
    )
