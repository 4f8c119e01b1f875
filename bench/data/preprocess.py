"""Throughput of the preprocessing job on Ray against a plain loop over the same files.

    python -m bench.data.preprocess [--processes 2] [FILE ...]

The plain loop is a simple hand-written one, with as many processes as the job has tasks. Each process decodes
a file with PyAV in one pass, scales and resamples. It makes the same JPEGs, int16 sound and mel frames, and
writes one file for each source. It trusts every time stamp, computes no scores and no checksums, isolates
nothing, and cannot be resumed.

Both run in turn. The job's start-up is measured as a job over six files and subtracted; those six files are
not counted. Ratios are taken within a round, for wall time and for the processor time of all processes,
including Ray's. Other work on the machine affects processor time less. Prints a table and one JSON line.
Without files it uses generated clips of 640x360, 25 fps, 10 s.
"""

import argparse
import contextlib
import functools
import io
import itertools
import json
import multiprocessing
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import torch

from bench.data.decode import make_clips, plain_pass
from proav.config import Config
from proav.config.reading import load_config
from proav.data.store.frames import encode_frames
from proav.data.store.schema import FULL_SCALE
from proav.media.melframes import MelFrames

WARM_FILES = 6
"""Enough for every decoder to start."""


def make_config(run_dir: str, files: list[str]) -> Config:
    return load_config(
        "configs/landscape.yaml",
        [f"run_dir={run_dir}", "data.listing=[]", f"data.sources=[{','.join(files)}]", "data.labels=[]"],
    )


@functools.cache
def plain_tools() -> tuple[Config, MelFrames]:
    """The configuration and the mel transform that a process of the plain loop makes once."""
    torch.set_num_threads(1)
    config = make_config("unused", ["unused"])
    return config, MelFrames(config)


