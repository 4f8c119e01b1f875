"""generate.num_workers=[MIN,MAX] on a real autoscaling cluster: the pool grows, and the clips stay the same.

The added node is one of Ray's fake nodes: processes on this machine that Ray's real autoscaler starts.
"""

import json
import os
import sys
from collections import Counter
from pathlib import Path

import pytest

from bench.cluster.autoscaling import HEAD_ID, autoscaler_config
from bench.helpers.local_head import LocalHead, processes_of
from proav.generation.batch.manifest import list_parts
from tests.generation.batch.listings import listing_of
from tests.tiny import TINY, save_tiny_stdit, tiny_config

ROOT = Path(__file__).parents[2]
ROWS = ("rain,1,2", "speech,2,2", "rain,3,2", "speech,4,2")
"""Rows of a listing: label, seed, count. Each is a batch."""
ROUNDS = 25
"""How often a growing pool makes these rows. One actor alone would take much longer than a node to start."""


@pytest.fixture
def head(tmp_path):
    """A head with one CPU. Its autoscaler adds a node with one CPU if a job asks for more."""
    import ray

    file = tmp_path / "cluster.json"
    environment = {
        "RAY_FAKE_CLUSTER": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_DATA_MIN_GAP_BETWEEN_AUTOSCALING_REQUESTS": "1",  # second; Ray's 10 would make the test longer
        "OMP_NUM_THREADS": "1",
    }
    options = (f"--autoscaling-config={file}", "--object-store-memory=200000000")
    head = LocalHead(*options, num_cpus=1, environment=environment)
    head.environment["RAY_ADDRESS"] = address = f"{ray.util.get_node_ip_address()}:{head.port}"
    cluster = autoscaler_config(address, idle_seconds=60, num_cpu_nodes=1)
    cluster["available_node_types"]["ray.head.default"]["resources"]["CPU"] = 1
    del cluster["available_node_types"]["training"]
    file.write_text(json.dumps(cluster))
    with head:
        yield head
    assert not processes_of(head.folder) and not os.path.exists(head.folder)


def batches_of_jobs(head: LocalHead) -> Counter:
    """How many batches were made, by the number of the job and the place: "head" or "added node"."""
    done = head.run("ray", "list", "tasks", "--format=json", "--limit=10000")
    assert done.returncode == 0, done.stdout + done.stderr
    return Counter(
        (int(task["job_id"][:2], 16), "head" if task["node_id"] == HEAD_ID else "added node")
        for task in json.loads(done.stdout)
        if task["name"] == "MapWorker(Map(Maker)).submit" and task["state"] == "FINISHED"
    )


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="Ray has clusters of several nodes only on Linux"
)
def test_a_pool_grows_with_the_cluster_and_makes_the_same_clips(tmp_path, head):
    path = save_tiny_stdit(str(tmp_path / "checkpoints"), tiny_config())

    def made(name: str, num_workers: str, rounds: int) -> list[tuple[dict, bytes]]:
        """Each sample of a job: its row without what tells its place in the listing, and its clip."""
        listing = listing_of(tmp_path, "label,seed,count", *ROWS * rounds)
        words = [f"run_dir={tmp_path / name}", f"generate.checkpoint={path}", listing]
        words += [f"generate.num_workers={num_workers}", "generate.steps=100"]
        command = [sys.executable, str(ROOT / "ray_jobs" / "generate.py"), *TINY, *words]
        done = head.run(*command, PYTHONPATH=str(ROOT))
        assert done.returncode == 0, done.stdout + done.stderr
        folder = tmp_path / name / "samples"
        rows = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
        assert [row.pop("index") for row in rows] == list(range(2 * len(ROWS) * rounds))
        assert not list_parts(str(folder))
        return [(row, (folder / row.pop("path")).read_bytes()) for row in rows]

    alone = made("alone", "1", 1)
    assert len({clip for _, clip in alone}) == len(alone)
    grown = made("grown", "[1,2]", ROUNDS)
    assert not [index for index, sample in enumerate(grown) if sample != alone[index % len(alone)]]
    batches = batches_of_jobs(head)
    assert batches[1, "head"] and not batches[1, "added node"]
    assert batches[2, "head"] > 1 and batches[2, "added node"] > 1
