"""Batch generation against a bare loop over the pipeline, and where the seconds of a clip go.

    python -m bench.train.generate [--checkpoint PATH] [--clips N] [--steps N ...] [--batch N]

For each number of steps, the loop makes clips 0 .. N - 1 in this process, on one thread, and times each part.
It counts each part's FLOPs on one more batch: matrix products, convolutions and attention, as torch counts
them, without the Fourier transforms of the sound. mp4 has none. Then jobs make the same clips like
ray_jobs/generate.py, each with its own Ray: with one generating actor, with two, and with one generating
actor and one that makes sounds and files. Every job is a process of its own.

A job has two rates. `clips_per_second` is from the end of the first batch to the end of the last, and can be
compared with the loop's rate. `with_start` includes Ray's start and the loading of the model. `equal_files`:
whether all files are those of the loop, bit for bit.
Prints a table and one JSON line. There is no threshold: on a busy machine the rates mean little.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

JOBS = {
    "one actor": ["generate.num_workers=1"],
    "two actors": ["generate.num_workers=2"],
    "one actor, one writer": ["generate.num_workers=1", "generate.num_writers=1"],
}


def loop(config, folder: Path) -> dict:
    """Runs a loop without Ray; returns the seconds and GFLOPs of each part, per clip."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from proav.generation.coder import to_clips
    from proav.generation.denoise import denoise
    from proav.generation.finishing import phase_seed
    from proav.generation.pipeline import SampleRequest, SoundingVideoPipeline
    from proav.generation.sampling_settings import SamplingSettings

    torch.set_num_threads(1)
    pipeline = SoundingVideoPipeline.from_checkpoint(config.generate.checkpoint)
    settings, coder = SamplingSettings.from_config(config), pipeline.coder
    seconds, flops = {}, {}
    size, count = config.generate.batch_size, config.generate.num_samples

    def timed(name, work):
        began = time.monotonic()
        result = work()
        seconds[name] = seconds.get(name, 0.0) + time.monotonic() - began
        return result

    def counted(name, work):
        with FlopCounterMode(display=False) as counter:
            result = work()
        flops[name] = counter.get_total_flops()
        return result

    def make(first, run):
        requests = [
            SampleRequest(
                config.seed, index, pipeline.labels[index % len(pipeline.labels)], settings=settings
            )
            for index in range(first, min(count, first + size))
        ]
        with torch.inference_mode():
            group = pipeline._group(settings.schedule, requests)
            (stack,) = run("denoising", lambda: denoise(pipeline.stdit, pipeline.process, [group]))
            video, mel = run("decoding", lambda: coder.decode(coder.denormalize(stack)))
            seeds = [phase_seed(request.seed, request.index) for request in requests]
            clips = run("mel", lambda: to_clips(coder.mel_frames, video, mel, seeds=seeds))
        return zip(requests, clips, strict=True)

    made = len(list(make(0, counted)))
    began = time.monotonic()
    for first in range(0, count, size):
        for request, clip in make(first, timed):
            path = folder / f"{request.index:09d}.mp4"
            timed("muxing", lambda clip=clip, path=path: clip.save(str(path)))
    return {
        "clips_per_second": round(count / (time.monotonic() - began), 3),
        "seconds_per_clip": {name: round(value / count, 4) for name, value in seconds.items()},
        "gflops_per_clip": {name: round(value / made / 1e9, 4) for name, value in flops.items()},
    }


def job(config) -> None:
    """Runs one batch generation on a Ray with two CPUs."""
    import ray

    from proav.generation.batch import generate

    ray.init(address="local", num_cpus=2, include_dashboard=False, logging_level="warning")
    generate(config)


def rates_of(folder: Path, seconds: float, batch_size: int) -> dict:
    written = sorted(path.stat().st_mtime for path in folder.rglob("*.mp4"))
    steady = (len(written) - batch_size) / (written[-1] - written[batch_size - 1])
    return {
        "clips_per_second": round(steady, 3),
        "with_start": round(len(written) / seconds, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", default="examples/showcase/latest")
    parser.add_argument("--clips", type=int, default=96)
    parser.add_argument("--steps", type=int, nargs="+", default=[30, 4])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--job", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    from proav.config.reading import load_config

    if arguments.job:
        job(load_config(None, arguments.job))
        return
    words = [
        f"generate.checkpoint={os.path.abspath(arguments.checkpoint)}",
        f"generate.num_samples={arguments.clips}",
        f"generate.batch_size={arguments.batch}",
    ]
    found = {
        steps: compare([*words, f"generate.steps={steps}"], arguments.batch) for steps in arguments.steps
    }
    print(json.dumps({"bench": "generate", "settings": words[1:], "found": found}))


def compare(words: list[str], batch: int) -> dict:
    """{"loop": its numbers, name of JOBS: its rates} with the settings `words`."""
    from proav.config.reading import load_config

    with tempfile.TemporaryDirectory() as text:
        expected = Path(text) / "loop"
        expected.mkdir()
        found = {"loop": loop(load_config(None, words), expected)}
        print(words[-1], "loop", found["loop"], flush=True)
        for name, own in JOBS.items():
            run, began = Path(text) / name, time.monotonic()
            command = [sys.executable, "-m", "bench.train.generate", "--job", f"run_dir={run}", *words, *own]
            subprocess.run(command, check=True)
            found[name] = rates_of(run, time.monotonic() - began, batch)
            found[name]["of_the_loop"] = round(
                found[name]["clips_per_second"] / found["loop"]["clips_per_second"], 3
            )
            found[name]["equal_files"] = all(
                (run / "samples" / "000000" / path.name).read_bytes() == path.read_bytes()
                for path in expected.iterdir()
            )
            print(words[-1], name, found[name], flush=True)
    return found


if __name__ == "__main__":
    main()