def plain_file(task: tuple[str, str]) -> tuple[int, int]:
    """(frames, bytes) of one source, decoded and written by the plain loop."""
    path, folder = task
    config, mel_frames = plain_tools()
    video, sound = plain_pass(path, config.data.fit)
    samples_per_frame = config.clip.sample_rate // config.clip.fps
    frames = min(len(video), len(sound) // samples_per_frame)
    step, written = int(config.data.segment_seconds * config.clip.fps), 0
    with open(f"{folder}/{Path(path).stem}.bin", "wb") as file:
        for first in range(0, frames, step):
            end = min(first + step, frames)
            audio = np.round(
                sound[first * samples_per_frame : end * samples_per_frame].clip(-1, 1) * FULL_SCALE
            ).astype(np.int16)
            mel = (
                mel_frames.encode(torch.from_numpy(audio.astype(np.float32) / FULL_SCALE)[None])[0]
                .numpy()
                .astype(np.float16)
            )
            pictures, _ = encode_frames(
                video[first:end], codec=config.data.frame_codec, quality=config.data.jpeg_quality
            )
            written += sum(file.write(part) for part in (pictures, audio.tobytes(), mel.tobytes()))
    return frames, written


def processor_seconds() -> float:
    """Processor seconds so far of this process and all its descendants, including Ray's."""
    total = 0.0
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        with contextlib.suppress(psutil.Error):
            total += sum(process.cpu_times()[:4])  # its own, and those of its children that have ended
    return total


@contextlib.contextmanager
def clocks() -> Iterator[dict]:
    """{"wall", "processor"} seconds of the block."""
    spent = {"wall": -time.perf_counter(), "processor": -processor_seconds()}
    yield spent
    spent["wall"] += time.perf_counter()
    spent["processor"] += processor_seconds()


def run_plain(pool, files: list[str], folder: str) -> tuple[dict, int, int]:
    os.makedirs(folder)
    with clocks() as spent:
        results = pool.map(plain_file, [(path, folder) for path in files], chunksize=1)
    return spent, *map(sum, zip(*results, strict=True))


def run_job(files: list[str], folder: str) -> tuple[dict, dict]:
    from proav.data.prepare.preprocess import preprocess

    with (
        clocks() as spent,
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        manifest = preprocess(make_config(folder, files))
    return spent, manifest["counts"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="*", metavar="FILE")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--copies", type=int, default=24, help="copies of each generated clip")
    arguments = parser.parse_args()
    import ray

    ray.init(address="local", num_cpus=arguments.processes, include_dashboard=False, logging_level="error")
    with (
        tempfile.TemporaryDirectory(prefix="proav-bench-") as folder,
        multiprocessing.get_context("spawn").Pool(arguments.processes) as pool,
    ):
        made = [] if arguments.files else make_clips(folder)
        first = itertools.islice(itertools.cycle(made or arguments.files), WARM_FILES)
        warm = [
            shutil.copy(path, f"{folder}/warm{number}{Path(path).suffix}")
            for number, path in enumerate(first)
        ]
        files = arguments.files or [
            shutil.copy(path, f"{folder}/{copy:03d}-{Path(path).name}")
            for copy in range(arguments.copies)
            for path in made
        ]
        run_plain(pool, warm * arguments.processes, f"{folder}/plain-warm")
        run_job(warm, f"{folder}/job-warm")
        rounds = []
        for number in range(arguments.rounds):
            plain, frames, written = run_plain(pool, files, f"{folder}/plain-{number}")
            start_up, warm_counts = run_job(warm, f"{folder}/job-warm-{number}")
            whole, counts = run_job([*warm, *files], f"{folder}/job-{number}")
            job = {clock: whole[clock] - start_up[clock] for clock in whole}
            job_frames = counts["frames"] - warm_counts["frames"]
            rounds.append(
                {"start_up": start_up["wall"]}
                | {f"plain_{clock}": frames / plain[clock] for clock in plain}
                | {f"job_{clock}": job_frames / job[clock] for clock in job}
            )
            print(
                f"round {number}: plain {frames} frames, {written / 1e6:.1f} MB in {plain['wall']:.1f} s "
                f"({plain['processor']:.1f} processor s); "
                f"job {job_frames} frames, {counts['bytes'] / 1e6:.1f} MB in {job['wall']:.1f} s "
                f"({job['processor']:.1f}) after {start_up['wall']:.1f} s",
                flush=True,
            )
            for name in (f"plain-{number}", f"job-{number}", f"job-warm-{number}"):
                shutil.rmtree(f"{folder}/{name}")

    def median(value) -> float:
        return statistics.median(value(each) for each in rounds)

    print(
        f"{'frames/s':12} {'of 2 cores' if arguments.processes == 2 else 'in all':>12} "
        f"{'a processor-second':>20} {'windows of 16 a processor-second':>34}"
    )
    for name in ("plain", "job"):
        wall, processor = (
            median(lambda each, key=f"{name}_{clock}": each[key]) for clock in ("wall", "processor")
        )
        print(f"{name:12} {wall:12.1f} {processor:20.1f} {processor / 16:34.2f}")
    ratios = {
        clock: median(lambda each, clock=clock: each[f"job_{clock}"] / each[f"plain_{clock}"])
        for clock in ("wall", "processor")
    }
    result = {
        "bench": "preprocess", "files": len(files),
        "processes": arguments.processes, "rounds": arguments.rounds,
        "plain_frames_per_second": round(median(lambda each: each["plain_wall"]), 1),
        "job_frames_per_second": round(median(lambda each: each["job_wall"]), 1),
        "job_over_plain": round(ratios["wall"], 3),
        "job_over_plain_by_processor_time": round(ratios["processor"], 3),
        "start_up_seconds": round(median(lambda each: each["start_up"]), 1),
        "machine": platform.processor() or platform.machine(), "cpus": os.cpu_count(),
    }  # fmt: skip
    print(json.dumps(result))


if __name__ == "__main__":
    main()
