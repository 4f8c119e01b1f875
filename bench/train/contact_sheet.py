"""A picture of a run's samples: four frames of each clip and the mel image of its sound, two clips in a row.

    python -m bench.train.contact_sheet RUN OUT.jpg [--clips 12]

RUN must have samples/, made by `ray_jobs/generate.py`. The frames are the last ones of the 2nd, 4th, 6th and
8th eighth of a clip. Letters: T frames, M mel bins, S mel steps within a frame.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from PIL import Image

from proav.config import Config
from proav.config.reading import load_config
from proav.media.container import Clip, read_clip
from proav.media.melframes import MelFrames

SIDE, GAP, MARGIN = 104, 4, 12
"""In pixels: side of a frame; gap between a clip's frames and its mel image; margin between two clips."""


def strip(clip: Clip, mel_frames: MelFrames) -> np.ndarray:
    """One clip's part of the picture, uint8 [SIDE, 6 SIDE + GAP, 3]."""
    chosen = [len(clip.video) * eighth // 8 - 1 for eighth in (2, 4, 6, 8)]
    frames = [Image.fromarray(clip.video[index]).resize((SIDE, SIDE), Image.BICUBIC) for index in chosen]
    mel_TMS = mel_frames.encode(torch.from_numpy(clip.audio)[None])[0].numpy()
    image = np.uint8(127.5 * (rearrange(mel_TMS, "t m s -> m (t s)")[::-1] + 1))
    sound = Image.fromarray(image).resize((2 * SIDE, SIDE), Image.BICUBIC).convert("RGB")
    gap = np.full((SIDE, GAP, 3), 255, np.uint8)
    return np.concatenate([*map(np.asarray, frames), gap, np.asarray(sound)], axis=1)


def contact_sheet(config: Config, run: Path, num_clips: int) -> Image.Image:
    clip, mel_frames = config.clip, MelFrames(config)
    rows = [json.loads(line) for line in (run / "samples" / "manifest.jsonl").read_text().splitlines()]
    shape = {"fps": clip.fps, "sample_rate": clip.sample_rate, "height": clip.height, "width": clip.width}
    strips = [
        strip(read_clip(str(run / "samples" / row["path"]), **shape, num_frames=clip.num_frames), mel_frames)
        for row in sorted(rows, key=lambda row: row["index"])[:num_clips]
    ]
    half = (len(strips) + 1) // 2
    strips += [np.full_like(strips[0], 255)] * (2 * half - len(strips))
    columns = [np.stack(column) for column in (strips[:half], strips[half:])]
    columns = [np.pad(column, ((0, 0), (0, GAP), (0, 0), (0, 0)), constant_values=255) for column in columns]
    left, right = (column.reshape(-1, *column.shape[2:])[:-GAP] for column in columns)
    return Image.fromarray(np.concatenate([left, np.full((len(left), MARGIN, 3), 255, np.uint8), right], 1))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--clips", type=int, default=12)
    arguments = parser.parse_args()
    config = load_config(str(arguments.run / "config.yaml"), [])
    contact_sheet(config, arguments.run, arguments.clips).save(arguments.out, quality=90)


if __name__ == "__main__":
    main()
