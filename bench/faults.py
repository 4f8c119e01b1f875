"""Runs every job twice, on storage that works and on storage where one call in N fails for a moment, and
compares.

    python bench/faults.py [--one-in 50] [--folder runs/faults] [section.key=value ...]

preprocess, train (both stages), encode and generate with configs/demo.yaml, made small. The second time the
run is at flaky://..., a local folder behind `flaky_storage.py`. Prints faults, seconds and whether the
results are equal to the last byte: shards, checkpoints, curves, latents, samples.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
SMALL = (
    "mdsa.linear_planes.fit_clips=64", "mdsa.linear_planes.alone_clips=160",
    "mdsa.train.num_clips=240", "mdsa.train.checkpoint_every_clips=40", "mdsa.train.report_every_clips=8",
    "stdit.train.num_clips=320", "stdit.train.checkpoint_every_clips=64", "stdit.train.report_every_clips=16",
    "generate.num_samples=12", "generate.steps=4", "generate.batch_size=2",
)  # fmt: skip
JOBS = (
    ("preprocess", ()),
    ("train", ("stage=mdsa",)),
    ("encode", ()),
    ("train", ("stage=stdit",)),
    ("generate", ()),
)
OF_THE_MACHINE = {
    "seconds", "clips_per_second", "data_wait", "worker_wait", "host_wait", "device", "peak_memory_gib",
}  # fmt: skip
SITE = """
from fsspec.registry import register_implementation
register_implementation("flaky", "flaky_storage.FlakyFileSystem")
"""


def run_job(name: str, settings: list[str], environment: dict) -> tuple[int, float, str]:
    """(status, seconds, last lines) of one job."""
    began = time.monotonic()
    command = [
        sys.executable,
        str(HERE.parent / "ray_jobs" / f"{name}.py"),
        "--config",
        "configs/demo.yaml",
        *settings,
    ]
    done = subprocess.run(command, env=environment, cwd=HERE.parent, capture_output=True, text=True)
    return (
        done.returncode,
        time.monotonic() - began,
        "\n".join((done.stdout + done.stderr).splitlines()[-20:]),
    )


def results(run: Path) -> dict[str, str]:
    """{file: SHA-256 of what must not depend on the storage}."""
    found = {}
    weights = (f"{stage}/checkpoints/**/*.safetensors" for stage in ("mdsa", "stdit"))
    for pattern in ("data/segments/*", *weights, "latents/*.parquet", "samples/**/*.mp4"):
        for path in run.glob(pattern):
            found[str(path.relative_to(run))] = hashlib.sha256(path.read_bytes()).hexdigest()
    for stage in ("mdsa", "stdit"):
        found[f"{stage}/metrics"] = json.dumps(curve(run / stage))
    return found


def curve(folder: Path) -> list[dict]:
    """The reports of a stage, without what the machine adds."""
    files = (
        [folder / "metrics.jsonl"]
        if (folder / "metrics.jsonl").exists()
        else sorted((folder / "metrics").glob("*"))
    )
    lines = (json.loads(line) for file in files for line in file.read_text().splitlines())
    return [{key: value for key, value in line.items() if key not in OF_THE_MACHINE} for line in lines]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--one-in", type=int, default=50, metavar="N")
    parser.add_argument("--folder", type=Path, default=Path("runs/faults"))
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "site").mkdir(parents=True)
    (folder / "site" / "sitecustomize.py").write_text(SITE)
    paths = [str(folder / "site"), str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "FLAKY_ONE_IN": str(arguments.one_in),
        "FLAKY_LOG": str(folder / "faults.log"),
    }
    rows, faults = [], 0
    for kind, run_dir in (("plain", str(folder / "plain")), ("flaky", f"flaky://{folder}/flaky")):
        for job, words in JOBS:
            settings = [f"run_dir={run_dir}", *SMALL, *words, *arguments.overrides]
            status, seconds, text = run_job(job, settings, environment)
            log = folder / "faults.log"
            now = len(log.read_text().splitlines()) if log.exists() else 0
            rows.append({"storage": kind, "job": " ".join([job, *words]), "status": status,
                         "seconds": round(seconds, 1), "faults": now - faults})  # fmt: skip
            faults = now
            print(json.dumps(rows[-1]), flush=True)
            if status:
                raise SystemExit(text)
    one, other = results(folder / "plain"), results(folder / "flaky")
    differing = sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
    print(json.dumps({"bench": "faults", "one_in": arguments.one_in, "faults": faults, "files": len(one),
                      "differing": differing, "jobs": rows}))  # fmt: skip
    raise SystemExit(1 if differing else 0)


if __name__ == "__main__":
    main()
