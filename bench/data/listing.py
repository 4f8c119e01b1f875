"""What a listing of millions of rows costs the driver: planning, resuming, the manifest.

    python -m bench.data.listing [--rows N] [--files N]

Makes a listing like AudioSet's, with --files empty files, and substitutes for finished units. For the
substitutes one real segment is decoded, and its row is repeated under other ids. Records, rejects and
accounts are written by the functions that write real ones; shards hold dummy bytes. A fifth of the clips are
rejects, as in the real listing.

Then each step runs in a process of its own. Its wall time and its highest resident memory (ru_maxrss, imports
included) are compared with bounds; its processor time is only shown. Prints a table and one JSON line.
Exits with status 1 if a bound is exceeded.
"""

import argparse
import hashlib
import json
import platform
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from proav.data.prepare.unit import WorkUnit
    from proav.media.container import Clip

MAX_SECONDS, MAX_GB = 120.0, 3.0
REJECTED = 0.2
"""Share of AudioSet's videos that are no longer online."""
ROWS_PER_SHARD = 64
LABELS = 527
STEPS = {
    "plan": "find_sources and settle_plan, plan.parquet written",
    "resume": "find_sources, settle_plan against plan.parquet, "
    "all units' records read and their files checked",
    "manifest": "finish: index.parquet, filters and manifest.json (sources and records at hand)",
}


def make_listing(folder: Path, rows: int, files: int) -> None:
    """unbalanced_train_segments.csv, class_labels_indices.csv and videos/, as AudioSet has them."""
    draw = random.Random(0)
    mids = [f"/m/{number:05x}" for number in range(LABELS)]
    folder.mkdir(parents=True)
    (folder / "class_labels_indices.csv").write_text(
        "index,mid,display_name\n"
        + "".join(f'{number},{mid},"Sound {number}, of a kind"\n' for number, mid in enumerate(mids))
    )
    names = []
    with open(folder / "unbalanced_train_segments.csv", "w") as listing:
        listing.write(
            f"# Segments csv created\n# num_ytids={rows}\n"
            "# YTID, start_seconds, end_seconds, positive_labels\n"
        )
        for number in range(rows):
            name, start = hashlib.sha256(str(number).encode()).hexdigest()[:10] + "-", 10 * draw.randrange(40)
            listing.write(
                f'{name}, {start}.000, {start + 10}.000, "{",".join(draw.sample(mids, 1 + number % 4))}"\n'
            )
            names.append(f"{name[:2]}/{name}_{start:06d}.mp4") if number < files else None
    for name in names:
        path = folder / "videos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (folder / "videos").mkdir(exist_ok=True)


def config_of(folder: Path):
    from proav.config.reading import load_config

    words = [
        f"run_dir={folder}/run",
        f"data.listing={folder}/unbalanced_train_segments.csv",
        f"data.videos={folder}/videos",
    ]
    filters = [
        "filters.min_rms_db=-60",
        "filters.max_black=0.5",
        "filters.max_frozen=0.9",
        "filters.duplicates=near",
        "filters.avoid_shot_cuts=true",
    ]
    return load_config(
        None,
        [
            *words,
            f"data.ontology={folder}/class_labels_indices.csv",
            f"data.rows_per_shard={ROWS_PER_SHARD}",
            *filters,
        ],
    )


def real_row(folder: Path, clip: "Clip") -> dict:
    """Decodes one real segment by the job's own functions; returns its row of the index."""
    import pyarrow.parquet as pq

    from proav.config.reading import load_config
    from proav.data.prepare.plan import make_plan
    from proav.data.prepare.source_decoder import SourceDecoder
    from proav.data.prepare.unit import process_unit
    from proav.data.sources.finding import find_sources

    clip.save(str(folder / "real.mp4"))
    sizes = ["clip.height=64", "clip.width=64", "mel.num_bins=64", "mel.hop=100"]
    config = load_config(None, [f"data.sources=[{folder}/real.mp4]", *sizes])
    process_unit(
        config, str(folder / "real"), make_plan(find_sources(config)).unit("000000"), SourceDecoder(config)
    )
    return pq.read_table(folder / "real" / "units" / "000000.parquet").to_pylist()[0]


def make_units(folder: Path) -> None:
    """Writes substitutes for the files of finished units."""
    import numpy as np

    from proav.data.prepare.plan import settle_plan
    from proav.data.sources.finding import find_sources
    from proav.media.container import Clip

    rng = np.random.default_rng(0)
    video = rng.integers(0, 256, (20, 64, 64, 3), np.uint8)
    audio = rng.normal(0, 0.1, 32000).astype(np.float32)
    pattern = real_row(folder, Clip(video, audio, 10, 16000))
    config, data_dir = config_of(folder), folder / "run" / "data"
    plan = settle_plan(config, str(data_dir), find_sources(config))
    for name in ("segments", "rejects", "sources", "units"):
        (data_dir / name).mkdir(exist_ok=True)
    for unit in plan.units():
        make_unit(unit, pattern, rng, data_dir)


