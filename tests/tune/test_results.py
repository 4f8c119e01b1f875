"""What a sweep writes from the records of its trials: fronts, the best trial, and files that others read."""

import csv
import dataclasses
import json
import re

import pytest

from proav.config.reading import load_config
from proav.errors import UserError
from proav.tune.axes import grid_points
from proav.tune.plots import _height
from proav.tune.record import (
    CRASHED,
    FAILED,
    FINISHED,
    STOPPED,
    TrialRecord,
    is_done,
    read_records,
    schedule_of,
    write_record,
)
from proav.tune.repeats import merge
from proav.tune.results import write_results
from proav.tune.rows import best_row, front, make_rows, rungs_of
from proav.tune.space import check_sweep, data_points, make_trial, prepared_configs
from proav.tune.sweep_figures import HUES, look_of
from tests.tiny import tiny_config
from tests.tune.test_space import GROUPS, SCALES, sweep_config

DATA = {"hash": "abc", "splits": {"validation": {"sources": 1}}}


def rung(clips, psnr, error):
    common = {
        "step": clips // 4,
        "loss": 1.0,
        "num_clips": 3,
        "clips_per_second": 2.0,
        "peak_memory_gib": 0.5,
        "seconds": clips / 2,
        "device": "cpu",
    }
    return {"clips": clips, "psnr_db": psnr, "mel_error_db": error, **common}


def records_of(config):
    """Six trials: three saw 32 clips, one was stopped at 8, one failed, one crashed after its first rung."""
    measured = [
        (FINISHED, [rung(8, 10, 6), rung(32, 14, 4)]), (FINISHED, [rung(8, 11, 6), rung(32, 15, 5)]),
        (FINISHED, [rung(8, 12, 7), rung(32, 13.9, 4.5)]),
        (STOPPED, [rung(8, 13, 3)]), (FAILED, []), (CRASHED, [rung(8, 9, 9)]),
    ]  # fmt: skip
    records = {}
    for number, ((status, rungs), point) in enumerate(zip(measured, grid_points(config.tune), strict=True)):
        trial = make_trial(config, point, data_hash="abc")
        record = TrialRecord.begin(trial, config.tune, number=number, data_hash="abc")
        reason = "the loss is not finite" if status == FAILED else ""
        records[trial.id] = record.replace(status=status, rungs=rungs, reason=reason)
        write_record(trial, records[trial.id])
    return records


def test_trials_are_compared_at_equal_clips(tmp_path):
    config = sweep_config(f"run_dir={tmp_path}")
    rows = make_rows(config, records_of(config).values())
    assert rungs_of(rows) == [8, 32] and [row.clips for row in rows] == [32, 32, 32, 8, 8, 0]
    assert [row.psnr_db for row in front(rows, 8)] == [
        13
    ]  # at 8 clips the stopped trial was better than the others
    assert sorted(row.psnr_db for row in front(rows, 32)) == [14, 15]
    best = best_row(rows)
    assert best is rows[0] and best.score == 10 and best.pareto and best.point == {SCALES: [1], GROUPS: 2}
    assert [row.pareto for row in rows] == [True, True, False, False, False, False]
    assert len({row.parameters for row in rows}) == 3  # one number of parameters for each number of scales


def test_weights_of_the_score_choose_the_best(tmp_path):
    config = sweep_config(f"run_dir={tmp_path}", "tune.sound_weight=0.1")
    assert best_row(make_rows(config, records_of(config).values())).psnr_db == 15


def test_every_file_is_there_and_says_the_same(tmp_path, capsys):
    config = sweep_config(f"run_dir={tmp_path}/run", "mdsa.train.num_clips=64")
    results = write_results(config, records_of(config), data=DATA)
    folder = tmp_path / "run" / "tune"
    assert json.loads((folder / "results.json").read_text()) == results
    assert (
        results["protocol"]["data"]["hash"] == "abc"
        and "PSNR" in results["protocol"]["score"]
        and results["protocol"]["rungs_clips"] == [8, 16, 32]
    )
    with open(folder / "results.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert (
        [row["trial"] for row in table] == [row["trial"] for row in results["trials"]]
        and table[0][SCALES] == "[1]"
        and table[0]["score"] == "10.0"
    )
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["clips"] for line in lines] == [8] * 5 + [32] * 3 and {
        "clips",
        "step",
        "loss",
        "clips_per_second",
        "seconds",
    } <= set(lines[0])
    assert (folder / "pareto.png").read_bytes().startswith(b"\x89PNG")
    page = (folder / "report.html").read_text()
    assert "the loss is not finite" in page and "https://" not in page and page.count("<svg") == 6
    said = capsys.readouterr().out
    assert (
        "2 of 6 trials" not in said
        and "1 of 6 trials did not end by themselves" in said
        and "failed: the loss is not finite" in said
    )


