"""The demo's time, memory and results, and the time of a second run.

    python -m bench.train.demo [--run-dir DIR] [section.key=value ...]

The second run finds that everything is done. Memory is the peak of all processes together: PSS counts shared
pages once, RSS counts them in every process. It is sampled only every few seconds, because reading it slows
down the processes that are read. Linux only (it reads /proc).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from pathlib import Path

from proav.reports.kit.tables import beside, values_text

ROOT = Path(__file__).parents[2]
MARK = "PROAV_BENCH_ID"
SAMPLE_SECONDS = 4.0


def memory_bytes(mark: str) -> tuple[int, int]:
    """(PSS, RSS) of all processes whose environment has the mark: the job, Ray's daemons and its workers."""
    pss = rss = 0
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and mark.encode() in (folder / "environ").read_bytes():
                fields = dict(
                    line.split(":", 1) for line in (folder / "smaps_rollup").read_text().splitlines()[1:]
                )
                pss, rss = (
                    pss + int(fields["Pss"].split()[0]) * 1024,
                    rss + int(fields["Rss"].split()[0]) * 1024,
                )
        except OSError:  # the process has ended meanwhile
            continue
    return pss, rss


def run_demo(words: list[str]) -> dict:
    """Seconds and peak memory of one run of the demo. Its output is printed."""
    mark = f"{MARK}={uuid.uuid4().hex}"
    environment = {**os.environ, MARK: mark.split("=")[1]}
    peak, ended = [0, 0], threading.Event()

    def watch() -> None:
        while not ended.wait(SAMPLE_SECONDS):
            peak[:] = [max(old, new) for old, new in zip(peak, memory_bytes(mark), strict=True)]

    watcher = threading.Thread(target=watch)
    began = time.monotonic()
    watcher.start()
    try:
        subprocess.run([sys.executable, "ray_jobs/demo.py", *words], cwd=ROOT, env=environment, check=True)
    finally:
        ended.set()
        watcher.join()
    return {
        "seconds": round(time.monotonic() - began, 1),
        "peak_pss_gib": round(peak[0] / 2**30, 2),
        "peak_rss_gib": round(peak[1] / 2**30, 2),
    }


def blockiness_rows(tables: list[dict]) -> list[tuple[str, str]]:
    """One line for each table: blockiness of pictures and of sound, with those of the real clips."""
    lines = []
    for table in tables:
        rows = {row["metric"]: row for row in table["rows"] if row["value"] is not None}
        texts = []
        for what, key in (("pictures", "blockiness"), ("sound", "blockiness_sound")):
            if key in rows:
                real = f" (real {rows[key]['floor']:.2f})" if rows[key]["floor"] else ""
                texts.append(f"{what} {rows[key]['value']:.2f}{real}")
        lines.append(("blockiness", f"{table['name']}: {', '.join(texts)}"))
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run-dir", help="where the run goes (default: a temporary folder)")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    arguments = parser.parse_intermixed_args()
    with tempfile.TemporaryDirectory(prefix="proav-bench-") as temporary:
        folder = Path(arguments.run_dir or temporary).absolute()
        words = [f"run_dir={folder}", *arguments.overrides]
        first, second = run_demo(words), run_demo(words)
        metrics = json.loads((folder / "eval" / "metrics.json").read_text())
    reconstruction, stdit = metrics["reconstruction"], metrics["stdit"]
    rows = [
        (
            "first run",
            f"{first['seconds']:.0f} s, peak {first['peak_pss_gib']} GiB (PSS), "
            f"{first['peak_rss_gib']} GiB (RSS)",
        ),
        ("second run", f"{second['seconds']:.0f} s"),
        ("picture", f"{reconstruction['psnr_db']:.2f} dB PSNR"),
        ("", beside(reconstruction, "picture")),
        ("sound", f"{reconstruction['mel_error_db']:.2f} dB log-mel error"),
        ("", beside(reconstruction, "sound")),
        ("yardsticks", f"with {values_text(metrics['yardsticks']['values_per_stream'])}, as MDSA"),
        *blockiness_rows(metrics["tables"]),
        ("ST-DiT", f"loss {stdit['loss']:.4f}; at initialization {stdit['loss_at_initialization']:.4f}"),
    ]
    print("\n".join(f"{name:<12}{text}" for name, text in rows))
    values = {"reconstruction": reconstruction, "yardsticks": metrics["yardsticks"], "stdit": stdit}
    print(json.dumps({"first": first, "second": second, "cpus": os.cpu_count(), **values}))


if __name__ == "__main__":
    main()