def make_unit(unit: "WorkUnit", pattern: dict, rng: "np.random.Generator", data_dir: Path) -> None:
    """Writes substitutes for the files of one finished unit.

    unit: of the plan.
    pattern: a row of the index, which each segment repeats.
    rng: draws what differs between segments.
    data_dir: the data set's folder.
    """
    from proav.data.prepare.unit import Account, reject_row, write_accounts, write_record
    from proav.data.sources.finding import segment_id
    from proav.data.store.parquet import write_shard
    from proav.data.store.schema import REJECT_SCHEMA

    rows, rejects, shards, accounts = [], [], [], []
    for source in unit.sources:
        identity, account = segment_id(source.key, source.start_seconds), Account(source)
        accounts.append(account)
        if int(source.id[:6], 16) / 16**6 < REJECTED:
            said = f"{source.key}: no such file"
            rejects.append(reject_row(source, source.start_seconds, source.end_seconds, "not_found", said))
            account.reject(rejects[-1])
            continue
        own = {
            "id": identity,
            "start_seconds": source.start_seconds,
            "shard": f"{unit.name}-{len(rows) // ROWS_PER_SHARD:03d}.parquet",
            "row": len(rows) % ROWS_PER_SHARD,
            "source": source.key,
            "source_id": source.id,
            "label": source.label,
            "labels": list(source.labels),
            "split": source.split,
            "checksum": identity * 2,
            "picture_hash": rng.bytes(32),
            "sound_hash": rng.bytes(32),
            "rms": float(rng.random()),
        }
        rows.append(pattern | own)
        account.use(rows[-1])
    for first in range(0, len(rows), ROWS_PER_SHARD):
        name, some = rows[first]["shard"], rows[first : first + ROWS_PER_SHARD]
        (data_dir / "segments" / name).write_bytes(b"shard")
        shards.append({"name": name, "rows": len(some), "bytes": 5, "sha256": unit.sources[-1].id * 4})
    rejected = None
    if rejects:
        path = str(data_dir / "rejects" / f"{unit.name}.parquet")
        rejected = write_shard(path, rejects, REJECT_SCHEMA, rows_per_group=1024)
    record = {"name": unit.name, "sources": len(unit.sources), "shards": shards, "rejects": rejected}
    record |= write_accounts(str(data_dir), unit.name, [account.row() for account in accounts])
    write_record(str(data_dir), record, rows)


def run_step(step: str, folder: Path) -> dict:
    """Runs one step in this process; returns {"seconds", "cpu_seconds", "gb", ...}."""
    from proav.data.prepare.finish import finish
    from proav.data.prepare.plan import settle_plan
    from proav.data.prepare.preprocess import finished_records
    from proav.data.sources.finding import find_sources

    config, data_dir = config_of(folder), str(folder / "run" / "data")
    begun, cpu = time.perf_counter(), time.process_time()
    sources = find_sources(config)
    found = time.perf_counter() - begun
    plan = settle_plan(config, data_dir, sources)
    result = {"find_sources": found, "sources": sources.num_rows, "units": len(plan)}
    if step != "plan":
        records = finished_records(data_dir, plan)
        assert len(records) == len(plan), f"{len(records)} of {len(plan)} units are finished"
    if step == "manifest":
        finished, sources = [records[name] for name in plan.names], sources.select(["id", "label"])
        del plan, records
        begun, cpu = time.perf_counter(), time.process_time()
        manifest = finish(config, data_dir, sources, finished)
        result |= {
            "index_bytes": manifest["index"]["bytes"],
            "segments": manifest["counts"]["segments"],
            "rejects": manifest["counts"]["rejects"],
        }
        assert result["segments"] + result["rejects"] == sources.num_rows
    return {
        "seconds": time.perf_counter() - begun,
        "cpu_seconds": time.process_time() - cpu,
        "gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
        **result,
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=2_000_000, help="rows of the listing")
    parser.add_argument("--files", type=int, default=100_000, help="empty files to make")
    parser.add_argument("--folder", help="working folder (default: a temporary one)")
    parser.add_argument("--step", choices=["units", *STEPS], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        folder = Path(arguments.folder)
        print(
            json.dumps(make_units(folder) if arguments.step == "units" else run_step(arguments.step, folder))
        )
        return 0
    folder = Path(tempfile.mkdtemp(prefix="proav-listing-", dir=arguments.folder)) / "bench"
    try:
        make_listing(folder, arguments.rows, arguments.files)
        results = {}
        for step in ("plan", "units", "resume", "manifest"):
            begun = time.perf_counter()
            done = subprocess.run(
                [sys.executable, __file__, "--step", step, "--folder", str(folder)],
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            ).stdout.strip()
            results[step] = json.loads(done.splitlines()[-1])
            print(
                f"{step}: {time.perf_counter() - begun:.0f} s with the start of the process",
                file=sys.stderr,
                flush=True,
            )
    finally:
        shutil.rmtree(folder.parent)
    results.pop("units")
    print(
        f"\n{arguments.rows:,} rows, {min(arguments.files, arguments.rows):,} files there, "
        f"{results['plan']['units']:,} units\n"
    )
    print("| step | seconds | processor seconds | GB | within the bounds | what |\n|---|---|---|---|---|---|")
    for step, result in results.items():
        result["within"] = result["seconds"] <= MAX_SECONDS and result["gb"] <= MAX_GB
        print(
            f"| {step} | {result['seconds']:.1f} | {result['cpu_seconds']:.1f} | {result['gb']:.2f} | "
            f"{'yes' if result['within'] else 'NO'} | {STEPS[step]} |"
        )
    print(
        json.dumps(
            {
                "rows": arguments.rows,
                "files": arguments.files,
                "python": platform.python_version(),
                "steps": results,
            }
        )
    )
    return 0 if all(result["within"] for result in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
