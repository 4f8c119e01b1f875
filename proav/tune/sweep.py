"""Runs a sweep: Ray Tune starts trials, compares them at each rung and stops the weaker ones; what they reach is in their records.

A sweep goes on from the records alone: done trials are replayed without training, cut-off ones go on from their checkpoint. Ray Tune's own
files (<run_dir>/.ray/tune) are only scaffolding and are made anew each time.
"""

import json
import logging
import os

from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler

from proav import storage
from proav.config import Config
from proav.data.feeds.feed import evaluation_windows
from proav.data.store.shards import SegmentStore
from proav.errors import Stopped, UserError
from proav.on_ray.resources import largest_resources
from proav.train.worker import plan_stage
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
from proav.tune.results import metrics_lines, write_results
from proav.tune.room import concurrent_trials
from proav.tune.search import OptunaPoints, PlannedPoints, Points, TrialSearcher
from proav.tune.space import (
    Point,
    Trial,
    check_sweep,
    describe,
    make_trial,
    num_trials,
    planned_points,
    trials_folder,
)
from proav.tune.trial import run_trial
from proav.tune.yardsticks import sweep_yardsticks

ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # CSV, JSON and TensorBoard files that repeat the records
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial that fails before its first rung reports nothing
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the job as it ends the others; nothing is lost
    "RAY_AIR_NEW_OUTPUT": "0",  # the older output is the one that can be silent
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # a failed trial is a line here and a row of the table
}
AT_HEAD = {"node:__internal_head__": 0.001}
"""What a trial's own process holds: a place beside Ray's head, which is never a spot node, and no CPU, so that its workers get them all."""


def sweep(config: Config) -> dict:
    """Runs what is left of the sweep on the Ray that is initialised, writes <run_dir>/tune/ and returns the results (`results.json`).

    Raises UserError before anything starts (wrong axes or values, no prepared data, Optuna missing), and in the end where every trial failed.
    """
    check_sweep(config)
    _check_prepared(config)
    plan_stage(config, "mdsa")
    store = SegmentStore(config.data_folder)
    evaluation_windows(store, config, split=config.evaluate.split, max_clips=config.evaluate.max_clips)
    runner = _Sweep(config, store.manifest["hash"])
    if not runner.is_finished():
        runner.run()
        records = runner.records()
        yardsticks = sweep_yardsticks(config, records.values())
        results = write_results(config, records, data=store.manifest, yardsticks=yardsticks)
        _check_measured(config, results)
        return results
    records = runner.records()
    yardsticks = sweep_yardsticks(config, records.values())
    results = write_results(config, records, data=store.manifest, yardsticks=yardsticks, quiet=True)
    _check_measured(config, results)
    print(
        f"tune: done already, {len(results['trials'])} trials; {storage.join(config.run_folder, 'tune', 'report.html')}"
    )
    return results


