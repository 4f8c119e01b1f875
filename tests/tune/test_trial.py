"""One trial going from rung to rung, without training: what is on record is reported again, and a mistake is
recorded.
"""

import dataclasses
import math

import pytest

from proav import storage
from proav.errors import CheckpointError, UserError
from proav.train.engines import NonFiniteError
from proav.tune.record import (
    CRASHED,
    FAILED,
    FINISHED,
    RUNNING,
    STOPPED,
    TrialRecord,
    is_done,
    read_record,
    write_record,
)
from proav.tune.repeats import merge
from proav.tune.space import make_trial
from proav.tune.trial import run_trial
from proav.tune.trial_measure import copy_folder
from tests.tune.test_results import rung
from tests.tune.test_space import GROUPS, SCALES, sweep_config


def climb(folder, *, status, rungs, passed=0):
    """What a trial with this record reports, and its record afterwards; there is no data that it could train
    on.
    """
    config = sweep_config(f"run_dir={folder}")
    trial = make_trial(config, {SCALES: [1], GROUPS: 2}, data_hash="abc")
    record = TrialRecord.begin(trial, config.tune, number=0, data_hash="abc")
    write_record(
        trial, record.replace(status=status, rungs=[rung(clips, 10, 5) for clips in rungs], passed=passed)
    )
    told = []
    run_trial(
        trial,
        rungs=config.tune.rungs,
        report=lambda measured, *, passed: told.append((measured["clips"], passed)),
    )
    return told, read_record(trial.config.run_folder)


@pytest.mark.parametrize(
    ("status", "rungs"), [(FINISHED, [8, 16, 32]), (STOPPED, [8, 16]), (FAILED, [8]), (FAILED, [])]
)
def test_a_trial_that_is_done_is_reported_again_and_not_trained(tmp_path, status, rungs):
    told, record = climb(tmp_path, status=status, rungs=rungs)
    assert told == [(clips, True) for clips in rungs] and record.status == status


def test_a_trial_goes_on_where_it_was_and_a_mistake_is_its_reason(tmp_path):
    told, record = climb(tmp_path, status=RUNNING, rungs=[8, 16], passed=8)
    assert told == [
        (8, True),
        (16, False),
    ]  # the record has only the measurement at 16 clips: the scheduler must decide
    assert record.passed == 16 and record.clips == 16 and "no prepared data" in record.reason
    assert record.status == CRASHED and not is_done(record, sweep_config().tune)  # data can be made


def test_a_measurement_beyond_several_rungs_is_reported_once(tmp_path):
    told, _ = climb(tmp_path, status=FINISHED, rungs=[32])
    assert told == [(32, True)]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (NonFiniteError("the loss is not finite"), FAILED),
        (UserError("the disk is full; free some space, then run the same command again"), CRASHED),
        (CheckpointError("mdsa/checkpoints holds no whole checkpoint"), CRASHED),
    ],
)
def test_only_what_would_happen_again_is_not_tried_again(monkeypatch, tmp_path, error, status):
    def measure(of, **rung):
        raise error

    monkeypatch.setattr("proav.tune.trial.measure", measure)
    _, record = climb(tmp_path, status=RUNNING, rungs=[])  # it returns: Ray Tune does not start it again
    assert record.status == status and record.reason == str(error)
    assert is_done(record, sweep_config().tune) == (status == FAILED)
    folder = f"{tmp_path}/tune/trials/{record.id}"
    if status == CRASHED:  # the next run of the sweep trains it
        write_record(folder, record.reopened(sweep_config().tune))
        told, record, measured = trained(
            monkeypatch, tmp_path, record=dataclasses.asdict(read_record(folder))
        )
        assert len(told) == len(measured) == 3 and record.failures == 0


def test_a_copy_that_lacks_files_is_made_again(tmp_path):
    source, target = tmp_path / "run" / "latents", tmp_path / "trial" / "latents"
    for name in ("train/00.parquet", "train/01.parquet", "stats.json"):
        storage.write_text(f"{source}/{name}", name)
    copy_folder(str(source), str(target))
    assert (target / "train" / "01.parquet").read_text() == "train/01.parquet"
    (target / "stats.json").unlink()  # as if a remote copy had been cut off: the JSON files come last
    copy_folder(str(source), str(target))
    whole = {path: path.stat().st_mtime_ns for path in target.rglob("*") if path.is_file()}
    assert len(whole) == 3
    copy_folder(str(source), str(target))
    assert whole == {path: path.stat().st_mtime_ns for path in whole}


