"""One trial going from rung to rung, where that needs no training: what is on record is told again, and a mistake is written down."""

import pytest

from proav.tune.record import FAILED, FINISHED, RUNNING, STOPPED, TrialRecord, read_record, write_record
from proav.tune.space import make_trial
from proav.tune.trial import run_trial
from tests.tune.test_results import rung
from tests.tune.test_space import GROUPS, SCALES, sweep_config


def climb(folder, *, status, rungs, passed=0):
    """What a trial with this record reports, and its record afterwards; there is no data that it could train on."""
    config = sweep_config(f"run_dir={folder}")
    trial = make_trial(config, {SCALES: [1], GROUPS: 2}, data_hash="abc")
    record = TrialRecord.begin(trial, config.tune, number=0, data_hash="abc")
    write_record(trial, record.replace(status=status, rungs=[rung(clips, 10, 5) for clips in rungs], passed=passed))
    told = []
    run_trial(trial, rungs=config.tune.rungs, report=lambda measured, *, passed: told.append((measured["clips"], passed)))
    return told, read_record(trial.config.run_folder)


@pytest.mark.parametrize(("status", "rungs"), [(FINISHED, [8, 16, 32]), (STOPPED, [8, 16]), (FAILED, [8]), (FAILED, [])])
def test_a_trial_that_is_done_is_told_again_and_not_trained(tmp_path, status, rungs):
    told, record = climb(tmp_path, status=status, rungs=rungs)
    assert told == [(clips, True) for clips in rungs] and record.status == status


def test_a_trial_goes_on_where_it_was_and_a_mistake_is_its_reason(tmp_path):
    told, record = climb(tmp_path, status=RUNNING, rungs=[8, 16], passed=8)
    assert told == [(8, True), (16, False)]  # of 16 clips nothing is known but the measurement: the scheduler has to say
    assert record.passed == 16 and record.status == FAILED and "no prepared data" in record.reason and record.clips == 16


def test_a_measurement_beyond_several_rungs_is_told_once(tmp_path):
    told, _ = climb(tmp_path, status=FINISHED, rungs=[32])
    assert told == [(32, True)]