class _Sweep:
    """One sweep and the records of its trials."""

    def __init__(self, config: Config, data_hash: str) -> None:
        self.config, self.data_hash = config, data_hash
        self.total = num_trials(config.tune)

    def trial(self, point: Point) -> Trial:
        return make_trial(self.config, point, data_hash=self.data_hash)

    def records(self) -> dict[str, TrialRecord]:
        """Of this sweep's trials: other settings or other data leave other ids in the same folder. By id, in the order in which they began."""
        found = {}
        planned = (
            None
            if self.config.tune.search == "optuna"
            else {self.trial(point).id for point in planned_points(self.config.tune)}
        )
        for name, record in read_records(trials_folder(self.config)).items():
            if planned is not None:
                belongs = name in planned
            else:
                belongs = self._is_on_the_axes(record.point) and self.trial(record.point).id == name
            if belongs:
                found[name] = record
        return found

    def is_finished(self) -> bool:
        return sum(is_done(record, self.config.tune) for record in self.records().values()) >= self.total

    def run(self) -> None:
        known = self.records()
        self._tell_what_is_left(known)
        at_a_time, notes = concurrent_trials(self.config, largest_resources())
        print(*notes, sep="\n", end="\n" if notes else "")
        for name in ENVIRONMENT:
            os.environ.setdefault(name, ENVIRONMENT[name])
        logging.getLogger("ray.tune").setLevel(
            logging.CRITICAL
        )  # it tells of failed trials too, which the lines here do
        folder = storage.join(self.config.run_folder, ".ray")
        storage.delete_folder(storage.join(folder, "tune"))
        filesystem, path = storage.open_filesystem(folder)
        tuner = tune.Tuner(
            tune.with_resources(_driver(self.config, self.data_hash), tune.PlacementGroupFactory([AT_HEAD])),
            tune_config=tune.TuneConfig(
                search_alg=TrialSearcher(self._points(known), self._begin),
                scheduler=_scheduler(self.config),
                num_samples=self.total,
                max_concurrent_trials=at_a_time,
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=path,
                storage_filesystem=filesystem if storage.is_remote(folder) else None,
                callbacks=[_Watch(self, known)],
                verbose=0,
            ),
        )
        try:
            tuner.fit()
        except KeyboardInterrupt:  # Ray Tune takes SIGINT while it runs, and raises this
            kept = "finished rungs are kept: run the same command again to go on"
            raise Stopped(f"tune: stopped; {kept}") from None

    def _points(self, known: dict[str, TrialRecord]) -> Points:
        """Known points first: their measurements are there at once, for scheduler and sampler to compare with."""
        begun = sorted(
            known.values(), key=lambda record: (not is_done(record, self.config.tune), record.number)
        )
        if self.config.tune.search == "optuna":
            return OptunaPoints(self.config.tune, [record.point for record in begun])
        rest = [point for point in planned_points(self.config.tune) if self.trial(point).id not in known]
        useful = [record.point for record in begun if record.rungs or not is_done(record, self.config.tune)]
        return PlannedPoints(useful + rest)

    def _begin(self, point: Point) -> Trial:
        """The trial at a point with its record on disk; a record that is not done is opened again."""
        trial = self.trial(point)
        record = read_record(trial.config.run_folder)
        if record is None:
            write_record(
                trial,
                TrialRecord.begin(
                    trial, self.config.tune, number=len(self.records()), data_hash=self.data_hash
                ),
            )
        elif not is_done(record, self.config.tune):
            write_record(trial, record.reopened(self.config.tune))
        return trial

    def _is_on_the_axes(self, point: Point) -> bool:
        axes = self.config.tune.axes
        return list(point) == list(axes) and all(value in axes[key] for key, value in point.items())

    def _tell_what_is_left(self, known: dict[str, TrialRecord]) -> None:
        settings = self.config.tune
        done = sum(is_done(record, settings) for record in known.values())
        rungs = ", ".join(f"{clips:,}" for clips in settings.rungs)
        begun = f"; {done} done, {len(known) - done} begun" if known else ""
        print(
            f"tune: {self.total} trials over {', '.join(settings.axes)}; {settings.search}, {settings.scheduler}, compared at {rungs} clips{begun}"
        )


