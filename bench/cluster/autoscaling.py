"""Autoscaling without a cloud: which nodes come and go, and when.

    python -m bench.cluster.autoscaling [--copies N] [--clips N] [--num-clips N]
        [--idle-seconds N] [--skip-training]

Two jobs are submitted to a head without CPUs that has two groups of nodes. The nodes are Ray's fake nodes:
processes on this machine that Ray's real autoscaler starts and ends. The benchmark ends everything that it
started. Linux only.
"""

import argparse
import json
import os
import tempfile
import threading
import time
from pathlib import Path

from bench.helpers.local_head import LocalHead
from bench.helpers.own_processes import own_processes

ROOT = Path(__file__).parents[2]
HEAD_ID = "f" * 51 + "00000"
GROUP = "proav-group"
GROUPS = ("cpu", "training")
SAMPLE_SECONDS = 0.25
SHRINK_SECONDS = 120.0


def autoscaler_config(address: str, *, idle_seconds: float, num_cpu_nodes: int) -> dict:
    """A cluster file for Ray's fake provider: nodes of 1 CPU to prepare data, one of 2 CPUs to train.

    At first no node is up.
    """

    def group(name: str, num_cpus: int, most: int) -> dict:
        return {
            "resources": {"CPU": num_cpus},
            "labels": {GROUP: name},
            "node_config": {},
            "min_workers": 0,
            "max_workers": most,
        }

    provider = {
        "type": "fake_multinode",
        "head_node_id": HEAD_ID,
        "gcs_address": address,
        "use_node_id_as_ip": True,
    }
    nothing = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
    return {
        "cluster_name": "proav-on-one-machine",
        "max_workers": num_cpu_nodes + 1,
        "idle_timeout_minutes": idle_seconds / 60,
        "upscaling_speed": 10.0,
        "provider": provider | {"disable_node_updaters": True, "disable_launch_config_check": True},
        "auth": {},
        "cluster_synced_files": [],
        "file_mounts": {},
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "cpu": group("cpu", 1, num_cpu_nodes),
            "training": group("training", 2, 1),
        },
    } | {f"{name}_commands": [] for name in nothing}


