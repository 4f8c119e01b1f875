"""ZeRO over two hosts, one of which is lost half-way.

    python -m bench.cluster.two_hosts [--num-clips N] [--config FILE] [section.key=value ...]

The curve must be that of two workers on one host, and the run must continue when the host is back. The hosts
are network namespaces of this machine, joined by a virtual cable. Each has its own addresses, ports and Ray
node, and reaches the other only over the cable. They share the disk. Needs Linux, root and the `ip` command.
The benchmark removes everything that it made.
"""

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from bench.helpers.own_processes import end, own_processes

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
CABLE = "cable0"
ADDRESSES = ("10.99.7.1", "10.99.7.2")
PORT = 6379
START_SECONDS, TRAIN_SECONDS = 300, 1200


class Host:
    """A network namespace with one Ray node of one CPU. The first host is the head."""

    def __init__(self, name: str, address: str, folder: Path) -> None:
        self.name, self.address, self.folder = name, address, folder
        self.log = folder / f"{address}.log"
        self.started: list[subprocess.Popen] = []

    def start(self, command: list[str], log: Path) -> subprocess.Popen:
        """Starts a command on this host, without telling it which network interface to use."""
        with log.open("w") as output:
            words = ["ip", "netns", "exec", self.name, *command]
            process = subprocess.Popen(
                words,
                env=environment(RAY_ADDRESS=f"{ADDRESSES[0]}:{PORT}"),
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
            )
        self.started.append(process)
        return process

    def start_ray(self) -> None:
        """Starts the Ray node and waits until it is up."""
        head = self.address == ADDRESSES[0]
        role = (
            ["--head", f"--port={PORT}", f"--temp-dir={self.folder}/ray"]
            if head
            else [f"--address={ADDRESSES[0]}:{PORT}"]
        )
        common = [
            f"--node-ip-address={self.address}",
            "--num-cpus=1",
            "--object-store-memory=200000000",
            "--disable-usage-stats",
        ]
        node = self.start([f"{BIN}/ray", "start", "--block", *role, *common], self.log)
        wait_for(
            lambda: "Ray runtime started" in self.log.read_text(),
            START_SECONDS,
            f"Ray on {self.address}",
            node,
            self.log,
        )

    def processes(self) -> list[psutil.Process]:
        found = []
        for pid in ip("netns", "pids", self.name).split():
            with contextlib.suppress(psutil.NoSuchProcess):
                found.append(psutil.Process(int(pid)))
        return found

    def num_training_workers(self) -> int:
        return sum("RayTrainWorker" in " ".join(process.cmdline()) for process in self.processes())

    def lose(self) -> None:
        """Kills all of the host's processes at once, as if its power failed."""
        end(self.processes)
        for process in self.started:
            process.wait()


