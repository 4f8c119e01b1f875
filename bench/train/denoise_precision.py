"""What clips lose if ST-DiT computes in bf16 (`generate.precision`).

    python -m bench.train.denoise_precision [--checkpoint PATH] [--num N] [--steps S]

Clips of the same noise, labels in turn, are made in fp32 and in bf16, with the guidance of the checkpoint's
run. MDSA decodes in fp32 both times. Beside it stands what other numbers of steps change, an error that
users choose themselves, and how far clips of different noise are from each other:

    picture  PSNR of the pictures against those of fp32 in S steps, at most 68 dB
    mel      mean absolute difference of the mel images of the sound, dB

bf16 on a CPU shows the error, not the speed. Prints a table and a JSON line.
"""

import argparse
import dataclasses
import json
import time

import numpy as np
import torch

from bench.helpers.sounds import mel_errors_db
from bench.train.encode_precision import psnr_db
from proav.generation.pipeline import SampleRequest, SoundingVideoPipeline
from proav.generation.sampling_settings import SamplingSettings
from proav.media.container import Clip


def make(pipeline: SoundingVideoPipeline, num: int, *, steps: int, precision: str) -> list[Clip]:
    """Clips 0 .. num - 1 of seed 0."""
    pipeline.precision = precision
    settings = dataclasses.replace(SamplingSettings.from_config(pipeline.config), steps=steps)
    labels = list(pipeline.labels) or [None]
    made = []
    for first in range(0, num, 8):
        places = range(first, min(first + 8, num))
        requests = [
            SampleRequest(0, place, labels[place % len(labels)], settings=settings) for place in places
        ]
        made += pipeline.sample(requests)
    return made


def compare(pipeline: SoundingVideoPipeline, made: list[Clip], other: list[Clip]) -> dict[str, float]:
    """The numbers of the table, except for the seconds."""
    pictures = [torch.from_numpy(np.stack([clip.video for clip in clips])) for clips in (made, other)]
    sounds = [np.stack([clip.audio for clip in clips]) for clips in (made, other)]
    mel = mel_errors_db(pipeline.coder.mel_frames, *sounds)
    return {"picture": psnr_db(*pictures), "mel": float(mel.mean())}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", default="examples/showcase/latest")
    parser.add_argument("--num", type=int, default=32)
    parser.add_argument("--steps", type=int, default=30)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    pipeline = SoundingVideoPipeline.from_checkpoint(arguments.checkpoint)
    num, steps = arguments.num, arguments.steps
    found: dict[str, dict[str, float]] = {}
    exact = make(pipeline, num, steps=steps, precision="fp32")
    for name, count, precision in (
        ("bf16", steps, "bf16"),
        (f"fp32, {2 * steps} steps", 2 * steps, "fp32"),
        (f"fp32, {steps // 2} steps", steps // 2, "fp32"),
    ):
        began = time.process_time()
        made = make(pipeline, num, steps=count, precision=precision)
        seconds = (time.process_time() - began) / num
        found[name] = compare(pipeline, made, exact) | {"processor seconds a clip": seconds}
    found["another clip"] = compare(pipeline, exact[1:] + exact[:1], exact)
    for name, numbers in found.items():
        print(f"{name:16}", "".join(f"{key:>9} {value:.3f}  " for key, value in numbers.items()))
    print(
        json.dumps(
            {"bench": "denoise_precision", "clips": num, "checkpoint": arguments.checkpoint, "found": found}
        )
    )


if __name__ == "__main__":
    main()
