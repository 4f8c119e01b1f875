"""Long clips: what memory they take, and whether loudness or colour drift.

    python -m bench.train.long_clips memory [--seconds 3 30] [--side 256]
    python -m bench.train.long_clips drift RUN [--stage distill] [--clips 12] [--seconds 30] [--steps 10]

memory: peak memory of a process that continues a clip to --seconds and writes it. One process writes
it as it is made (`SoundingVideoPipeline.save`), another makes it whole first. The model is untrained: a
shallow one like the demo's, for pictures of --side pixels.

drift: an ST-DiT that was trained with `continue`, or its flow map, continues held-out windows of RUN. The
unit of all numbers but the seams is the standard deviation among 64 held-out windows: of their mean colour
(over channels, root mean square), and of their loudness.

    shift      size of the change of the mean over clips, from the first three seconds to the last three
    wandering  root mean square of a clip's own change between the same seconds, divided by sqrt(2): at 1 the
               end differs from the beginning as two independent clips differ
    spread     standard deviation among clips in the last three seconds

Loudness is 20 log10(RMS + 0.001) of each second, for the unit of each window, in dB of full scale. Seams
between windows are measured as in `masked_tasks`. Prints tables and a JSON line.
"""

import argparse
import dataclasses
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

import numpy as np
import torch

from bench.train.masked_tasks import BATCH, held_out, seam_ratios
from proav.config.reading import load_config
from proav.diffusion.masks import continue_frames
from proav.generation.coder import LatentCoder
from proav.generation.long_clips import of_length
from proav.generation.pipeline import SoundingVideoPipeline
from proav.generation.requests import SampleRequest
from proav.generation.sampling_settings import SamplingSettings
from proav.media.container import Clip
from proav.models.mdsa import MDSA
from proav.models.stdit import STDiT
from proav.runs.layout import RunFolder

ENDS_SECONDS = 3
FLOOR = 1e-3
SCALE_CLIPS = 64


def write_one(path: str, side: int, seconds: int, way: str) -> None:
    """Writes one clip, and prints this process's peak memory in MB."""
    words = [f"clip.height={side}", f"clip.width={side}", "mdsa.refiner.enabled=false"]
    words += ["diffusion.task_weights={continue: 1}", "stdit.depth=2"]
    config = load_config("configs/demo.yaml", words)
    coder = LatentCoder(config, MDSA(config).eval())
    pipeline = SoundingVideoPipeline(coder, STDiT(config, num_labels=0).eval(), labels=())
    clip = config.clip
    given = Clip(
        np.zeros((clip.num_frames, side, side, 3), np.uint8),
        np.zeros(coder.geometry.num_samples, np.float32),
        clip.fps,
        clip.sample_rate,
    )
    request = SampleRequest(given=given, settings=SamplingSettings(task="continue", steps=1))
    request = of_length(config, request, seconds * clip.fps)
    if way == "as made":
        pipeline.save(path, request)
    else:
        pipeline.sample([request])[0].save(path)
    print(round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))


def measure_memory(seconds: Sequence[int], side: int) -> dict:
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for way in ("as made", "whole first"):
            for length in seconds:
                command = [
                    sys.executable,
                    "-m",
                    "bench.train.long_clips",
                    "one",
                    f"{folder}/{way}{length}.mp4",
                ]
                began = time.monotonic()
                told = subprocess.run(
                    [*command, str(side), str(length), way], check=True, capture_output=True, text=True
                )
                found[f"{way}, {length} s"] = int(told.stdout.split()[-1])
                print(f"{way:12} {length:4} s {found[f'{way}, {length} s']:6} MB  "
                      f"({time.monotonic() - began:.0f} s)", flush=True)  # fmt: skip
    return found


