"""An autoscaling cluster on this machine alone.

A submitted job starts a node, an idle node is stopped, and nothing is left behind.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

pytestmark = [pytest.mark.ray, pytest.mark.slow]
ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="the benchmark takes in orphans by prctl, which Linux has"
)
def test_a_job_brings_a_node_up_and_idleness_takes_it_down(tmp_path):
    command = [
        sys.executable,
        "-m",
        "bench.cluster.autoscaling",
        "--copies",
        "1",
        "--clips",
        "4",
        "--idle-seconds",
        "4",
        "--skip-training",
    ]
    environment = {
        name: value for name, value in os.environ.items() if name not in ("RAY_AUTH_MODE", "RAY_ADDRESS")
    } | {"TMPDIR": "/tmp"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["most_nodes"]["cpu"] >= 1
    first, last = result["events"][0], result["events"][-1]
    assert (first["cpu"], first["training"]) == (last["cpu"], last["training"]) == (0, 0)
    for folder in result["folders"]:  # the benchmark's own and Ray's
        assert not Path(folder).exists()
        assert not [
            process
            for process in psutil.process_iter(["cmdline"])
            if folder in " ".join(process.info["cmdline"] or [])
        ]
