"""Runs every job on storage that works and on storage whose calls fail for a moment, and compares.

    python -m bench.cluster.faults [--one-in 50] [--folder runs/faults] [section.key=value ...]

Runs preprocess, train (both stages), encode and generate three times, with a small form of configs/demo.yaml:

- in a plain folder
- at flaky://..., an fsspec file system (`bench/helpers/flaky_storage.py`)
- in a folder where the operating system's own calls fail (`bench/helpers/flaky_disk.c`, needs cc and Linux)

The source videos are there too. Prints faults, seconds and whether the results are equal to the last byte:
shards, checkpoints, curves, latents, samples.
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

ROOT = Path(__file__).resolve().parents[2]
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
register_implementation("flaky", "bench.helpers.flaky_storage.FlakyFileSystem")
"""


def run_job(name: str, settings: list[str], environment: dict) -> tuple[int, float, str]:
    """(exit status, wall seconds, last 20 lines of output) of one job."""
    began = time.monotonic()
    command = [
        sys.executable,
        str(ROOT / "ray_jobs" / f"{name}.py"),
        "--config",
        "configs/demo.yaml",
        *settings,
    ]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    return (
        done.returncode,
        time.monotonic() - began,
        "\n".join((done.stdout + done.stderr).splitlines()[-20:]),
    )


def results(run: Path) -> dict[str, str]:
    """{file: SHA-256} of the results that must not depend on the storage; for metrics, the curve itself."""
    found = {}
    weights = (f"{stage}/checkpoints/**/*.safetensors" for stage in ("mdsa", "stdit"))
    for pattern in ("data/segments/*", *weights, "latents/*.parquet", "samples/**/*.mp4"):
        for path in run.glob(pattern):
            found[str(path.relative_to(run))] = hashlib.sha256(path.read_bytes()).hexdigest()
    for stage in ("mdsa", "stdit"):
        found[f"{stage}/metrics"] = json.dumps(curve(run / stage))
    return found


def curve(folder: Path) -> list[dict]:
    """The reports of a stage, without the values that depend on the machine, such as seconds."""
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
    paths = [str(folder / "site"), str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "FLAKY_ONE_IN": str(arguments.one_in),
        "FLAKY_LOG": str(folder / "faults.log"),
    }
    library = str(folder / "flaky_disk.so")
    compiler = [
        "cc",
        "-shared",
        "-fPIC",
        "-O1",
        "-o",
        library,
        str(ROOT / "bench" / "helpers" / "flaky_disk.c"),
        "-ldl",
    ]
    subprocess.run(compiler, check=True)
    places = {
        "plain": (str(folder / "plain"), {}),
        "flaky store": (f"flaky://{folder}/store", {}),
        "flaky disk": (str(folder / "disk"), {"LD_PRELOAD": library, "FLAKY_DIR": str(folder / "disk")}),
    }
    rows, log = [], folder / "faults.log"
    for place, (run_dir, more) in places.items():
        shutil.copytree(ROOT / "examples" / "clips", f"{run_dir.removeprefix('flaky://')}/clips")
        clips = f"data.listing={run_dir}/clips/clips.csv"
        for job, words in JOBS:
            settings = [f"run_dir={run_dir}", clips, *SMALL, *words, *arguments.overrides]
            log.unlink(missing_ok=True)
            status, seconds, text = run_job(job, settings, environment | more)
            faults = len(log.read_text().splitlines()) if log.exists() else 0
            row = {"storage": place, "job": " ".join([job, *words]), "status": status}
            rows.append(row | {"seconds": round(seconds, 1), "faults": faults})
            print(json.dumps(rows[-1]), flush=True)
            if status:
                raise SystemExit(text)
    plain, differing = results(folder / "plain"), {}
    for name in ("store", "disk"):
        other = results(folder / name)
        differing[name] = sorted(
            key for key in plain.keys() | other.keys() if plain.get(key) != other.get(key)
        )
    faults = sum(row["faults"] for row in rows)
    found = {"bench": "faults", "one_in": arguments.one_in, "faults": faults, "files": len(plain)}
    print(json.dumps(found | {"differing": differing, "jobs": rows}))
    raise SystemExit(1 if any(differing.values()) else 0)


if __name__ == "__main__":
    main()
