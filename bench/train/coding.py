"""What mp4 does to samples and real clips: blockiness, PSNR and bytes at several qualities of H.264.

    python -m bench.train.coding RUN [--clips 48] [--steps N]

RUN is a finished run. Its newest model makes the samples, with the settings of the run. Needs no Ray.
"""

import argparse
import dataclasses
import json
import os
import tempfile
from pathlib import Path

import numpy as np
import torch

from bench.helpers.windows import real_clips
from proav.config import Config
from proav.config.reading import load_config
from proav.generation.pipeline import SampleRequest, SoundingVideoPipeline
from proav.generation.sampling_settings import SamplingSettings
from proav.media.container import Clip, read_pictures, write_clip
from proav.metrics.blockiness import blockiness

QUALITIES = (18, 14, 10, 6, 2)


def samples_of(run: Path, config: Config, count: int, steps: int | None) -> list[Clip]:
    """`count` clips of the run's model before they are coded as mp4, with labels in turn.

    run: folder of the run.
    config: its configuration.
    count: number of clips.
    steps: sampling steps; None: as in the configuration.
    """
    own = str(run / config.generate.stage / "checkpoints")
    pipeline, clips = SoundingVideoPipeline.from_checkpoint(own), []
    settings = dataclasses.replace(SamplingSettings.from_config(config), task="joint")
    settings = dataclasses.replace(settings, steps=steps or settings.steps)
    for first in range(0, count, config.generate.batch_size):
        requests = [
            SampleRequest(config.seed, n, pipeline.labels[n % len(pipeline.labels)], settings=settings)
            for n in range(first, min(count, first + config.generate.batch_size))
        ]
        clips += pipeline.sample(requests)
    return clips


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--clips", type=int, default=48)
    parser.add_argument("--steps", type=int, help="default: as in the configuration")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = load_config(str(arguments.run / "config.yaml"), [f"run_dir={arguments.run}"])
    shape = {"fps": config.clip.fps, "height": config.clip.height, "width": config.clip.width}
    side = config.mdsa.plane_size
    sets = {
        "samples": samples_of(arguments.run, config, arguments.clips, arguments.steps),
        "real": real_clips(config, "validation", arguments.clips)[0],
    }
    rows = []
    for name, clips in sets.items():
        blocks = float(np.nanmean([blockiness(clip.video, side=side) for clip in clips]))
        rows.append({"clips": name, "crf": None, "blockiness": round(blocks, 3)})
        for crf in QUALITIES:
            coded, sizes, errors = [], [], []
            with tempfile.TemporaryDirectory() as folder:
                for clip in clips:
                    path = f"{folder}/clip.mp4"
                    write_clip(path, clip, crf=crf)
                    sizes.append(os.path.getsize(path))
                    coded.append(read_pictures(path, **shape))
                    errors.append(np.square(coded[-1].astype(float) - clip.video[: len(coded[-1])]).mean())
            blocks = float(np.nanmean([blockiness(video, side=side) for video in coded]))
            rows.append({"clips": name, "crf": crf, "blockiness": round(blocks, 3),
                         "psnr_db": round(float(10 * np.log10(255**2 / np.mean(errors))), 1),
                         "bytes": round(float(np.mean(sizes)))})  # fmt: skip
    for row in rows:
        print(json.dumps(row))
    print(json.dumps({"bench": "coding", "rows": rows}))


if __name__ == "__main__":
    main()