class Cluster:
    """A head with an autoscaler, watched from this process."""

    def __init__(self, folder: Path, *, idle_seconds: float, num_cpu_nodes: int) -> None:
        file = folder / "cluster.json"
        settings = {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1", "OMP_NUM_THREADS": "1"}
        self.head = LocalHead(
            f"--autoscaling-config={file}",
            "--object-store-memory=200000000",
            num_cpus=0,
            environment=settings,
        )
        # set before Ray is imported, because Ray reads them at import
        os.environ.update({name: self.head.environment[name] for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN")})
        import ray

        address = f"{ray.util.get_node_ip_address()}:{self.head.port}"
        # without an address, parts of Ray Train may join another Ray on the machine
        self.head.environment["RAY_ADDRESS"] = address
        file.write_text(
            json.dumps(autoscaler_config(address, idle_seconds=idle_seconds, num_cpu_nodes=num_cpu_nodes))
        )
        self.began, self.events, self.counts, self.ended = (
            time.monotonic(),
            [],
            dict.fromkeys(GROUPS, 0),
            threading.Event(),
        )

    def __enter__(self) -> "Cluster":
        import ray

        self.head.__enter__()
        ray.init(address=self.head.environment["RAY_ADDRESS"], log_to_driver=False, logging_level="error")
        self.watcher = threading.Thread(target=self._watch)
        self.watcher.start()
        self.tell("head is up")
        return self

    def __exit__(self, *_) -> None:
        import ray

        self.ended.set()
        self.watcher.join()
        ray.shutdown()
        self.head.stop()

    def _watch(self) -> None:
        import ray

        while not self.ended.wait(SAMPLE_SECONDS):
            groups = [
                node["Labels"].get(GROUP)
                for node in ray.nodes()
                if node["Alive"] and node["NodeID"] != HEAD_ID
            ]
            counts = {name: groups.count(name) for name in GROUPS}
            if counts != self.counts:
                self.counts = counts
                self.tell("nodes")

    def tell(self, event: str) -> None:
        """Records an event with the time and the number of nodes that are up, and prints it."""
        row = {"seconds": round(time.monotonic() - self.began, 1), "event": event, **self.counts}
        self.events.append(row)
        print(
            f"{row['seconds']:7.1f}  {event:<28}{row['cpu']:>4} cpu{row['training']:>4} training", flush=True
        )

    def submit(self, name: str, *words: str, seconds: float) -> float:
        """Runs a job script on the cluster by `ray job submit`; returns its wall seconds.

        Ends the benchmark if the job fails.
        """
        self.tell(f"{name} submitted")
        began = time.monotonic()
        done = self.head.run(
            "ray",
            "job",
            "submit",
            "--working-dir",
            str(ROOT),
            "--",
            "python",
            f"ray_jobs/{name}.py",
            *words,
            timeout=seconds,
        )
        if done.returncode:
            raise SystemExit(f"{name} failed:\n{(done.stdout + done.stderr)[-6000:]}")
        self.tell(f"{name} finished")
        return round(time.monotonic() - began, 1)

    def wait_until_empty(self) -> float:
        """Seconds until the last node is gone."""
        began = time.monotonic()
        while any(self.counts.values()):
            if time.monotonic() > began + SHRINK_SECONDS:
                raise SystemExit(f"nodes are still up {SHRINK_SECONDS} s after the job: {self.counts}")
            time.sleep(SAMPLE_SECONDS)
        self.tell("no nodes left")
        return round(time.monotonic() - began, 1)


def copy_sources(folder: Path, copies: int, clips: int | None) -> Path:
    """Links to the clips of examples/clips under several names: enough work to make a second node pay off."""
    for number in range(copies):
        (folder / f"copy-{number:02d}").mkdir(parents=True)
        for path in sorted((ROOT / "examples" / "clips").glob("*.mp4"))[:clips]:
            (folder / f"copy-{number:02d}" / path.name).symlink_to(path)
    return folder


def measure(folder: Path, arguments: argparse.Namespace) -> dict:
    sources = copy_sources(folder / "sources", arguments.copies, arguments.clips)
    words = [
        "--config",
        "configs/demo.yaml",
        f"run_dir={folder}/run",
        "data.listing=null",
        f"data.sources=[{sources}]",
    ]
    with Cluster(folder, idle_seconds=arguments.idle_seconds, num_cpu_nodes=2) as cluster:
        result = {"preprocess_seconds": cluster.submit("preprocess", *words, seconds=900)}
        result["shrink_seconds"] = [cluster.wait_until_empty()]
        if not arguments.skip_training:
            words += [
                "stage=mdsa",
                f"train.num_clips={arguments.num_clips}",
                "train.report_every_clips=8",
                "train.cpus_per_worker=2",
            ]
            result["train_seconds"] = cluster.submit("train", *words, seconds=1800)
            result["shrink_seconds"].append(cluster.wait_until_empty())
            lines = (folder / "run" / "mdsa" / "metrics.jsonl").read_text().splitlines()
            result["clips_trained"] = json.loads(lines[-1])["clips"]
    most = {name: max(row[name] for row in cluster.events) for name in GROUPS}
    left = [str(folder), cluster.head.folder]
    return {
        **result,
        "most_nodes": most,
        "idle_seconds": arguments.idle_seconds,
        "cpus": os.cpu_count(),
        "folders": left,
        "events": cluster.events,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--copies", type=int, default=24, help="how many times the example clips are prepared (default: 24)"
    )
    parser.add_argument("--clips", type=int, help="how many of the example clips (default: all)")
    parser.add_argument("--num-clips", type=int, default=64, help="how long to train, in clips (default: 64)")
    parser.add_argument(
        "--idle-seconds",
        type=float,
        default=15,
        help="seconds after which a node without work ends (default: 15)",
    )
    parser.add_argument("--skip-training", action="store_true", help="only preprocess")
    arguments = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="proav-", ignore_cleanup_errors=True) as temporary,
        own_processes(),
    ):
        print(json.dumps(measure(Path(temporary), arguments)))


if __name__ == "__main__":
    main()
