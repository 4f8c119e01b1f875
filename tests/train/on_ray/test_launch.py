"""Training on Ray: workers agree, a killed worker costs only time, a user's mistake is reported as one."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import ray
import ray.train
import torch

from proav.config.reading import config_to_yaml
from proav.data.store.parquet import DamagedShard
from proav.errors import UserError
from proav.runs.checkpoint import load_checkpoint
from proav.train.on_ray.launch import train_stage
from proav.train.on_ray.turn import NAME, NAMESPACE, turn_to_start
from proav.train.worker import train_worker
from tests.tiny import tiny_config
from tests.train.test_worker import curve, prepare

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.ray
COMMON = ("mdsa.loss.adversarial_start_clips=4", "train.keep_checkpoints=9")


class KillOnce(ray.train.UserCallback):
    """Kills one training worker of this Ray without warning, at the first report of more than `clips`."""

    def __init__(self, clips: int, marker: Path) -> None:
        self.clips, self.marker = clips, marker

    def after_report(self, run_context, metrics, checkpoint):
        if metrics[0]["clips"] > self.clips and not self.marker.exists():
            victim = next(
                process
                for process in siblings()
                if b"RayTrainWorker" in Path(f"/proc/{process}/cmdline").read_bytes()
            )
            self.marker.write_text(str(victim))
            os.kill(victim, signal.SIGKILL)


def siblings() -> list[int]:
    """Processes with the same parent as this one; seen from the controller, the workers of the same Ray."""
    found = []
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):  # a process that ends meanwhile
            if (
                folder.name.isdigit()
                and int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1]) == os.getppid()
            ):
                found.append(int(folder.name))
    return found


@pytest.mark.slow
def test_a_killed_worker_costs_nothing_but_time(tmp_path, ray_local):
    """Of two workers with ZeRO-2, one is killed between checkpoints.

    The curve is that of one torch worker that runs without a failure.
    """
    settings = ("train.num_clips=24", *COMMON)
    alone = prepare(tmp_path / "alone", "mdsa", *settings, "train.engine=torch")
    train_worker(alone, "mdsa", device=torch.device("cpu"))
    config = prepare(
        tmp_path / "ray",
        "mdsa",
        *settings,
        "train.zero_stage=2",
        "train.num_workers=2",
        "train.max_failures=1",
    )
    marker = tmp_path / "killed"
    summary = train_stage(config, "mdsa", callbacks=[KillOnce(8, marker)])
    assert marker.exists() and summary["clips"] == 24 and not summary["already_done"]
    disturbed, expected = curve(config.run_folder, "mdsa"), curve(alone.run_folder, "mdsa")
    assert [line["clips"] for line in disturbed] == [4, 8, 12, 16, 20, 24]
    for line, wanted in zip(disturbed, expected, strict=True):
        assert line == pytest.approx(wanted, rel=1e-3)
    ours, theirs = (
        load_checkpoint(f"{config.run_folder}/mdsa/checkpoints"),
        load_checkpoint(f"{alone.run_folder}/mdsa/checkpoints"),
    )
    for name in ("model", "ema", "discriminators"):
        for key, tensor in theirs.weights(name).items():
            torch.testing.assert_close(ours.weights(name)[key], tensor, rtol=0, atol=5e-4)
    again = train_stage(config, "mdsa")  # finished: nothing to do
    assert again["already_done"] and again["checkpoint"] == ours.path == summary["checkpoint"]


@pytest.mark.slow
def test_a_mistake_that_one_worker_finds_ends_all_and_comes_out_as_such(tmp_path, ray_local):
    with pytest.raises(UserError, match="preprocess.py"):
        train_stage(tiny_config(f"run_dir={tmp_path}/empty"), "mdsa")
    config = prepare(
        tmp_path / "damaged",
        "mdsa",
        "train.num_workers=2",
        "train.engine=torch",
        "train.num_clips=64",
        damaged_segment=5,
    )
    with pytest.raises(DamagedShard, match="000000-002.parquet .* row 1: frames cannot be decoded"):
        train_stage(config, "mdsa")


@pytest.mark.slow
def test_two_jobs_with_loading_actors_do_not_wait_for_each_other(tmp_path, on_ray_local):
    """Each takes both CPUs: one for its worker, one for the actor that loads.

    The test holds the turn until the first waits for it. Then the second comes, too.
    """
    actors = ("train.loader=actors", "train.loader_workers=1")
    words = (*actors, "train.engine=torch", "train.num_clips=16", *COMMON)
    first, second = (prepare(tmp_path / name, "mdsa", *words) for name in ("first", "second"))
    (tmp_path / "first.yaml").write_text(config_to_yaml(first))
    script, settings = str(ROOT / "ray_jobs" / "train.py"), str(tmp_path / "first.yaml")
    command = [sys.executable, script, "--config", settings, "stage=mdsa"]
    at_once = on_ray_local | {"PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, cwd=ROOT, env=at_once, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as job:  # fmt: skip
        try:
            with turn_to_start():
                lines = iter(job.stdout.readline, "")
                assert any("another job with loading actors is taking its CPUs" in line for line in lines)
            assert train_stage(second, "mdsa")["clips"] == 16
            said = job.stdout.read()
            assert job.wait(60) == 0 and "16 / 16 clips" in said, said
        finally:
            job.kill()
    assert not _is_starting()


def _is_starting() -> bool:
    try:
        ray.get_actor(NAME, NAMESPACE)
    except ValueError:
        return False
    return True