def test_numbers_that_are_shown_have_columns(tmp_path, capsys):
    lone, leak = "reconstruction.psnr_lone_db", "reconstruction.psnr_leak_db"
    config = sweep_config(f"run_dir={tmp_path}", "tune.repeats=2", f"tune.show=[{lone},{leak}]")
    trial = make_trial(config, next(grid_points(config.tune)), data_hash="abc")
    seeds = [rung(32, 14, 4) | {"numbers": {lone: value}} for value in (13.0, 13.5)]
    record = TrialRecord.begin(trial, config.tune, number=0, data_hash="abc")
    record = record.replace(status=FINISHED, rungs=[merge(seeds, budget=32)])
    write_results(config, {trial.id: record}, data=DATA)
    with open(tmp_path / "tune" / "results.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert row[lone] == "13.25" and row[leak] == ""  # not measured: an empty cell
    said = capsys.readouterr().out
    assert "psnr_lone_db" in said and "13.250 +- 3.177" in said  # 12.706 * 0.354 / sqrt(2)
    assert "psnr_lone_db" in (tmp_path / "tune" / "report.html").read_text()


def yardsticks_of(values, **changes):
    pictures = {"psnr_linear_planes_db": 23.81, "psnr_cosine_db": 24.86}
    sounds = {"mel_error_linear_planes_db": 2.03, "mel_error_cosine_db": 1.61}
    own = {"psnr_mean_colour_db": 16.26, "psnr_temporal_mean_db": 23.96, "mel_error_mean_mel_db": 4.88}
    return {
        "values_per_stream": {"video": values, "audio": values},
        "hash": "h",
        **pictures,
        **sounds,
        **own,
        **changes,
    }


def test_yardsticks_stand_once_beside_the_table(tmp_path, capsys):
    config = sweep_config(f"run_dir={tmp_path}")
    both = [yardsticks_of(3_072), yardsticks_of(6_144, psnr_cosine_db=26.17)]
    results = write_results(config, records_of(config), data=DATA, yardsticks=both)
    stored = json.loads((tmp_path / "tune" / "results.json").read_text())
    assert results["yardsticks"] == both == stored["yardsticks"]
    said = capsys.readouterr().out
    assert "comparison, linear planes, 3,072 numbers a stream: 23.81 dB PSNR, 2.03 dB log-mel error" in said
    assert "cosine transform, 6,144 numbers a stream: 26.17 dB PSNR" in said
    assert "temporal mean picture: 23.96 dB PSNR\n" in said
    assert said.count("mean colour, mean mel: 16.26 dB PSNR, 4.88 dB log-mel error") == 1
    page = (tmp_path / "tune" / "report.html").read_text()
    assert "Beside them" in page
    assert page.count("24.86") == page.count("26.17") == page.count("16.26") == 1
    write_results(config, records_of(config), data=DATA, quiet=True)
    assert "Beside them" not in (tmp_path / "tune" / "report.html").read_text()


def test_best_yaml_is_a_configuration_for_train(tmp_path):
    config = sweep_config(f"run_dir={tmp_path}/run", "mdsa.train.num_clips=64")
    write_results(config, records_of(config), data=DATA, quiet=True)
    path = tmp_path / "run" / "tune" / "best.yaml"
    best = load_config(str(path))
    assert best.mdsa.multi_scale.scales == (1,) and best.mdsa.train.num_clips == 64 and not best.tune.axes
    assert best.run_folder == f"{tmp_path}/run-best" and best.data_folder == f"{tmp_path}/run/data"
    assert path.read_text().startswith("# The best of the sweep tiny")


def test_best_yaml_names_the_data_that_the_best_trial_trained_on(tmp_path):
    words = (f"run_dir={tmp_path}/run", "data.sources=[clips]", "tune.grace_clips=8", "tune.max_clips=32")
    config = tiny_config("tune.axes.data.fit=[pad,crop]", *words)
    prepared = prepared_configs(config, data_points(config.tune))
    folders = {name: own.data_folder for name, own in prepared.items()}
    records = {}
    for number, point in enumerate(data_points(config.tune)):
        trial = make_trial(config, point, data_hash="abc")
        record = TrialRecord.begin(trial, config.tune, number=number, data_hash="abc")
        records[trial.id] = record.replace(status=FINISHED, rungs=[rung(32, 10 + number, 5)])
    write_results(config, records, data=DATA, quiet=True, data_folders=folders)
    best = load_config(str(tmp_path / "run" / "tune" / "best.yaml"))
    assert best.data.fit == "crop"
    assert best.data_folder == folders['{"data.fit": "crop"}'] != folders['{"data.fit": "pad"}']


def test_best_yaml_follows_settings_that_change_no_result(tmp_path):
    width = sweep_config().stdit.width
    words = (f"run_dir={tmp_path}/run", f"stdit.width={2 * width}")
    for config in (sweep_config(words[0]), sweep_config(*words)):
        write_results(config, records_of(config), data=DATA, quiet=True)
        assert load_config(str(tmp_path / "run" / "tune" / "best.yaml")).stdit.width == config.stdit.width
    (tmp_path / "run").rename(tmp_path / "moved")
    moved = sweep_config(f"run_dir={tmp_path}/moved")
    write_results(moved, records_of(moved), data=DATA, quiet=True)
    best = load_config(str(tmp_path / "moved" / "tune" / "best.yaml"))
    assert best.run_folder == f"{tmp_path}/moved-best" and best.data_folder == f"{tmp_path}/moved/data"
    assert f"{tmp_path}/moved/tune/best.yaml" in (tmp_path / "moved" / "tune" / "report.html").read_text()


@pytest.mark.parametrize(
    "name", ["best.yaml", "results.csv", "metrics.jsonl", "results.json", "pareto.png", "report.html"]
)
def test_a_deleted_file_is_made_again(tmp_path, name):
    config = sweep_config(f"run_dir={tmp_path}")
    write_results(config, records_of(config), data=DATA, quiet=True)
    path = tmp_path / "tune" / name
    before = path.read_bytes()
    path.unlink()
    write_results(config, records_of(config), data=DATA, quiet=True)
    assert path.read_bytes() == before or name == "report.html"


def test_nothing_is_rewritten_where_nothing_changed(tmp_path):
    config = sweep_config(f"run_dir={tmp_path}")
    write_results(config, records_of(config), data=DATA, quiet=True)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "tune").iterdir() if path.is_file()}
    write_results(config, records_of(config), data=DATA, quiet=True)
    assert before == {path: path.stat().st_mtime_ns for path in before} and len(before) == 6


