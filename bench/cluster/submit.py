"""What it takes to send a job to a running cluster.

    python -m bench.cluster.submit [--run-dir DIR] [key=value ...]

Starts a head on this machine and sends preprocess.py and train.py stage=mdsa to it with
`ray job submit --working-dir .`. Then stops the training half-way and sends it again. Prints the bytes
uploaded, the seconds from submission to the first training step, and the checkpoint from which the stopped
run continued, as a table and one JSON line.
"""

import argparse
import contextlib
import json
import re
import subprocess
import tempfile
import time
from pathlib import Path

# the function with which `ray job submit` packs; it has no public name
from ray._private.runtime_env.packaging import create_package

from bench.helpers.local_head import LocalHead

ROOT = Path(__file__).parents[2]
JOB_SECONDS = 600.0


def upload_bytes() -> int:
    """Bytes of the package that `--working-dir .` sends, packed as Ray packs it."""
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "package.zip"
        create_package(str(ROOT), package, include_gitignore=True, logger=None)
        return package.stat().st_size


@contextlib.contextmanager
def submitted(head: LocalHead, *words: str):
    """Submits a job; yields its `ray job submit` process, which prints the job's output."""
    command = ["ray", "job", "submit", "--working-dir", ".", "--", "python", *words]
    process = subprocess.Popen(
        command, cwd=ROOT, env=head.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def finish(process: subprocess.Popen) -> str:
    """Waits for the job's end and returns its output. Raises RuntimeError if the job failed."""
    output = process.communicate(timeout=JOB_SECONDS)[0]
    if process.returncode:
        raise RuntimeError(f"the job failed:\n{output}")
    return output


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def wait_for(process: subprocess.Popen, happened) -> float:
    """Seconds until `happened()`. Raises RuntimeError if the job ends first, or after JOB_SECONDS."""
    began = time.monotonic()
    while not happened():
        if process.poll() is not None or time.monotonic() - began > JOB_SECONDS:
            raise RuntimeError(
                f"the job ended, or took over {JOB_SECONDS:.0f} s:\n{process.communicate()[0]}"
            )
        time.sleep(0.05)
    return time.monotonic() - began


def stop_running_job(head: LocalHead) -> str:
    """Stops the one running job with `ray job stop`; returns its status afterwards."""
    running = [identity for identity, status in list_jobs(head).items() if status == "RUNNING"]
    assert len(running) == 1, f"expected one running job, found {running}"
    head.run("ray", "job", "stop", running[0])
    return list_jobs(head)[running[0]]


def list_jobs(head: LocalHead) -> dict[str, str]:
    """Submission id -> status, from `ray job list`."""
    listed = head.run("ray", "job", "list").stdout
    return dict(re.findall(r"submission_id='(raysubmit_\w+)'.*?<JobStatus\.(\w+)", listed))


def measure(run_dir: Path, num_cpus: int, num_clips: int, overrides: list[str]) -> dict:
    """The numbers of the benchmark. The arguments are those of the command line."""
    every = [
        "train.report_every_clips=8",
        f"train.checkpoint_every_clips={num_clips // 4}",
        f"train.num_clips={num_clips}",
    ]
    train = [
        "ray_jobs/train.py",
        "--config",
        "configs/demo.yaml",
        "stage=mdsa",
        *every,
        f"run_dir={run_dir}",
        *overrides,
    ]
    metrics, latest = run_dir / "mdsa" / "metrics.jsonl", run_dir / "mdsa" / "checkpoints" / "latest"
    began = time.monotonic()
    with LocalHead(num_cpus=num_cpus) as head:
        result = {"upload_bytes": upload_bytes(), "head_start_seconds": time.monotonic() - began}
        began = time.monotonic()
        with submitted(head, "ray_jobs/preprocess.py", f"run_dir={run_dir}", *overrides) as job:
            finish(job)
        result["preprocess_seconds"] = time.monotonic() - began
        with submitted(head, *train) as job:
            result["first_step_seconds"] = wait_for(job, lambda: read_lines(metrics))
            wait_for(job, latest.exists)
            result["status_after_stop"] = stop_running_job(head)
        result["clips_when_stopped"] = read_lines(metrics)[-1]["clips"]
        began = time.monotonic()
        with submitted(head, *train) as job:
            output = finish(job)
        result["second_train_seconds"] = time.monotonic() - began
        result["went_on_from"] = re.search(r"continuing from \S*/(clips-\d+)", output)[1]
    lines = read_lines(metrics)
    result["clips"], result["loss"] = lines[-1]["clips"], lines[-1]["loss"]
    assert [line["clips"] for line in lines] == list(range(8, num_clips + 1, 8)), (
        "metrics.jsonl has a gap or a repetition"
    )
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--run-dir", metavar="DIR", help="an empty folder to keep the run in (default: a temporary one)"
    )
    parser.add_argument("--num-cpus", type=int, default=2, help="CPUs that the head offers (default: 2)")
    parser.add_argument(
        "--num-clips", type=int, default=256, help="clips to train, a multiple of 32 (default: 256)"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings for both jobs")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        result = measure(
            Path(arguments.run_dir or temporary).absolute(),
            arguments.num_cpus,
            arguments.num_clips,
            arguments.overrides,
        )
    print(f"upload                              {result['upload_bytes'] / 2**20:8.1f} MiB")
    print(f"submit to first training step       {result['first_step_seconds']:8.1f} s")
    print(f"preprocess, submit to end           {result['preprocess_seconds']:8.1f} s")
    print(
        f"{result['status_after_stop'].lower()} after                       "
        f"{result['clips_when_stopped']:8d} clips, went on from {result['went_on_from']}"
    )
    print(
        f"second submit to end                {result['second_train_seconds']:8.1f} s, {result['clips']} "
        f"clips, loss {result['loss']:.4f}"
    )
    print(json.dumps(result))


if __name__ == "__main__":
    main()
