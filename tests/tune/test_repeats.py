"""Seeds of a trial: mean and interval, what they are merged to, and the configurations that they train."""

import math
import random
from statistics import mean, stdev

import pytest

from proav.tune.record import FINISHED, TrialRecord, is_done, schedule_of
from proav.tune.repeats import STUDENT_95, interval, interval_words, judged, merge, repeat_config
from proav.tune.results import write_results
from proav.tune.rows import best_row, make_rows, rivals_of
from proav.tune.space import make_trial
from tests.tune.test_results import DATA, rung
from tests.tune.test_space import GROUPS, SCALES, sweep_config


def test_the_interval_is_students():
    values = [1.0, 2.0, 4.0]
    found = interval(values)
    half = 4.303 * stdev(values) / math.sqrt(3)
    assert found.mean == mean(values) and found.low == found.mean - half and found.high == found.mean + half
    assert interval_words(found, 2) == f"2.33 +- {half:.2f}"
    alone = interval([1.5])
    assert alone.mean == 1.5 and alone.low is None and alone.half is None and interval_words(alone) == "1.500"


def test_the_quantiles_are_those_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    assert [round(float(stats.t.ppf(0.975, degrees)), 3) for degrees in range(1, 31)] == list(STUDENT_95)


def test_it_holds_the_mean_as_often_as_it_says():
    draw = random.Random(0)
    held = 0
    for _ in range(2000):
        found = interval([draw.gauss(3, 2) for _ in range(4)])
        held += found.low <= 3 <= found.high
    assert abs(held / 2000 - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 2000)


def test_a_rung_is_the_mean_of_its_seeds():
    merged = merge([rung(8, 10, 6) | {"seed": 0}, rung(8, 12, 5) | {"seed": 1}], budget=8)
    assert (
        merged["psnr_db"] == 11
        and merged["mel_error_db"] == 5.5
        and merged["clips"] == 8
        and merged["budget"] == 8
    )
    assert merged["seconds"] == 8  # 4 each
    assert [one["seed"] for one in merged["repeats"]] == [0, 1]
    tune = sweep_config("tune.repeats=2").tune
    assert judged(merged, tune).mean == 5.5 and judged(merged, tune).half == pytest.approx(12.706 * 1.5 / 1)
    assert judged(merged, sweep_config().tune).mean == 4  # fewer seeds than were measured: the first ones


def test_each_seed_trains_in_a_folder_of_its_own():
    trial = make_trial(sweep_config("run_dir=/r", "seed=7"), {SCALES: [1], GROUPS: 2}, data_hash="a")
    first, third = repeat_config(trial.config, 0), repeat_config(trial.config, 2)
    assert (
        first == trial.config and third.seed == 9 and third.run_folder == f"{trial.config.run_folder}/seed-9"
    )
    assert third.data_folder == first.data_folder and third.mdsa == first.mdsa


def test_more_seeds_make_a_finished_trial_unfinished():
    one, two = (
        sweep_config("tune.scheduler=none").tune,
        sweep_config("tune.scheduler=none", "tune.repeats=2").tune,
    )
    record = TrialRecord(
        id="t",
        point={},
        data_hash="a",
        number=0,
        status=FINISHED,
        schedule=schedule_of(one),
        rungs=[rung(32, 1, 1)],
    )
    assert is_done(record, one) and not is_done(record, two)
    both = record.replace(rungs=[merge([rung(32, 1, 1), rung(32, 2, 1)], budget=32)])
    assert is_done(both, two) and is_done(both, one)


def test_trials_whose_intervals_meet_are_told_apart_from_others(tmp_path, capsys):
    config = sweep_config(
        f"run_dir={tmp_path}",
        "tune.repeats=2",
        f"tune.axes.{SCALES}=[[1],[1,2],[1,2,4]]",
        f"tune.axes.{GROUPS}=[2]",
    )
    records = {}
    for number, (scales, pictures) in enumerate(
        [([1], (14.0, 14.2)), ([1, 2], (14.1, 14.5)), ([1, 2, 4], (9.0, 9.1))]
    ):
        trial = make_trial(config, {SCALES: scales, GROUPS: 2}, data_hash="a")
        rungs = [merge([rung(32, psnr, 4) for psnr in pictures], budget=32)]
        record = TrialRecord.begin(trial, config.tune, number=number, data_hash="a")
        records[trial.id] = record.replace(status=FINISHED, rungs=rungs)
    rows = make_rows(config, records.values())
    best = best_row(rows)
    assert (
        best.point[SCALES] == [1, 2]
        and best.num_seeds == 2
        and best.metric_low < best.metric < best.metric_high
    )
    assert [row.point[SCALES] for row in rivals_of(rows, best)] == [[1]]
    results = write_results(config, records, data=DATA)
    said, page = capsys.readouterr().out, (tmp_path / "tune" / "report.html").read_text()
    assert (
        "score +- 95 %" in said
        and "10.300 +- 2.541" in said
        and "its interval overlaps those of 1 others" in said
    )
    assert "95 % interval" in page and results["trials"][0]["metric_low"] == best.metric_low
    assert "over 2 seeds" in (tmp_path / "tune" / "best.yaml").read_text()
