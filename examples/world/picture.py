"""A picture of clips of the made world: python examples/world/picture.py DIR OUT.png [--clips 2 3]

Frames of each clip are above the mel image of its sound. A line marks each impact of truth.csv: solid if an
object in the picture makes the sound, dashed if the sound comes from outside.
"""

import argparse
import csv
from pathlib import Path

import matplotlib
import numpy as np
import torch

from proav.config.reading import load_config
from proav.media.container import read_clip
from proav.media.melframes import MelFrames

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

FPS, SIZE, RATE = 10, 64, 16_000


def draw_clip(top: plt.Axes, bottom: plt.Axes, folder: Path, index: int, mel_frames: MelFrames) -> None:
    """Draws one clip of a folder that `make.py` has filled.

    top: axes for the frames.
    bottom: axes for the mel image, with the same time axis.
    folder: the world's folder.
    index: number of the clip.
    mel_frames: makes the mel image of a sound.
    """
    name = f"clips/{index:06d}.mp4"
    clip = read_clip(str(folder / name), fps=FPS, sample_rate=RATE, height=SIZE, width=SIZE, fit="pad")
    seconds = len(clip.video) / clip.fps
    top.imshow(np.concatenate(clip.video, axis=1), extent=(0, seconds, 0, 1), aspect="auto")
    mel_TMS = mel_frames.encode(torch.from_numpy(clip.audio)[None])[0]
    mel = mel_TMS.permute(1, 0, 2).flatten(1).numpy()
    bottom.imshow(mel, extent=(0, seconds, 0, 1), aspect="auto", origin="lower", cmap="magma")
    with open(folder / "truth.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["path"] == name]
    for row in rows:
        style = "-" if row["in_picture"] == "1" else "--"
        for axes in (top, bottom):
            axes.axvline(float(row["time_seconds"]), color="white", linewidth=1, linestyle=style)
    top.set_title(f"{rows[0]['label'] if rows else 'silent'}", fontsize=9, loc="left")
    top.set_xticks([])
    top.set_yticks([])
    bottom.set_yticks([])
    bottom.tick_params(labelsize=7)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("out")
    parser.add_argument("--clips", type=int, nargs="+", default=[2, 3])
    arguments = parser.parse_args()
    mel_frames = MelFrames(load_config("configs/world.yaml"))
    figure, axes = plt.subplots(
        2 * len(arguments.clips), 1, figsize=(11, 1.9 * len(arguments.clips)), layout="constrained"
    )
    for number, index in enumerate(arguments.clips):
        draw_clip(axes[2 * number], axes[2 * number + 1], arguments.folder, index, mel_frames)
    axes[-1].set_xlabel("seconds", fontsize=8)
    figure.savefig(arguments.out, dpi=100)


if __name__ == "__main__":
    main()
