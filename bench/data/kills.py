"""Kills the preprocessing job at random moments and runs the same command again after each kill.

    python -m bench.data.kills [--kills 20] [--seed 0]

A Ray head on this machine stays up, and each run gets a second node; the job is a separate command. SIGKILL
goes to the driver, a Ray worker, a decoding process and a whole node, in turn. Then the job is run to its
end. Every file that it wrote must have the bytes of an uninterrupted run, and verification must pass.
Prints a line for each kill and one JSON line. Ends with status 1 if anything differs.
"""

import argparse
import hashlib
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil

from bench.data.decode import make_clips
from bench.helpers.local_head import LocalHead
from bench.helpers.own_processes import own_processes
from proav.data.prepare.verify import verify

VICTIMS = ("driver", "worker", "decoder", "node")


def contents(folder: Path) -> dict[str, str]:
    """{file: SHA-256} of a data set, without report.html, which is made from the other files."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "report.html"]
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }


def job(head: LocalHead, run_dir: Path, sources: Path, *options: str) -> subprocess.Popen:
    command = [
        sys.executable,
        "ray_jobs/preprocess.py",
        "--config",
        "configs/demo.yaml",
        f"run_dir={run_dir}",
        f"data.sources=[{sources}]",
        "data.listing=[]",
        "data.labels=[]",
    ]
    environment = {**head.environment, "RAY_ADDRESS": head.address}
    return subprocess.Popen(
        [*command, *options], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def units_of(run_dir: Path) -> list[Path]:
    return list((run_dir / "data" / "units").glob("*.parquet"))


def processes_of(victim: str, driver: subprocess.Popen, node: psutil.Process) -> list[psutil.Process]:
    if victim == "driver":
        return [psutil.Process(driver.pid)]
    if victim == "node":
        return [node]
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            words = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if (
            ("proav.data.prepare.isolation" in words)
            if victim == "decoder"
            else words.startswith("ray::") and "IDLE" not in words and "Map" in words
        ):
            found.append(process)
    return found


def make_sources(folder: Path, copies: int) -> Path:
    """A folder of clips, `copies` of each, and a file that is no video."""
    sources = folder / "clips"
    sources.mkdir()
    for path in make_clips(str(folder)):
        for copy in range(copies):
            shutil.copy(path, sources / f"{copy}-{Path(path).name}")
    (sources / "broken.mp4").write_text("no video")
    return sources


def killed_and_finished(
    start: Callable[[], subprocess.Popen],
    run_dir: Path,
    node: psutil.Process,
    *,
    victim: str,
    done_units: int,
    delay: float,
    expected: dict[str, str],
) -> dict:
    """Kills a job once, runs it to its end, and compares its files. Returns the outcome.

    start: starts the job's command.
    run_dir: where the job writes.
    node: the node that the job has besides the head.
    victim: which process is killed, one of VICTIMS.
    done_units: units that are finished when the delay begins.
    delay: seconds from then to the kill.
    expected: `contents` of an uninterrupted run.
    """
    first = start()
    while first.poll() is None and len(units_of(run_dir)) < done_units:
        time.sleep(0.02)
    time.sleep(delay)
    struck = []
    while not struck and first.poll() is None:  # a worker or a decoder may not be there yet
        struck = processes_of(victim, first, node)[:1]
    for process in struck:
        process.send_signal(signal.SIGKILL)
    first_output = first.communicate()[0]
    done_before, again = len(units_of(run_dir)), start()
    output = again.communicate()[0]
    data = run_dir / "data"
    same = again.returncode == 0 and contents(data) == expected and bool(verify(str(data)))
    print(
        f"{victim:8} {done_units:2} units + {delay:.1f} s  struck {bool(struck)}  "
        f"ended with {first.returncode}, {done_before} units  same {same}",
        flush=True,
    )
    if not same:
        print(first_output[-1500:], output[-1500:], sep="\n--\n")
    return {
        "victim": victim,
        "units_done": done_units,
        "struck": bool(struck),
        "job_ended_with": first.returncode,
        "same": same,
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--copies", type=int, default=6)
    arguments = parser.parse_args()
    chance, outcomes = random.Random(arguments.seed), []
    with (
        own_processes(),
        tempfile.TemporaryDirectory(prefix="proav-bench-") as name,
        LocalHead(num_cpus=1) as head,
    ):
        folder = Path(name)
        sources = make_sources(folder, arguments.copies)
        whole = job(head, folder / "whole", sources)
        output = whole.communicate()[0]
        assert whole.returncode == 0, output
        expected = contents(folder / "whole" / "data")
        num_units = len(units_of(folder / "whole"))
        print(f"uninterrupted: {num_units} units, {len(expected)} files", flush=True)
        for number in range(arguments.kills):
            run_dir, node = folder / f"run-{number}", head.add_node(num_cpus=1)
            print(f"{number + 1:2}  ", end="")
            outcomes.append(
                killed_and_finished(
                    partial(job, head, run_dir, sources),
                    run_dir,
                    node,
                    victim=VICTIMS[number % len(VICTIMS)],
                    done_units=chance.randrange(num_units),
                    delay=chance.uniform(0, 1),
                    expected=expected,
                )
            )
            head.remove_node(node)
            shutil.rmtree(run_dir)
    same = sum(outcome["same"] for outcome in outcomes)
    print(
        json.dumps(
            {
                "bench": "kills",
                "kills": sum(outcome["struck"] for outcome in outcomes),
                "identical": same,
                "outcomes": outcomes,
            }
        )
    )
    return 0 if same == len(outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