STEPS, SHIFT = "generate.steps", "generate.schedule_shift"


def null_sweep(folder):
    """A sweep with a value null, and an axis that exists in two of its three trials; their records."""
    shift = f"{SHIFT}: {{values: [null, 3], when: {{{STEPS}: 2}}}}"
    words = ("tune.stage=stdit", "tune.grace_clips=8", "tune.max_clips=32", "mdsa.train.num_clips=8")
    config = tiny_config(f"run_dir={folder}", f"tune.axes={{{STEPS}: [null, 2], {shift}}}", *words)
    check_sweep(config)
    records = {}
    for number, point in enumerate(grid_points(config.tune)):
        trial = make_trial(config, point, data_hash="abc")
        record = TrialRecord.begin(trial, config.tune, number=number, data_hash="abc")
        records[trial.id] = record.replace(status=FINISHED, rungs=[rung(8, 9 + number, 6)])
    return config, records


def test_null_is_a_value_like_others(tmp_path):
    config, records = null_sweep(tmp_path)
    assert [record.point for record in records.values()] == [
        {STEPS: None},
        {STEPS: 2, SHIFT: None},
        {STEPS: 2, SHIFT: 3},
    ]
    write_results(config, records, data=DATA, quiet=True)
    page = (tmp_path / "tune" / "report.html").read_text()
    values = page[page.index(f"<h3>{SHIFT}</h3>") :]
    counts = re.findall(r">(null|3)</t[dh]>.*?>(\d+)<", values[: values.index("</table>")], re.DOTALL)
    assert counts == [("null", "1"), ("3", "1")]  # the first trial has no schedule_shift
    assert _height(config.tune, STEPS, {STEPS: None}) == 0 and _height(config.tune, SHIFT, {STEPS: 2}) is None


