"""How many of the declared seconds of recordings end in segments, and how many in rejects.

    python -m bench.data.seconds [--files] FOLDER [FOLDER ...]

Prepares each folder as the job does, one file after the other in one process, and verifies it as `--verify`
does. Prints a table. The declared seconds of a file are the larger of those that its header states and those
that its packets cover; if it cannot be opened, they are unknown. The used and the rejected seconds may add up
to less than the declared ones: at the end of each continuous part up to a frame, or 0.1 s, may be missing.
"""

import argparse
import tempfile
from pathlib import Path

from proav.config import Config
from proav.config.reading import load_config
from proav.data.prepare.finish import finish
from proav.data.prepare.isolation import IsolatedDecoder
from proav.data.prepare.plan import settle_plan
from proav.data.prepare.unit import process_unit
from proav.data.prepare.verify import verify
from proav.data.sources.finding import find_sources
from proav.data.sources.folders import is_video
from proav.data.store.shards import read_accounts, read_rejects


def prepare(config: Config) -> dict:
    """Prepares the data and returns the manifest. One other process decodes all units."""
    data_dir, sources = f"{config.run_folder}/data", find_sources(config)
    with IsolatedDecoder(config) as decoder:
        records = [
            process_unit(config, data_dir, unit, decoder)
            for unit in settle_plan(config, data_dir, sources).units()
        ]
    return finish(config, data_dir, sources, records)


def row_of(name: str, files: int, seconds: dict, reasons: dict[str, float]) -> str:
    """A row of the table, in Markdown.

    name: name of the recordings.
    files: their number.
    seconds: {"declared", "used", "rejected"}.
    reasons: {reason of rejection: seconds}.
    """
    total = seconds["used"] + seconds["rejected"]
    told = ", ".join(
        f"{reason} {value:.1f}" if value else reason
        for reason, value in sorted(reasons.items(), key=lambda item: -item[1])
    )
    numbers = (f"{value:.1f}" for value in (seconds["declared"], seconds["used"], seconds["rejected"], total))
    return f"| {name} | {files} | {' | '.join(numbers)} | {told} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", metavar="FOLDER")
    parser.add_argument("--files", action="store_true", help="also a row for each file")
    parser.add_argument("--fps", type=int, default=10)
    parser.add_argument("--segment-seconds", type=float, default=10.0)
    arguments = parser.parse_args()
    print(
        "| recordings | files | declared, s | used, s | rejected, s | sum, s | rejected for "
        "|\n|---|---|---|---|---|---|---|"
    )
    for folder in arguments.folders:
        videos = sorted(str(path) for path in Path(folder).iterdir() if is_video(path.name))
        with tempfile.TemporaryDirectory(prefix="proav-bench-") as run_dir:
            small = [
                "clip.height=64",
                "clip.width=64",
                "mel.num_bins=64",
                f"clip.fps={arguments.fps}",
                f"data.segment_seconds={arguments.segment_seconds}",
            ]
            config = load_config(None, [*small, f"run_dir={run_dir}"])
            # not by the command line: names may hold commas
            config = config.model_copy(
                update={"data": config.data.model_copy(update={"sources": tuple(videos)})}
            )
            manifest = prepare(config)
            verify(f"{run_dir}/data")
            rejects = read_rejects(f"{run_dir}/data").to_pylist()
            accounts = read_accounts(f"{run_dir}/data").to_pylist()
        spent: dict[str, dict[str, float]] = {}
        for row in rejects:
            reasons = spent.setdefault(row["source"], {})
            seconds = 0.0 if row["end_seconds"] is None else row["end_seconds"] - row["start_seconds"]
            reasons[row["reason"]] = reasons.get(row["reason"], 0.0) + seconds
        total: dict[str, float] = {}
        for reasons in spent.values():
            for reason, seconds in reasons.items():
                total[reason] = total.get(reason, 0.0) + seconds
        if arguments.files:
            for row in accounts:
                seconds = {
                    "declared": row["end_seconds"] - row["start_seconds"],
                    "used": row["used_seconds"],
                    "rejected": row["rejected_seconds"],
                }
                print(
                    row_of(f"`{row['source'].rsplit('/', 1)[-1]}`", 1, seconds, spent.get(row["source"], {}))
                )
        print(row_of(f"**{Path(folder).name}**", len(accounts), manifest["seconds"], total), flush=True)


if __name__ == "__main__":
    main()
