"""A whole sweep on real Ray, killed and resumed.

Nothing is trained twice, a failure is a row, and all resources are free afterwards.
"""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray

from proav.config import Config
from proav.config.reading import config_to_yaml
from proav.errors import UserError
from proav.tune.sweep import sweep
from tests.resources import wait_until_free
from tests.tiny import tiny_config
from tests.train.tiny_run import write_segments

ROOT = Path(__file__).parents[2]
RATE = "mdsa.train.learning_rate"
WORDS = (
    "evaluate.split=train", "evaluate.max_clips=6", "train.engine=torch",
    "mdsa.loss.adversarial_start_clips=1000", "mdsa.train.max_failures=0",
    # two trials at a time would each hold one of two CPUs and wait for the other's
    "mdsa.train.loader=actors", "mdsa.train.loader_workers=1",
    f"tune.axes.{RATE}=[1.0e-3,1.0e+30]", "tune.num_trials=2", "tune.grace_clips=8", "tune.max_clips=16",
)  # fmt: skip
pytestmark = pytest.mark.ray


def killed_sweep(folder: Path, environment: dict[str, str]) -> tuple[Config, dict]:
    """(settings, record of a measured trial) of a sweep that was killed before its end."""
    for attempt in range(3):
        config = tiny_config(f"run_dir={folder}/run{attempt}", *WORDS)
        write_segments(config)
        (folder / "sweep.yaml").write_text(config_to_yaml(config))
        tune = Path(config.run_folder) / "tune"
        measured = kill_after_first_rung(folder / "sweep.yaml", tune / "trials", environment)
        wait_until_free()  # the cluster takes back what the killed driver held
        if not (tune / "results.json").exists():
            return config, measured
    raise AssertionError("each sweep had ended before it was killed")


def kill_after_first_rung(path: Path, trials: Path, environment: dict[str, str]) -> dict:
    """Starts the job, kills it when a trial has its first measurement, and returns that trial's record."""
    command = [sys.executable, str(ROOT / "ray_jobs" / "tune.py"), "--config", str(path)]
    job = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline:
            assert not job.poll(), job.stdout.read().decode()  # 0: it has ended before it was seen
            for record in map(json.loads, (file.read_text() for file in trials.glob("*/trial.json"))):
                if record["rungs"]:
                    return record
            time.sleep(0.2)
        raise AssertionError("no trial was measured in four minutes")
    finally:
        job.send_signal(signal.SIGKILL)
        job.communicate()


def swept(run_dir: Path, *words: str) -> dict:
    """The results of a sweep by these settings. All resources are free afterwards."""
    config = tiny_config(f"run_dir={run_dir}", *WORDS, *words)
    write_segments(config)
    results = sweep(config)
    wait_until_free()
    return results