def test_a_marker_of_an_axis_that_does_not_exist_has_no_colour_and_no_shape_of_its_own():
    axes = {"a": [1, 2], "b": [1, 2]}
    assert look_of({"a": 1, "b": 2}, axes) == (HUES[0], "s")
    assert look_of({"b": 2}, axes) == ("", "s") and look_of({"a": 2}, axes) == (HUES[1], "o")
    assert look_of({}, {"b": [1], "a": ()}) == ("", "o")


def test_a_page_that_cannot_be_made_leaves_the_numbers_and_is_made_later(monkeypatch, tmp_path):
    config = sweep_config(f"run_dir={tmp_path}")
    records = records_of(config)
    write_results(config, dict(list(records.items())[:1]), data=DATA, quiet=True)

    def fail(*arguments):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr("proav.tune.results.write_page", fail)
        with pytest.raises(MemoryError):
            write_results(config, records, data=DATA, quiet=True)
    folder = tmp_path / "tune"
    assert len(json.loads((folder / "results.json").read_text())["trials"]) == 6
    assert len((folder / "results.csv").read_text().splitlines()) == 7 and (folder / "best.yaml").exists()
    write_results(config, records, data=DATA, quiet=True)
    assert "6 trials" in (folder / "report.html").read_text()  # not the page of one trial


@pytest.mark.parametrize(
    ("last", "said"), [(10, "that had 10 s of training: "), (60, "that had the whole budget: ")]
)
def test_the_page_says_the_whole_budget_only_if_it_was_used(tmp_path, last, said):
    config = sweep_config(
        f"run_dir={tmp_path}", "tune.budget=seconds", "tune.max_seconds=60", "tune.grace_seconds=10"
    )
    records = records_of(config)
    records = {
        name: record.replace(rungs=[one | {"budget": last} for one in record.rungs[:1]])
        for name, record in records.items()
    }
    write_results(config, records, data=DATA, quiet=True)
    assert said in (tmp_path / "tune" / "report.html").read_text()


def test_a_sweep_of_which_nothing_is_left_but_failures_has_a_page(tmp_path):
    config = sweep_config(f"run_dir={tmp_path}")
    records = {name: record.replace(status=FAILED, rungs=[]) for name, record in records_of(config).items()}
    results = write_results(config, records, data=DATA)
    assert (
        results["best"] is None and "Nothing was measured" in (tmp_path / "tune" / "report.html").read_text()
    )
    assert not (tmp_path / "tune" / "best.yaml").exists()


def test_a_stopped_trial_stays_stopped_only_under_its_schedule():
    record = TrialRecord(
        id="t",
        point={},
        data_hash="abc",
        number=0,
        status=STOPPED,
        schedule=schedule_of(sweep_config().tune),
        rungs=[rung(8, 1, 1)],
    )
    assert is_done(record, sweep_config().tune)
    assert not is_done(record, sweep_config("tune.scheduler=none").tune)
    finished = record.replace(status=FINISHED, rungs=[rung(32, 1, 1)])
    assert is_done(finished, sweep_config().tune) and not is_done(
        finished, sweep_config("tune.max_clips=64").tune
    )


def test_records_come_back_as_they_were_and_damage_is_reported(tmp_path):
    config = sweep_config(f"run_dir={tmp_path}")
    records = records_of(config)
    folder = tmp_path / "tune" / "trials"
    assert {name: dataclasses.asdict(record) for name, record in read_records(str(folder)).items()} == {
        name: dataclasses.asdict(record) for name, record in records.items()
    }
    (folder / next(iter(records)) / "trial.json").write_text("{")
    with pytest.raises(UserError, match="delete .* to run that trial anew"):
        read_records(str(folder))
