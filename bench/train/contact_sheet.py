"""A picture of a run's samples: four frames of each clip and the mel image of its sound, two clips in a row.
Beside it, how restless the pictures of all samples are.

    python -m bench.train.contact_sheet RUN OUT.jpg [--clips 12]

RUN must have samples/, made by `ray_jobs/generate.py`, and its data. The frames are the last ones of the 2nd,
4th, 6th and 8th eighth of a clip. Prints, for the samples and for up to as many held-out windows, the mean
absolute difference of neighbouring frames ("between frames") and of neighbouring pixels of a row ("grain"),
in levels of 0 to 255. Letters: B clips, T frames, M mel bins, S mel steps within a frame.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from PIL import Image

from bench.helpers.windows import real_clips
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


def samples(config: Config, run: Path) -> list[Clip]:
    """The run's samples, in order, without those whose input could not be used."""
    clip = config.clip
    rows = [json.loads(line) for line in (run / "samples" / "manifest.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "error" not in row]
    shape = {"fps": clip.fps, "sample_rate": clip.sample_rate, "height": clip.height, "width": clip.width}
    return [
        read_clip(str(run / "samples" / row["path"]), **shape, num_frames=clip.num_frames)
        for row in sorted(rows, key=lambda row: row["index"])
    ]


def contact_sheet(config: Config, clips: Sequence[Clip]) -> Image.Image:
    mel_frames = MelFrames(config)
    strips = [strip(clip, mel_frames) for clip in clips]
    half = (len(strips) + 1) // 2
    strips += [np.full_like(strips[0], 255)] * (2 * half - len(strips))
    columns = [np.stack(column) for column in (strips[:half], strips[half:])]
    columns = [np.pad(column, ((0, 0), (0, GAP), (0, 0), (0, 0)), constant_values=255) for column in columns]
    left, right = (column.reshape(-1, *column.shape[2:])[:-GAP] for column in columns)
    return Image.fromarray(np.concatenate([left, np.full((len(left), MARGIN, 3), 255, np.uint8), right], 1))


def unrest(video_BTHWC: np.ndarray) -> tuple[float, float]:
    """Mean absolute differences of neighbouring frames, and of neighbouring pixels of a row."""
    video = video_BTHWC.astype(np.float32)
    frames, pixels = (float(np.abs(np.diff(video, axis=axis)).mean()) for axis in (1, 3))
    return frames, pixels


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--clips", type=int, default=12)
    arguments = parser.parse_args()
    config = load_config(str(arguments.run / "config.yaml"), [f"run_dir={arguments.run}"])
    clips = samples(config, arguments.run)
    held_out, _ = real_clips(config, "validation", len(clips))
    contact_sheet(config, clips[: arguments.clips]).save(arguments.out, quality=90)
    for name, some in (("samples", clips), ("held-out windows", held_out)):
        frames, pixels = unrest(np.stack([clip.video for clip in some]))
        print(f"{len(some)} {name}: between frames {frames:.2f}, grain {pixels:.2f}")


if __name__ == "__main__":
    main()
