"""`ray job submit` to a real head with token authentication, and the same head by RAY_ADDRESS.

The tests look at what is uploaded, what a stopped job leaves, and that the training goes on.
"""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.synthetic_clips import prepare, write_clips
from tests.tiny import TINY, tiny_config

ROOT = Path(__file__).parents[2]


@pytest.fixture
def bench():
    """bench/cluster/submit.py, imported only by tests that start Ray."""
    return importlib.import_module("bench.cluster.submit")


@pytest.mark.ray
@pytest.mark.slow
def test_a_submitted_training_that_is_stopped_goes_on_by_address(tmp_path, bench):
    run_dir = tmp_path / "run"
    words = [
        "data.sources=["
        f"{write_clips(tmp_path / 'videos', {'rain/a.mp4': 4.0, 'speech/b.mp4': 4.0, 'speech/c.mp4': 4.0})}"
        "]",
        f"run_dir={run_dir}",
    ]
    prepare(tiny_config(*words))
    metrics, latest = run_dir / "mdsa" / "metrics.jsonl", run_dir / "mdsa" / "checkpoints" / "latest"
    train = ["ray_jobs/train.py", *TINY, *words, "stage=mdsa", "mdsa.train.report_every_clips=4"]
    with bench.LocalHead(num_cpus=2) as head:
        with bench.submitted(head, *train, "mdsa.train.num_clips=1000000") as job:
            bench.wait_for(job, latest.exists)
            assert bench.stop_running_job(head) == "STOPPED"
        saved = int(latest.read_text().removeprefix("clips-"))
        more = [sys.executable, *train, f"mdsa.train.num_clips={saved + 8}"]
        environment = {**head.environment, "RAY_ADDRESS": head.address}
        done = subprocess.run(more, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert f"continuing from {run_dir}/mdsa/checkpoints/clips-{saved:012d}" in done.stdout + done.stderr
        wrong = subprocess.run(
            more,
            cwd=ROOT,
            env=environment | {"RAY_AUTH_TOKEN": "0" * 64},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert wrong.returncode == 2 and "copy the head's ~/.ray/auth_token" in wrong.stderr.splitlines()[-1]
    assert [line["clips"] for line in bench.read_lines(metrics)] == list(range(4, saved + 9, 4))
    assert not importlib.import_module("bench.helpers.local_head").processes_of(
        head.folder
    ) and not os.path.exists(head.folder)


def test_what_is_uploaded_is_small_and_whole(bench, tmp_path):
    assert bench.upload_bytes() < 20e6
    left_out = {
        line.strip("/\n")
        for line in (ROOT / ".rayignore").read_text().splitlines()
        if not line.startswith("#")
    }
    assert not left_out & {"proav", "ray_jobs", "configs", "examples"}