class _Watch(tune.Callback):
    """Lines of progress, metrics.jsonl, and how each trial ended; in the process of the sweep."""

    def __init__(self, runner: _Sweep, known: dict[str, TrialRecord]) -> None:
        self.runner = runner
        self.told = {(name, rung["clips"]) for name, record in known.items() for rung in record.rungs}

    def on_trial_result(self, iteration, trials, trial, result, **info) -> None:
        name, record = self._record(trial)
        if "clips" not in result or (name, result["clips"]) in self.told:
            return
        self.told.add((name, result["clips"]))
        records = self.runner.records()
        storage.write_text(
            storage.join(self.runner.config.run_folder, "tune", "metrics.jsonl"),
            metrics_lines(records.values(), self.runner.config.tune),
        )
        rung = record.rung(result["clips"])
        print(
            f"tune: {self._what(record)}: {rung['clips']:,} clips, picture {rung['psnr_db']:.2f} dB, sound {rung['mel_error_db']:.2f} dB off, "
            f"score {result['score']:.3f}"
        )

    def on_trial_complete(self, iteration, trials, trial, **info) -> None:
        name, record = self._record(trial)
        settings = self.runner.config.tune
        if record.status == RUNNING:
            status = FINISHED if record.clips >= settings.max_clips else STOPPED
            self._write(trial, record.replace(status=status))
            print(
                f"tune: {self._what(record)}: {'all clips seen' if status == FINISHED else f'stopped after {record.clips:,} clips'}"
            )
        elif record.reason:
            print(f"tune: {self._what(record)}: {record.status}: {record.reason}")

    def on_trial_error(self, iteration, trials, trial, **info) -> None:
        _, record = self._record(trial)
        if record.status == RUNNING:
            record = record.replace(
                status=CRASHED, reason="the trial's process ended without a word; was it out of memory?"
            )
            self._write(trial, record)
        print(f"tune: {self._what(record)}: {record.status}: {record.reason}")

    def _record(self, trial) -> tuple[str, TrialRecord]:
        name = trial.config["trial"]
        return name, read_record(storage.join(trials_folder(self.runner.config), name))

    def _write(self, trial, record: TrialRecord) -> None:
        write_record(self.runner.trial(json.loads(trial.config["point"])), record)

    def _what(self, record: TrialRecord) -> str:
        return f"trial {record.number + 1} of {self.runner.total}, {record.id} ({describe(record.point)})"


def _check_prepared(config: Config) -> None:
    """Raises UserError where the data of another run, which a sweep as a rule trains on, is not there."""
    prepared = config.data.prepared
    if prepared and not storage.exists(storage.join(prepared, "manifest.json")):
        parent, _, name = prepared.rstrip("/").rpartition("/")
        command = "python ray_jobs/preprocess.py --config FILE" + (
            f" run_dir={parent}" if name == "data" else ", with that run's file"
        )
        raise UserError(
            f"data.prepared={prepared} holds no prepared data (no manifest.json); make it with: {command}; or name another run's data folder"
        )


def _check_measured(config: Config, results: dict) -> None:
    """Raises UserError where no trial was measured: the sweep has no result."""
    if results["best"] is None:
        reasons = [row["reason"] for row in results["trials"]]
        path = storage.join(config.run_folder, "tune", "results.csv")
        raise UserError(
            f"none of the {len(reasons)} trials could be measured, the first one because: {reasons[0]}; all reasons are in {path}"
        )


def _driver(config: Config, data_hash: str):
    """What Ray Tune runs for each trial, in a process of its own."""

    def drive(settings: dict) -> None:
        trial = make_trial(config, json.loads(settings["point"]), data_hash=data_hash)

        def report(rung: dict, *, passed: bool) -> None:
            tune.report({"clips": rung["clips"], "score": score(rung, config.tune), "passed": passed})

        run_trial(trial, rungs=config.tune.rungs, report=report)

    return drive


class _Halving(ASHAScheduler):
    """ASHA that does not think again about a trial that it, or the run before the interruption, has let go on."""

    def on_trial_result(self, tune_controller, trial, result: dict) -> str:
        action = super().on_trial_result(tune_controller, trial, result)
        return self.CONTINUE if result.get("passed") else action


def _scheduler(config: Config):
    settings = config.tune
    if settings.scheduler == "none" or len(settings.rungs) == 1:
        return FIFOScheduler()
    return _Halving(
        time_attr="clips", metric="score", mode="max",
        max_t=settings.max_clips, grace_period=settings.rungs[0], reduction_factor=settings.reduction_factor,
    )  # fmt: skip
