"""Interrupts a sweep by killing a worker, a trial's process and the driver, and by SIGTERM to the driver.

    python -m bench.cluster.sweep_kills [--folder runs/sweep_kills] [--data DIR] [--population]
        [--blows 2:worker,4:trial,6:driver,9:SIGTERM] [section.key=value ...]

A Ray head on this machine stays up while twelve short trials of the demo's MDSA run twice: once undisturbed,
and once with the kills. After each kill the same command is run again. Prints a line for each kill, with the
seconds until all CPUs of the cluster are free and no process of a trial is left. The results must equal those
of the undisturbed sweep in every number that does not measure time. Ends with status 1 if one differs or a
resource is not free. --population: then also kills and resumes a sweep of population-based training.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from bench.helpers.local_head import LocalHead
from bench.helpers.own_processes import own_processes

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = (
    "mdsa.width=32",
    "mdsa.linear_planes.fit_clips=32",
    "mdsa.linear_planes.alone_clips=0",
    "mdsa.train.num_clips=16",
    "mdsa.train.warmup_clips=0",
    "mdsa.train.decay_fraction=0",
    "mdsa.train.cpus_per_worker=1",
    "evaluate.max_clips=8",
)
TRIALS = (
    "tune.axes={mdsa.train.learning_rate: [1.0e-3, 2.0e-3], mdsa.train.optimizer: [adamw, muon], "
    "mdsa.bi_block.block_size: [1, 2, 4]}",
    "tune.scheduler=none",
    "tune.max_clips=16",
)
POPULATION = (
    "tune.axes={mdsa.train.learning_rate: {loguniform: [1.0e-4, 1.0e-2]}, mdsa.loss.mel: [3, 6, 12]}",
    "tune.search=random",
    "tune.num_trials=4",
    "tune.scheduler=pbt",
    "tune.grace_clips=8",
    "tune.max_clips=24",
)
OF_TIME = ("seconds", "clips_per_second", "peak_memory_gib")
"""Numbers that differ in every run."""
MOST_SECONDS = 900.0
FREE = """
import json, ray
ray.init(logging_level="ERROR", log_to_driver=False)
free = ray.available_resources()
there = ray.cluster_resources()
taken = {kind: there[kind] - free.get(kind, 0) for kind in ("CPU", "GPU") if kind in there}
groups = [group for group in ray.util.placement_group_table().values() if group["state"] not in ("REMOVED",)]
print(json.dumps([sum(taken.values()), len(groups)]))
"""
"""Asks the cluster for the numbers of taken CPUs and of placement groups."""


def start(head: LocalHead, folder: Path, data: Path, words: list[str]) -> subprocess.Popen:
    job = [sys.executable, str(ROOT / "ray_jobs" / "tune.py"), "--config", "configs/demo.yaml"]
    own = [f"run_dir={folder}", f"data.prepared={data}"]
    environment = {**head.environment, "RAY_ADDRESS": head.address, "PYTHONPATH": str(ROOT)}
    with folder.with_suffix(".log").open("a") as log:
        return subprocess.Popen(
            [*job, *own, *SETTINGS, *words], cwd=ROOT, env=environment, stdout=log, stderr=log
        )


def measured(folder: Path) -> int:
    """The number of recorded rungs."""
    records = [json.loads(path.read_text()) for path in folder.glob("tune/trials/*/trial.json")]
    return sum(len(record["rungs"]) for record in records)


def wait(job: subprocess.Popen, happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + MOST_SECONDS
    while job.poll() is None and not happened():
        assert time.monotonic() < deadline, "the sweep makes no progress"
        time.sleep(0.1)


def of_trials(*names: str) -> list[psutil.Process]:
    """Descendants of this process whose title has one of the names. Ray sets an actor's class as the title of
    its process.
    """
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            title = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if title.startswith("ray::") and any(name in title for name in names):
            found.append(process)
    return found


WORKER, DRIVER_OF_TRIAL = "RayTrainWorker", "ImplicitFunc"
ALL = (WORKER, DRIVER_OF_TRIAL, "TrainController", "Mailbox", "drive", "evaluate_reconstruction", "Loader")


def seconds_until_free(head: LocalHead) -> tuple[float, list]:
    """Seconds until all CPUs are free and no placement group or process of a trial is left.

    The second value is what is still in use after a minute.
    """
    began, left = time.monotonic(), []
    environment = {**head.environment, "RAY_ADDRESS": head.address}
    while time.monotonic() - began < 60:
        processes = of_trials(*ALL)
        asked = subprocess.run([sys.executable, "-c", FREE], env=environment, capture_output=True, text=True)
        taken, groups = json.loads(asked.stdout.splitlines()[-1])
        left = [taken, groups, [" ".join(process.cmdline()) for process in processes if process.is_running()]]
        if not taken and not groups and not processes:
            break
    return time.monotonic() - began, left


def results(folder: Path) -> dict[str, dict]:
    """The measurements of each trial, by id, without those of time."""
    found = json.loads((folder / "tune" / "results.json").read_text())
    kept = {}
    for row in found["trials"]:
        rungs = [
            {key: value for key, value in rung.items() if key not in (*OF_TIME, "repeats")}
            for rung in row["rungs"]
        ]
        kept[row["trial"]] = {"point": row["point"], "status": row["status"], "rungs": rungs}
    return kept


def disturbed(
    head: LocalHead, folder: Path, data: Path, words: list[str], blows: list[tuple[int, str]]
) -> list[dict]:
    """Runs a sweep to its end, with kills and signals on the way.

    head: the Ray head.
    folder: folder of the sweep.
    data: prepared data.
    words: further arguments of the job.
    blows: (number of recorded rungs, what to kill then).
    """
    rows, job = [], start(head, folder, data, words)
    for rungs, kind in blows:
        wait(job, lambda rungs=rungs: measured(folder) >= rungs)
        name, before = {"worker": WORKER, "trial": DRIVER_OF_TRIAL}.get(kind, ""), of_trials(DRIVER_OF_TRIAL)
        struck = []
        while job.poll() is None and not struck:
            found = of_trials(name) if name else [psutil.Process(job.pid)]
            if kind == "trial":  # a trial that begins now, as an older one may have ended already
                found = [process for process in found if process not in before]
            struck = found[:1]
            time.sleep(0.1)
        for process in struck:
            os.kill(process.pid, signal.SIGTERM if kind == "SIGTERM" else signal.SIGKILL)
        row = {"blow": kind, "at_rungs": measured(folder), "struck": bool(struck)}
        if not name:
            row["ended_with"] = job.wait()
            seconds, left = seconds_until_free(head)
            row |= {"free_after_seconds": round(seconds, 1), "left": left}
            job = start(head, folder, data, words)
        rows.append(row)
        print(json.dumps(row), flush=True)
    status = job.wait()
    seconds, left = seconds_until_free(head)
    rows.append(
        {
            "blow": None,
            "at_rungs": measured(folder),
            "ended_with": status,
            "free_after_seconds": round(seconds, 1),
            "left": left,
        }
    )
    print(json.dumps(rows[-1]), flush=True)
    return rows


def is_free(rows: list[dict]) -> bool:
    return all(row.get("left", [0, 0, []]) == [0, 0, []] for row in rows)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path("runs/sweep_kills"))
    parser.add_argument("--data", type=Path, help="prepared data of the demo (default: prepared anew)")
    parser.add_argument(
        "--blows",
        default="2:worker,4:trial,6:driver,9:SIGTERM",
        help="RUNGS:WHAT, what to kill after so many rungs: worker, trial, driver; SIGTERM: to the driver",
    )
    parser.add_argument("--population", action="store_true", help="population-based training as well")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    data = arguments.data.resolve() if arguments.data else folder / "prepared" / "data"
    with own_processes(), LocalHead(num_cpus=2) as head:
        if not arguments.data:
            prepare = [sys.executable, "ray_jobs/preprocess.py", "--config", "configs/demo.yaml"]
            head_environment = {**head.environment, "RAY_ADDRESS": head.address}
            subprocess.run(
                [*prepare, f"run_dir={data.parent}"],
                cwd=ROOT,
                env=head_environment,
                check=True,
                capture_output=True,
            )
        words, began = [*TRIALS, *arguments.overrides], time.monotonic()
        whole = disturbed(head, folder / "whole", data, words, [])
        expected, took = results(folder / "whole"), time.monotonic() - began
        print(f"undisturbed: {len(expected)} trials in {took:.0f} s", flush=True)
        blows = [
            (int(rungs), kind) for rungs, kind in (word.split(":") for word in arguments.blows.split(","))
        ]
        began = time.monotonic()
        rows = disturbed(head, folder / "disturbed", data, words, blows)
        found = results(folder / "disturbed")
        same = found == expected
        print(
            f"disturbed: {len(found)} trials in {time.monotonic() - began:.0f} s; results "
            f"{'equal' if same else 'DIFFER'}",
            flush=True,
        )
        if arguments.population:
            rows += disturbed(head, folder / "population", data, list(POPULATION), [(6, "driver")])
            members = results(folder / "population").values()
            finished = sum(member["status"] == "finished" for member in members)
            taken = sum(
                len(json.loads(path.read_text())["taken"])
                for path in folder.glob("population/tune/trials/*/trial.json")
            )
            print(
                f"population: {finished} of {len(members)} finished, weights taken over {taken} times",
                flush=True,
            )
            same = same and finished == len(members)
    free = is_free(whole + rows)
    print(
        json.dumps(
            {
                "bench": "sweep_kills",
                "trials": len(expected),
                "blows": sum(row.get("struck", False) for row in rows),
                "equal": same,
                "free": free,
            }
        )
    )
    return 0 if same and free else 1


if __name__ == "__main__":
    sys.exit(main())