def by_second(clips: Sequence[Clip]) -> tuple[np.ndarray, np.ndarray]:
    """Mean colours [clips, seconds, 3], and loudness [clips, seconds, 1] in dB."""
    fps, rate, count = clips[0].fps, clips[0].sample_rate, len(clips)
    seconds = len(clips[0].video) // fps
    video = np.stack([clip.video[: seconds * fps].mean((1, 2)) for clip in clips])
    audio = np.stack([clip.audio[: seconds * rate] for clip in clips]).astype(np.float64)
    power = (audio.reshape(count, seconds, rate) ** 2).mean(2, keepdims=True)
    return video.reshape(count, seconds, fps, 3).mean(2), 20 * np.log10(np.sqrt(power) + FLOOR)


def drift_of(clips: Sequence[Clip], given: Sequence[Clip]) -> dict[str, dict]:
    """The numbers of colour and loudness. given: independent clips, from which the spread is taken."""
    whole = [dataclasses.replace(one, fps=len(one.video), sample_rate=len(one.audio)) for one in given]
    found = {}
    for name, values, alone in zip(("colour", "loudness"), by_second(clips), by_second(whole), strict=True):
        first, last = values[:, :ENDS_SECONDS].mean(1), values[:, -ENDS_SECONDS:].mean(1)
        scale = np.sqrt(alone[:, 0].var(0).mean())
        found[name] = {
            "unit": float(scale),
            "shift": float(np.sqrt(((last - first).mean(0) ** 2).mean()) / scale),
            "wandering": float(np.sqrt(((last - first) ** 2).mean() / 2) / scale),
            "spread": float(np.sqrt(last.var(0).mean()) / scale),
        }
    return found


def measure_drift(run: str, stage: str, count: int, seconds: int, steps: int) -> dict:
    config = load_config(f"{run}/config.yaml", [f"run_dir={run}"])
    pipeline = SoundingVideoPipeline.from_checkpoint(RunFolder(config).stage(stage).checkpoints)
    (truth, _), (independent, _) = (held_out(config, most) for most in (count, SCALE_CLIPS))
    settings = SamplingSettings(task="continue", steps=steps)
    requests = [dataclasses.replace(one, settings=settings) for one in truth]
    requests = [of_length(pipeline.config, one, seconds * pipeline.config.clip.fps) for one in requests]
    batches = [requests[first : first + BATCH] for first in range(0, len(requests), BATCH)]
    clips = [clip for batch in batches for clip in pipeline.sample(batch)]
    return drift_table(pipeline.config, clips, [one.given for one in independent])


def drift_table(config, clips: Sequence[Clip], given: Sequence[Clip]) -> dict:
    found = drift_of(clips, given)
    for name, values in found.items():
        print(f"{name:10}" + "".join(f"{key:>11} {value:.2f}" for key, value in values.items()))
    frames, new = config.clip.num_frames, config.clip.num_frames - continue_frames(config)
    made = [
        dataclasses.replace(one, video=one.video[frames:], audio=one.audio[len(given[0].audio) :])
        for one in clips
    ]
    seams = list(range(new, len(made[0].video), new))
    found["seams"] = seam_ratios(made, seams, seams)
    print("seams     " + "".join(f"{key:>11} {value:.2f}" for key, value in found["seams"].items()))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    modes = parser.add_subparsers(dest="mode", required=True)
    memory, drift, one = (modes.add_parser(name) for name in ("memory", "drift", "one"))
    memory.add_argument("--seconds", type=int, nargs="+", default=[3, 30])
    memory.add_argument("--side", type=int, default=256)
    drift.add_argument("run")
    drift.add_argument("--stage", choices=["stdit", "distill"], default="stdit")
    drift.add_argument("--clips", type=int, default=12)
    drift.add_argument("--seconds", type=int, default=30)
    drift.add_argument("--steps", type=int, default=10)
    for name, kind in (("path", str), ("side", int), ("seconds", int), ("way", str)):
        one.add_argument(name, type=kind)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    match arguments.mode:
        case "memory":
            found = measure_memory(arguments.seconds, arguments.side)
        case "drift":
            found = measure_drift(
                arguments.run, arguments.stage, arguments.clips, arguments.seconds, arguments.steps
            )
        case _:
            write_one(arguments.path, arguments.side, arguments.seconds, arguments.way)
            return
    print(json.dumps({"bench": f"long_clips {arguments.mode}", "found": found}))


if __name__ == "__main__":
    main()
