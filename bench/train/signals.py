"""Sends SIGTERM at random moments to a training job's driver or to one of its workers, and runs it again.

    python -m bench.train.signals [--signals 20] [--job-stops 0] [--seed 0] [--folder runs/signals]
    [section.key=value ...]

Two workers with ZeRO-2 train the demo's MDSA. Checkpoints are written only at signals and at the end. Prints
for each signal the seconds until the driver ends, its status, and the number of steps that are not in the
newest checkpoint. Ends with status 1 unless the curve and the weights are those of a run without signals.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from bench.cluster.faults import curve, results
from bench.cluster.submit import stop_running_job, submitted, wait_for
from bench.helpers.local_head import LocalHead

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = (
    "stage=mdsa", "mdsa.linear_planes.fit_clips=32", "mdsa.linear_planes.alone_clips=100000",
    "mdsa.train.engine=deepspeed", "mdsa.train.zero_stage=2", "mdsa.train.num_workers=2",
    "mdsa.train.cpus_per_worker=1", "mdsa.train.report_every_clips=8",
    "mdsa.train.checkpoint_every_clips=1000000", "mdsa.train.checkpoint_every_minutes=0",
)  # fmt: skip


def command(folder: Path, data: Path, words: list[str]) -> list[str]:
    job = str(ROOT / "ray_jobs" / "train.py")
    own = [f"run_dir={folder}", f"data.prepared={data}"]
    return [sys.executable, job, "--config", "configs/demo.yaml", *own, *SETTINGS, *words]


def workers(driver: psutil.Process) -> list[psutil.Process]:
    """The training workers below a driver with a Ray of its own."""
    found = []
    for process in driver.children(recursive=True):
        try:
            if "RayTrainWorker" in process.name() or any(
                "RayTrainWorker" in word for word in process.cmdline()
            ):
                found.append(process)
        except psutil.Error:  # it has ended
            continue
    return found


def lost_steps(folder: Path) -> int:
    """Reports of steps that the newest checkpoint does not cover."""
    lines = curve(folder / "mdsa")
    index = folder / "mdsa" / "checkpoints" / "latest"
    clips = int(index.read_text().strip().removeprefix("clips-")) if index.exists() else 0
    return sum(line["clips"] > clips for line in lines)


def stop_submitted(times: int, run: Path, data: Path, words: list[str], chance: random.Random) -> list[dict]:
    """Submits the job to a head on this machine and stops it with `ray job stop`, at random moments.

    times: how often to stop it.
    run: folder of the run.
    data: prepared data.
    words: settings.
    chance: draws the moments.
    """
    rows = []
    if not times:
        return rows
    with LocalHead(num_cpus=2, environment={"RAY_JOB_STOP_WAIT_TIME_S": "90"}) as head:
        for number in range(times):
            before = curve(run / "mdsa")
            with submitted(head, *command(run, data, words)[1:]) as job:
                wait_for(job, lambda before=before: curve(run / "mdsa") != before)
                time.sleep(chance.uniform(0, 8))
                done, began = curve(run / "mdsa"), time.monotonic()
                status = stop_running_job(head)
                seconds = time.monotonic() - began
            rows.append(
                {
                    "job_stop": number + 1,
                    "new_reports": len(done) - len(before),
                    "status": status,
                    "seconds": round(seconds, 1),
                    "lost_steps": lost_steps(run),
                }
            )
            print(json.dumps(rows[-1]), flush=True)
    return rows


def send_signals(times: int, folder: Path, data: Path, words: list[str], chance: random.Random) -> list[dict]:
    """Starts the job and sends SIGTERM to it or to one of its workers, at random moments.

    times: how often.
    folder: of the benchmark; the run is in folder/disturbed, logs are beside it.
    data: prepared data.
    words: settings.
    chance: draws the moments.
    Raises SystemExit if a training ends before its signal.
    """
    rows, run = [], folder / "disturbed"
    for number in range(times):
        with (folder / f"{number:02d}.log").open("w") as log:
            process = subprocess.Popen(
                command(run, data, words), cwd=ROOT, stdout=log, stderr=subprocess.STDOUT
            )
        before = curve(run / "mdsa")
        if chance.random() < 0.25:  # while it starts
            time.sleep(chance.uniform(1, 15))
        else:
            while process.poll() is None and curve(run / "mdsa") == before:
                time.sleep(0.1)
            time.sleep(chance.uniform(0, 8))
        if process.poll() is not None:
            raise SystemExit(
                f"signals: the training ended before signal {number + 1} (status {process.returncode}, see "
                f"{folder / f'{number:02d}.log'}); make it longer: mdsa.train.num_clips=N"
            )
        found = workers(psutil.Process(process.pid))
        target = chance.choice(found) if found and chance.random() < 0.5 else psutil.Process(process.pid)
        done, began = curve(run / "mdsa"), time.monotonic()
        kind = "driver" if target.pid == process.pid else "worker"
        os.kill(target.pid, signal.SIGTERM)
        status = process.wait()
        said = (folder / f"{number:02d}.log").read_text()
        rows.append(
            {
                "signal": number + 1,
                "to": kind,
                "new_reports": len(done) - len(before),
                "status": status,
                "seconds": round(time.monotonic() - began, 1),
                "lost_steps": lost_steps(run),
                "says_how_to_go_on": "run the same command again to go on" in said,
                "traceback": "Traceback" in said,
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--signals", type=int, default=20)
    parser.add_argument("--job-stops", type=int, default=0, help="times to stop a submitted job first")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("runs/signals"))
    parser.add_argument("--data", type=Path, help="prepared data of another run (default: prepared anew)")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    arguments = parser.parse_args()
    folder, chance = arguments.folder.resolve(), random.Random(arguments.seed)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    data = arguments.data.resolve() if arguments.data else folder / "prepared" / "data"
    if not arguments.data:
        prepare = [
            sys.executable,
            str(ROOT / "ray_jobs" / "preprocess.py"),
            "--config",
            "configs/demo.yaml",
        ]
        subprocess.run(
            [*prepare, f"run_dir={folder / 'prepared'}"], cwd=ROOT, check=True, capture_output=True
        )
    rows = stop_submitted(arguments.job_stops, folder / "disturbed", data, arguments.overrides, chance)
    rows += send_signals(arguments.signals, folder, data, arguments.overrides, chance)
    for name in ("disturbed", "undisturbed"):
        subprocess.run(
            command(folder / name, data, arguments.overrides),
            cwd=ROOT,
            check=True,
            capture_output=True,
        )
    one, other = (results(folder / name) for name in ("disturbed", "undisturbed"))
    # only the undisturbed run's files: the disturbed run has also the checkpoints written at signals
    newest = {name for name in other if "checkpoints" in name}
    curve_equal = curve(folder / "disturbed" / "mdsa") == curve(folder / "undisturbed" / "mdsa")
    checkpoint_equal = all(one.get(name) == other[name] for name in newest)
    found = {
        "curve_equal": curve_equal,
        "checkpoint_equal": checkpoint_equal,
        "largest_seconds": max((row["seconds"] for row in rows), default=0),
        "lost_steps": max((row["lost_steps"] for row in rows), default=0),
        "signals": rows,
    }
    print(json.dumps({"bench": "signals", **found}))
    raise SystemExit(0 if curve_equal and checkpoint_equal else 1)


if __name__ == "__main__":
    main()
