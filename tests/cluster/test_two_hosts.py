"""Training over two hosts that share only a cable and a disk.

The hosts are network namespaces, so only root can run this test.
"""

import contextlib
import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch

from proav.train.worker import train_worker
from tests.tiny import TINY
from tests.train.test_worker import curve, prepare

pytestmark = [pytest.mark.ray, pytest.mark.slow]
ROOT = Path(__file__).parents[2]
SETTINGS = ("mdsa.loss.adversarial_start_clips=4",)
JOB_SECONDS = 240


def why_not() -> str | None:
    """Why this machine cannot make hosts; None if it can."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return "needs root and the ip command"
    name = f"proav-probe-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if made.returncode:
        return f"no network namespaces here: {made.stderr.strip()}"
    cable = subprocess.run(
        ["ip", "-n", name, "link", "add", "cable0", "type", "veth", "peer", "name", "cable1"],
        capture_output=True,
        text=True,
    )
    subprocess.run(["ip", "netns", "del", name], check=True)
    return f"no virtual cables here: {cable.stderr.strip()}" if cable.returncode else None


def one_worker_on_each(hosts) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):  # a process that ends meanwhile
        return [host.num_training_workers() for host in hosts] == [1, 1]
    return False


def test_zero_over_two_hosts_is_one_worker_alone(tmp_path, monkeypatch):
    """The workers find each other by the Ray addresses of their nodes.

    GLOO_SOCKET_IFNAME is not set, and the host names say nothing about addresses.
    """
    if reason := why_not():
        pytest.skip(reason)
    bench = importlib.import_module("bench.cluster.two_hosts")
    alone = prepare(tmp_path / "alone", "mdsa", *SETTINGS, "train.engine=torch")
    train_worker(alone, "mdsa", device=torch.device("cpu"))
    words = [
        "stage=mdsa",
        *TINY,
        *SETTINGS,
        "train.zero_stage=2",
        "train.num_workers=2",
        f"data.prepared={alone.data_folder}",
        f"run_dir={tmp_path}/two",
    ]
    config, log = tmp_path / "empty.yaml", tmp_path / "train.log"
    config.write_text("name: tiny\n")
    with bench.two_hosts() as hosts:
        for host in hosts:
            host.start_ray()
        job = hosts[0].start([sys.executable, "ray_jobs/train.py", "--config", str(config), *words], log)
        bench.wait_for(lambda: one_worker_on_each(hosts), JOB_SECONDS, "a worker on each host", job, log)
        assert job.wait(JOB_SECONDS) == 0, log.read_text()[-6000:]
    for line, wanted in zip(curve(tmp_path / "two", "mdsa"), curve(alone.run_folder, "mdsa"), strict=True):
        assert line == pytest.approx(wanted, rel=1e-3)
