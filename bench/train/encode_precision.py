"""What latents lose if MDSA's network computes in bf16 (`encode.precision`).

    python -m bench.train.encode_precision [--checkpoint PATH] [--clips FOLDER] [--num N]

The middle of each of the first N files of FOLDER (real clips, by default examples/clips) is encoded by the
MDSA of a checkpoint, in fp32 and in bf16, jointly and alone. Decoding is fp32.

    error    |z - z'| / |z| over the planes of all clips, z in fp32; `storing` is the error of float16 alone
    psnr     of the decoded pictures against the true ones, dB; mel: mean error of the decoded mel images, dB
    changed  PSNR of the pictures decoded from bf16 planes against those from fp32 planes, at most 68 dB
    seconds  of one clip, one thread

bf16 on a CPU shows the error, not the speed: few CPUs have fast kernels for it. Prints a table and a JSON
line.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch

from proav.generation.coder import load_coder
from proav.media.container import probe_seconds, read_clip
from proav.runs.checkpoint import load_checkpoint

KINDS = ("joint", "lone")
LEAST_ERROR = 0.01
"""Mean squared errors of pixels are taken to be at least this: 68 dB."""


def psnr_db(made: torch.Tensor, true: torch.Tensor) -> float:
    """Mean over clips; uint8 [B, T, H, W, 3]."""
    error = ((made.double() - true.double()) ** 2).mean((1, 2, 3, 4))
    return float((10 * torch.log10(255**2 / error.clamp(min=LEAST_ERROR))).mean())


def relative(other: torch.Tensor, own: torch.Tensor) -> float:
    return float((other.double() - own.double()).norm() / own.double().norm())


@torch.inference_mode()
def measure(checkpoint_path: str, folder: str, num: int) -> dict:
    checkpoint = load_checkpoint(checkpoint_path)
    coders = {name: load_coder(checkpoint, precision=name) for name in ("fp32", "bf16")}
    config, exact = checkpoint.config, coders["fp32"]
    shape = {name: getattr(config.clip, name) for name in ("fps", "sample_rate", "height", "width")}
    clips = []
    for path in sorted(Path(folder).glob("*.mp4"))[:num]:
        start = max(0.0, (probe_seconds(str(path)) - exact.geometry.seconds) / 2)
        clips.append(read_clip(str(path), **shape, start_seconds=start, num_frames=config.clip.num_frames))
    video = torch.from_numpy(np.stack([clip.video for clip in clips]))
    mel = exact.mel_frames.encode(torch.from_numpy(np.stack([clip.audio for clip in clips])))
    decibels = 10 * (config.mel.ceiling_log10 - config.mel.floor_log10)  # of a mel value of 1
    found = {"clips": len(clips)}
    for kind in KINDS:
        planes, of_kind = {}, {}
        for name, coder in coders.items():
            began = time.monotonic()
            parts = [
                coder.encode(video[i : i + 1], mel[i : i + 1], lone=kind == "lone") for i in range(len(clips))
            ]
            of_kind[f"{name} seconds"] = (time.monotonic() - began) / len(clips)
            planes[name] = torch.cat(parts)
        made = {name: exact.decode(stack, lone=kind == "lone") for name, stack in planes.items()}
        for name, (pictures, sounds) in made.items():
            of_kind[f"{name} psnr"] = psnr_db(pictures, video)
            of_kind[f"{name} mel"] = decibels * float((sounds - mel).abs().mean())
        of_kind["error"] = relative(planes["bf16"], planes["fp32"])
        of_kind["storing"] = relative(planes["fp32"].half(), planes["fp32"])
        of_kind["changed"] = psnr_db(made["bf16"][0], made["fp32"][0])
        found[kind] = {name: round(value, 5) for name, value in of_kind.items()}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", default="examples/showcase/latest")
    parser.add_argument("--clips", default="examples/clips")
    parser.add_argument("--num", type=int, default=32)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = measure(arguments.checkpoint, arguments.clips, arguments.num)
    for kind in KINDS:
        print(kind, "".join(f"{name:>15} {value:.5g}" for name, value in found[kind].items()))
    print(json.dumps({"bench": "encode_precision", "checkpoint": arguments.checkpoint, "found": found}))


if __name__ == "__main__":
    main()