@contextlib.contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Two hosts and the cable between them; removed at the end, with all of their processes."""
    # a short path, as paths of Ray's sockets below it may have at most 107 characters
    folder = Path(tempfile.mkdtemp(prefix="hosts", dir="/tmp"))
    hosts = tuple(
        Host(f"proav-{os.getpid()}-{number}", address, folder) for number, address in enumerate(ADDRESSES)
    )
    try:
        for host in hosts:
            ip("netns", "add", host.name)
        ip(
            "link",
            "add",
            CABLE,
            "netns",
            hosts[0].name,
            "type",
            "veth",
            "peer",
            "name",
            CABLE,
            "netns",
            hosts[1].name,
        )
        for host in hosts:
            ip("-n", host.name, "addr", "add", f"{host.address}/24", "dev", CABLE)
            ip("-n", host.name, "link", "set", CABLE, "up")
            ip("-n", host.name, "link", "set", "lo", "up")
        yield hosts
    finally:
        there = ip("netns", "list")
        for host in hosts:
            if host.name in there:
                host.lose()
                ip("netns", "del", host.name)
        shutil.rmtree(folder, ignore_errors=True)


def ip(*words: str) -> str:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(
            f"ip {' '.join(words)}: {done.stderr.strip()}; this benchmark needs root and network namespaces"
        )
    return done.stdout


def environment(**more: str) -> dict[str, str]:
    given = {
        name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "GLOO_SOCKET_IFNAME")
    }
    return given | {"RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1"} | more


def wait_for(
    happened: Callable[[], bool], seconds: float, what: str, process: subprocess.Popen, log: Path
) -> float:
    """Seconds until `happened()`. If that takes too long, ends the benchmark and shows the log.

    happened: the condition to wait for.
    seconds: longest time to wait.
    what: name of the condition, for the message.
    process: a process that must run meanwhile.
    log: output of that process.
    """
    began = time.monotonic()
    while not happened():
        if process.poll() is not None or time.monotonic() > began + seconds:
            raise SystemExit(
                f"{what}: not after {time.monotonic() - began:.0f} s:\n{log.read_text()[-6000:]}"
            )
        time.sleep(0.1)
    return round(time.monotonic() - began, 1)


def curve(run_dir: Path) -> list[dict]:
    """The lines of metrics.jsonl so far."""
    path = run_dir / "mdsa" / "metrics.jsonl"
    return (
        [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
        if path.exists()
        else []
    )


def train_on_one_host(words: list[str]) -> float:
    """Prepares the data and trains two workers on a Ray of this machine alone; returns training seconds."""
    for name in ("preprocess", "train"):
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, f"ray_jobs/{name}.py", *words],
            env=environment(),
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise SystemExit(f"{name} failed:\n{(done.stdout + done.stderr)[-6000:]}")
    return round(time.monotonic() - began, 1)


def train_on_two_hosts(folder: Path, run_dir: Path, words: list[str], num_clips: int) -> dict:
    """Trains with a worker on each host; loses the second host half-way and starts it again.

    The second host starts again when the first host has noticed the loss.

    folder: folder for the log.
    run_dir: folder of the run.
    words: arguments of train.py.
    num_clips: length of the training.
    """
    with two_hosts() as (first, second):
        for host in (first, second):
            host.start_ray()
            print(f"Ray is up on {host.address}", flush=True)
        began, log = time.monotonic(), folder / "train.log"
        job = first.start([sys.executable, "ray_jobs/train.py", *words], log)
        wait_for(lambda: len(curve(run_dir)) > 0, TRAIN_SECONDS, "the first step", job, log)
        first_step = round(time.monotonic() - began, 1)
        workers = [host.num_training_workers() for host in (first, second)]
        print(f"training on both hosts after {first_step:g} s: {workers} workers", flush=True)
        wait_for(
            lambda: curve(run_dir)[-1]["clips"] >= num_clips // 2,
            TRAIN_SECONDS,
            "half of the clips",
            job,
            log,
        )
        second.lose()
        reached, lost = curve(run_dir)[-1]["clips"], time.monotonic()
        print(f"lost {second.address} at {reached} clips", flush=True)
        noticed = wait_for(
            lambda: first.num_training_workers() == 0, TRAIN_SECONDS, "the loss is noticed", job, log
        )
        second.start_ray()
        back = round(time.monotonic() - lost, 1)
        print(f"loss noticed after {noticed:g} s, {second.address} is back after {back:g} s", flush=True)
        wait_for(lambda: curve(run_dir)[-1]["clips"] > reached, TRAIN_SECONDS, "training goes on", job, log)
        again = round(time.monotonic() - lost, 1)
        print(f"training again after {again:g} s", flush=True)
        if job.wait(TRAIN_SECONDS):
            raise SystemExit(f"train failed:\n{log.read_text()[-6000:]}")
    times = {"first_step": first_step, "loss_noticed": noticed, "host_back": back, "training_again": again}
    return {"workers_per_host": workers, "lost_at_clips": reached, "seconds": times}


def measure(folder: Path, arguments: argparse.Namespace) -> dict:
    num_clips = arguments.num_clips
    words = [
        "--config", arguments.config, "stage=mdsa",
        "train.num_workers=2", "train.zero_stage=2", "train.cpus_per_worker=1",
        f"train.num_clips={num_clips}", f"train.checkpoint_every_clips={num_clips // 4}",
        *arguments.overrides,
    ]  # fmt: skip
    one, two = folder / "one", folder / "two"
    one_seconds = train_on_one_host([*words, f"run_dir={one}"])
    print(f"two workers on one host: {one_seconds:g} s", flush=True)
    result = train_on_two_hosts(
        folder, two, [*words, f"run_dir={two}", f"data.prepared={one}/data"], num_clips
    )
    expected, found = curve(one), curve(two)
    assert [line["clips"] for line in expected] == [line["clips"] for line in found], (
        "both curves have the same points"
    )
    rows = [
        (a["clips"], a["loss"], b["loss"], abs(b["loss"] / a["loss"] - 1))
        for a, b in zip(expected, found, strict=True)
    ]
    print(f"{'clips':>7}{'one host':>12}{'two hosts':>12}{'difference':>12}")
    print("\n".join(f"{clips:>7}{a:>12.6f}{b:>12.6f}{difference:>12.1e}" for clips, a, b, difference in rows))
    return {
        **result,
        "largest_difference": max(row[3] for row in rows),
        "one_host_seconds": one_seconds,
        "num_clips": num_clips,
        "cpus": os.cpu_count(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="configs/demo.yaml")
    parser.add_argument("--num-clips", type=int, default=96, help="how long to train, in clips (default: 96)")
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="default: train.report_every_clips=8"
    )
    arguments = parser.parse_intermixed_args()
    arguments.overrides = arguments.overrides or ["train.report_every_clips=8"]
    with (
        tempfile.TemporaryDirectory(prefix="proav-", ignore_cleanup_errors=True) as temporary,
        own_processes(),
    ):
        print(json.dumps(measure(Path(temporary), arguments)))


if __name__ == "__main__":
    main()