def trained(monkeypatch, folder, *words, record=None, crashes=0):
    """(what is reported, the record afterwards, (seed's number, clips, seconds) of each measurement) of a
    trial whose training takes no time; its first `crashes` measurements fail.
    """
    config = sweep_config(f"run_dir={folder}", *words)
    trial = make_trial(config, {SCALES: [1], GROUPS: 2}, data_hash="abc")
    begun = TrialRecord.begin(trial, config.tune, number=0, data_hash="abc")
    write_record(trial, begun.replace(**(record or {})))
    measured = []

    def measure(of, *, repeat, clips, seconds):
        measured.append((repeat, clips, seconds))
        if len(measured) <= crashes:
            raise RuntimeError("the machine is full")
        return rung(clips or int(10 * seconds), 10 + repeat, 5) | {"seed": repeat}

    monkeypatch.setattr("proav.tune.trial.measure", measure)
    told = []

    def start():
        run_trial(
            trial,
            rungs=config.tune.rungs,
            report=lambda one, *, passed: told.append((one["budget"], one["psnr_db"], passed)),
        )

    for _ in range(crashes):
        with pytest.raises(RuntimeError):
            start()
        assert read_record(trial.config.run_folder).status == CRASHED
    start()
    return told, read_record(trial.config.run_folder), measured


def test_a_trial_is_reported_by_the_mean_of_its_seeds(monkeypatch, tmp_path):
    told, record, measured = trained(monkeypatch, tmp_path, "tune.repeats=2")
    assert told == [(8, 10.5, False), (16, 10.5, False), (32, 10.5, False)]
    assert measured == [(seed, clips, None) for clips in (8, 16, 32) for seed in (0, 1)]
    assert [len(one["repeats"]) for one in record.rungs] == [2, 2, 2]


def test_seeds_that_are_missing_are_added(monkeypatch, tmp_path):
    known = {"rungs": [rung(8, 10, 5), merge([rung(16, 10, 5), rung(16, 11, 5)], budget=16)], "passed": 16}
    told, record, measured = trained(monkeypatch, tmp_path, "tune.repeats=2", record=known)
    assert measured == [(1, 8, None), (0, 32, None), (1, 32, None)]
    assert told == [(8, 10.5, True), (16, 10.5, True), (32, 10.5, False)]


def test_a_budget_in_seconds_trains_by_the_clock(monkeypatch, tmp_path):
    words = ("tune.budget=seconds", "tune.max_seconds=6", "tune.grace_seconds=3")
    told, record, measured = trained(monkeypatch, tmp_path, *words)
    assert measured == [(0, None, 3), (0, None, 6)] and [one["clips"] for one in record.rungs] == [30, 60]
    assert [budget for budget, *_ in told] == [3, 6]


def test_a_trial_whose_validation_clips_are_of_one_colour_blames_the_data(monkeypatch, tmp_path):
    nothing = {"psnr_db": math.nan, "mel_error_db": math.nan, "num_clips": 0}
    line = {"clips": 8, "loss": 1.0, "peak_memory_gib": 0.5, "device": "cpu"}
    summary = {"clips": 8, "step": 2, "seconds": 1.0, "checkpoint": ""}
    monkeypatch.setattr("proav.tune.trial_measure.train_stage", lambda config, stage: summary)
    monkeypatch.setattr("proav.tune.trial_measure._reconstruct", lambda config, checkpoint: nothing)
    monkeypatch.setattr("proav.tune.trial_measure.read_metrics", lambda folder: [line])
    told, record = climb(tmp_path, status=RUNNING, rungs=[])
    assert told == [] and record.status == FAILED
    assert "are of one colour" in record.reason and "learning_rate" not in record.reason


def test_a_trial_that_crashed_goes_on_and_the_crashes_are_counted(monkeypatch, tmp_path):
    told, record, measured = trained(monkeypatch, tmp_path, crashes=2)
    assert (
        record.status == RUNNING
        and record.failures == 2
        and record.failure == "RuntimeError: the machine is full"
    )
    assert len(measured) == 5 and [budget for budget, *_ in told] == [8, 16, 32]
    assert "the machine is full" in (tmp_path / "tune" / "trials" / record.id / "error.txt").read_text()