@pytest.mark.slow
def test_a_killed_sweep_goes_on_and_leaves_nothing_behind(tmp_path, on_ray_local, capfd):
    config, measured = killed_sweep(tmp_path, on_ray_local)
    run = Path(config.run_folder)
    folder = run / "tune"
    results = sweep(config)
    wait_until_free()
    assert {group["state"] for group in ray.util.placement_group_table().values()} <= {"REMOVED"}
    rows = {row["trial"]: row for row in results["trials"]}
    assert len(rows) == 2
    for row in rows.values():
        if row["point"][RATE] == 1e30:
            assert row["status"] == "failed" and "not finite" in row["reason"]
        else:
            assert row["status"] == "finished" and row["clips"] == 16
    assert results["best"] in rows and rows[results["best"]]["clips"] == 16
    again = rows[measured["id"]]["rungs"][0]
    assert {key: again[key] for key in measured["rungs"][0]} == measured["rungs"][
        0
    ]  # equal also in seconds, because it was not trained again
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert sorted((line["trial"], line["clips"]) for line in lines) == sorted(
        (row["trial"], rung["clips"]) for row in rows.values() for rung in row["rungs"]
    )

    kept = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    capfd.readouterr()
    assert sweep(config) == results
    assert "done already, 2 trials" in capfd.readouterr().out
    assert kept == {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_a_population_passes_weights_on_and_each_member_has_the_whole_budget(tmp_path, ray_local):
    words = (
        f"tune.axes.{RATE}={{loguniform: [1.0e-4, 1.0e-2]}}", "tune.search=random", "tune.scheduler=pbt",
        "tune.exploit_fraction=0.5", "mdsa.train.loader=processes", "mdsa.train.loader_workers=0",
    )  # fmt: skip
    results = swept(tmp_path / "run", *words)
    assert [(row["status"], row["clips"]) for row in results["trials"]] == [("finished", 16)] * 2
    found = map(json.loads, (path.read_text() for path in tmp_path.glob("run/tune/trials/*/trial.json")))
    records = {record["id"]: record for record in found}
    (weak,) = (name for name, record in records.items() if record["taken"])
    (strong,) = records.keys() - {weak}
    (taken,) = records[weak]["taken"]
    assert taken["from"] == strong and taken["budget"] == 8 and taken["settled"]
    assert records[weak]["point"] == taken["point"] != taken["before"]
    weaker, stronger = (records[name]["rungs"][0] for name in (weak, strong))
    assert weaker["psnr_db"] - weaker["mel_error_db"] <= stronger["psnr_db"] - stronger["mel_error_db"]


@pytest.mark.slow
def test_early_stopped_trials_of_several_workers_give_everything_back(tmp_path, ray_local):
    """Optuna asks for trials, and ASHA stops the worse ones. One axis exists for one value of the other."""
    words = (
        f"tune.axes={{{RATE}: {{values: [1.0e-2, 1.0e-12]}}, "
        f"mdsa.train.warmup_clips: {{values: [0, 8], when: {{{RATE}: 1.0e-12}}}}}}",
        "tune.search=optuna", "tune.scheduler=asha", "tune.num_trials=3", "tune.reduction_factor=2",
        "tune.max_clips=32", "mdsa.train.num_workers=2",
        "mdsa.train.loader=processes", "mdsa.train.loader_workers=0",
    )  # fmt: skip
    results = swept(tmp_path / "run", *words)
    assert {group["state"] for group in ray.util.placement_group_table().values()} <= {"REMOVED"}
    rows = {row["trial"]: row for row in results["trials"]}
    points = {(row["point"][RATE], row["point"].get("mdsa.train.warmup_clips")) for row in rows.values()}
    assert points == {(1e-2, None), (1e-12, 0), (1e-12, 8)}
    assert {row["status"] for row in rows.values()} == {"finished", "stopped"}
    assert rows[results["best"]]["clips"] == 32
    assert all(row["clips"] == 32 or row["status"] == "stopped" for row in rows.values())


@pytest.mark.slow
def test_trials_of_equal_seconds_end_by_their_seconds(tmp_path, ray_local):
    words = (
        "tune.axes={mdsa.width: [16, 32]}", "tune.budget=seconds", "tune.max_seconds=4",
        "tune.scheduler=none", "mdsa.train.loader=processes", "mdsa.train.loader_workers=0",
    )  # fmt: skip
    rows = swept(tmp_path / "run", *words)["trials"]
    assert [row["status"] for row in rows] == ["finished"] * 2
    assert all(row["clips"] > 0 and 4 <= row["rungs"][-1]["seconds"] < 60 for row in rows)


@pytest.mark.slow
def test_a_trial_of_both_stages_is_judged_by_the_clips_that_it_makes(tmp_path, ray_local):
    words = (
        "tune.axes={generate.guidance_scale: [2]}", "tune.stage=stdit", "tune.metric=generated.sKVD",
        "tune.grace_clips=8", "tune.max_clips=8", "generate.num_samples=4", "generate.steps=1",
        "mdsa.train.num_clips=8", "encode.stride_frames=4", "encode.flips=false",
        "mdsa.train.loader=processes", "mdsa.train.loader_workers=0",
    )  # fmt: skip
    results = swept(tmp_path / "run", *words)
    (row,) = results["trials"]
    assert row["status"] == "finished"
    assert row["metric"] == row["rungs"][0]["numbers"]["generated.sKVD"] == -row["score"]
    copies = tmp_path.glob("run/tune/trials/*/mdsa/checkpoints")
    checkpoints = [tmp_path / "run" / "mdsa" / "checkpoints", *copies]
    assert len(checkpoints) == 2  # MDSA was trained in the sweep's own run, and copied
    assert len({path.read_bytes() for folder in checkpoints for path in folder.glob("*/*.json")}) == 1


def test_a_sweep_without_data_says_what_to_type(tmp_path):
    with pytest.raises(UserError, match=f"preprocess.py --config FILE run_dir={tmp_path}/other"):
        sweep(tiny_config(f"run_dir={tmp_path}/run", f"data.prepared={tmp_path}/other/data", *WORDS))
    with pytest.raises(UserError, match="no prepared data in .*run/data"):
        sweep(tiny_config(f"run_dir={tmp_path}/run", *WORDS))
    assert not (tmp_path / "run").exists()


def test_a_wrong_axis_is_one_line_and_nothing_starts(tmp_path):
    command = [
        sys.executable,
        str(ROOT / "ray_jobs" / "tune.py"),
        "--config",
        "configs/sweeps/attention_scales.yaml",
        f"run_dir={tmp_path}/run",
    ]
    done = subprocess.run(
        [*command, "tune.axes.mdsa.widht=[64]"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert (
        done.returncode == 2
        and done.stderr
        == "error: tune.axes names mdsa.widht, which is no setting; did you mean mdsa.width?\n"
    )
    assert not (tmp_path / "run").exists()
