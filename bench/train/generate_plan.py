"""The cost of planning a batch generation in the driver, for a listing of a million rows.

    python -m bench.train.generate_plan [--rows N] [--done N] [--format parquet]

Makes a listing of --rows inputs with labels and seeds, CSV or Parquet. Plans it as ray_jobs/generate.py does,
once without finished samples, and once with the first --done samples finished (their files are empty). Each
step runs in a process of its own, since a process inherits its parent's peak of memory. Prints its wall time,
its processor time, and the largest growth of its resident memory after the imports; then one JSON line. Exits
with status 1 if a step took a minute of processor time.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
from pyarrow import csv, parquet

MAX_SECONDS = 60.0
CHECKPOINT = "examples/showcase/latest"
STEPS = ("new", "resumed")


def config_of(folder: Path):
    from proav.config.reading import load_config

    (listing,) = folder.glob("rows.*")
    words = [f"run_dir={folder}", f"generate.listing={listing}", "generate.task=v2a"]
    return load_config(None, words)


def make_listing(folder: Path, kind: str, rows: int, done: int) -> None:
    """Writes the listing, and samples/ with the manifest and the files of the first `done` samples."""
    from proav.generation.batch.manifest import line_of
    from proav.generation.batch.plan import manifest_row, shared_values, wanted_rows
    from proav.runs.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(CHECKPOINT, kind="stdit")
    labels = checkpoint.labels
    table = pa.table(
        {
            "path": [f"videos/{number % 1000:03d}/{number:07d}.mp4" for number in range(rows)],
            "label": [labels[number % len(labels)] for number in range(rows)],
            "seed": range(rows),
        }
    )
    write = {"csv": csv.write_csv, "parquet": parquet.write_table}[kind]
    write(table, folder / f"rows.{kind}")
    config = config_of(folder)
    shared = shared_values(config, checkpoint)
    (folder / "samples").mkdir()
    with open(folder / "samples" / "done.jsonl", "w") as manifest:
        for row, _ in zip(wanted_rows(config, checkpoint), range(done), strict=False):
            row = manifest_row(row, shared)
            path = folder / "samples" / row["path"]
            path.parent.mkdir(exist_ok=True)
            path.touch()
            manifest.write(line_of(row))


def plan(folder: Path) -> dict:
    from proav.generation.batch.plan import make_plan, shared_values, wanted_rows
    from proav.runs.checkpoint import load_checkpoint

    config, checkpoint = config_of(folder), load_checkpoint(CHECKPOINT, kind="stdit")
    before = resource.getrusage(resource.RUSAGE_SELF)
    began = time.monotonic()
    made = make_plan(
        f"{folder}/samples", wanted_rows(config, checkpoint), shared_values(config, checkpoint), 8
    )
    after = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "samples": made.num_wanted,
        "done": made.num_done,
        "batches": len(made.batches),
        "seconds": round(time.monotonic() - began, 1),
        "cpu_seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1),
        "more_memory_mb": round((after.ru_maxrss - before.ru_maxrss) / 1000),
        "imports_mb": round(before.ru_maxrss / 1000),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--done", type=int, default=100_000)
    parser.add_argument("--format", choices=["csv", "parquet"], default="csv")
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--plan", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.make is not None:
        make_listing(arguments.make, arguments.format, arguments.rows, arguments.done)
        return
    if arguments.plan is not None:
        print(json.dumps(plan(arguments.plan)))
        return
    itself = [sys.executable, "-m", "bench.train.generate_plan"]
    found = {}
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        sizes = ["--rows", str(arguments.rows), "--done", str(arguments.done), "--format", arguments.format]
        subprocess.run([*itself, "--make", str(folder), *sizes], check=True)
        for step in STEPS:
            if step == "resumed":
                os.rename(folder / "samples" / "done.jsonl", folder / "samples" / "manifest.jsonl")
            done = subprocess.run(
                [*itself, "--plan", str(folder)], capture_output=True, text=True, check=True
            )
            found[step] = json.loads(done.stdout.splitlines()[-1])
            print(step, found[step], flush=True)
    print(
        json.dumps(
            {"bench": "generate_plan", "rows": arguments.rows, "format": arguments.format, "steps": found}
        )
    )
    sys.exit(any(step["cpu_seconds"] > MAX_SECONDS for step in found.values()))


if __name__ == "__main__":
    main()
