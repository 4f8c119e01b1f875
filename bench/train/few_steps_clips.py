"""How good are whole clips of a flow, and of the flow map distilled from it, in few steps? On any run's data.

    python ray_jobs/train.py --config configs/demo.yaml stage=distill
    python -m bench.train.few_steps_clips runs/demo flow=runs/demo/stdit/checkpoints \
        "flow map=runs/demo/distill/checkpoints" [--guidance 1.5] [--samples 256] [--out FILE]

Each model makes clips with sound (task joint) from the same noise, in each number of steps. Prints:

    sKVD, sKAD    kernel distances of pictures and of sound to the run's held-out windows, in features of
                  fixed random networks, with intervals over clips and sources
    training      the same two distances to as many windows of the training split
    to_first      PSNR of the pictures against the first model's in its largest number of steps, in dB
    seconds       processor seconds a clip, including decoding and the conversion from mel to sound

For comparison it prints the same for real windows of the training split. `--guidance` is for the flow; a flow
map has its own. A row that is already in FILE is not measured again, unless its checkpoint has changed.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch

from bench.helpers.windows import real_clips
from bench.train.masked_tasks import psnr_db
from proav.config import Config
from proav.config.reading import load_config
from proav.generation.pipeline import SoundingVideoPipeline
from proav.generation.requests import SampleRequest
from proav.generation.sampling_settings import SamplingSettings
from proav.media.container import Clip
from proav.metrics.bootstrap import bootstrap_interval, source_groups
from proav.metrics.distances import kernel_distance
from proav.metrics.networks import load_network

BATCH = 8
NETWORKS = {"sKVD": "surrogate-video", "sKAD": "surrogate-audio"}


class Features:
    """Feature vectors of clips by metric, and the source of each clip.

    video: uint8 [N, T, H, W, 3].
    audio: float32 [N, samples].
    sources: names of the N clips' sources.
    """

    def __init__(self, video: np.ndarray, audio: np.ndarray, sources: list[str]) -> None:
        self.sources, self.video = np.asarray(sources), video
        self.values = {}
        for (metric, name), clips in zip(NETWORKS.items(), (video, audio), strict=True):
            network = load_network(name)
            batches = torch.from_numpy(clips).split(BATCH)
            self.values[metric] = torch.cat([network(batch).mean(1) for batch in batches]).numpy()


def distance(first: Features, second: Features, metric: str) -> dict:
    """The kernel distance of two sets of clips, with its interval."""
    values, others = first.values[metric], second.values[metric]

    def between(places: np.ndarray, other_places: np.ndarray) -> float:
        sources = (first.sources[places], second.sources[other_places])
        return kernel_distance(values[places], others[other_places], sources=sources)

    interval = bootstrap_interval(between, source_groups(first.sources), source_groups(second.sources))
    value = between(np.arange(len(values)), np.arange(len(others)))
    return {"value": value, "interval": [interval.low, interval.high]}


def real_features(config: Config, split: str, most: int) -> Features:
    """Windows of one split of the run's data."""
    clips, rows = real_clips(config, split, most)
    return Features(*stacked(clips), [row["source_id"] for row in rows])


def stacked(clips: list[Clip]) -> tuple[np.ndarray, np.ndarray]:
    """Pictures and sounds of clips of one size."""
    return np.stack([clip.video for clip in clips]), np.stack([clip.audio for clip in clips])


def made_clips(
    pipeline: SoundingVideoPipeline, count: int, settings: SamplingSettings
) -> tuple[Features, float]:
    """(features of `count` generated clips, processor seconds a clip).

    pipeline: the model.
    count: number of clips; the model's labels take turns.
    settings: how they are sampled.
    """
    labels = pipeline.labels or [None]
    requests = [
        SampleRequest(0, place, labels[place % len(labels)], settings=settings) for place in range(count)
    ]
    began, clips = time.process_time(), []
    for first in range(0, count, BATCH):
        clips += pipeline.sample(requests[first : first + BATCH])
    seconds = (time.process_time() - began) / count
    return Features(*stacked(clips), [f"made {place}" for place in range(count)]), seconds


def show(rows: dict[str, dict]) -> None:
    print(f"{'clips':24}{'sKVD':>8}{'':20}{'sKAD':>8}{'':20}{'training':>18}{'to_first':>10}{'seconds':>9}")
    for name, row in rows.items():
        cells = ""
        for metric in NETWORKS:
            low, high = row["held_out"][metric]["interval"]
            ends = "" if low is None else f"  ({low:.4f} .. {high:.4f})"
            cells += f"{row['held_out'][metric]['value']:8.4f}{ends:20}"
        training = " ".join(f"{row['training'][metric]['value']:.4f}" for metric in NETWORKS)
        more = [
            f"{row[key]:.{digits}f}" if key in row else ""
            for key, digits in (("to_first", 1), ("seconds", 3))
        ]
        print(f"{name:24}{cells}{training:>18}{more[0]:>10}{more[1]:>9}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", help="a run folder; its prepared data are the real clips")
    parser.add_argument("models", nargs="+", metavar="NAME=CHECKPOINT")
    parser.add_argument("--steps", type=int, nargs="+", default=[30, 10, 4, 2, 1], help="the largest first")
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--guidance", type=float, default=1.0, help="guidance of a flow (default: 1, none)")
    parser.add_argument("--out", type=Path, default=Path("runs/few_steps_clips.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = load_config(f"{arguments.run}/config.yaml", [f"run_dir={arguments.run}"])
    pipelines = {}
    for model in arguments.models:
        name, _, path = model.partition("=")
        pipelines[name] = SoundingVideoPipeline.from_checkpoint(path)
    held_out, training = (
        real_features(config, split, arguments.samples) for split in ("validation", "train")
    )
    rows = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}

    def keep(name: str, clips: Features, **more) -> None:
        rows[name] = more | {
            split: {metric: distance(clips, real, metric) for metric in NETWORKS}
            for split, real in (("held_out", held_out), ("training", training))
        }
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(rows, indent=1))
        print(name, json.dumps(rows[name]), file=sys.stderr, flush=True)

    def settings_of(pipeline: SoundingVideoPipeline, steps: int) -> SamplingSettings:
        is_map = pipeline.process.objective == "flow_map"
        return SamplingSettings(steps=steps, guidance_scale=1.0 if is_map else arguments.guidance)

    if "real, training split" not in rows:
        keep("real, training split", training)
    wanted = None
    for steps in arguments.steps:
        for name, pipeline in pipelines.items():
            row = f"{name}, {steps} step{'s' * (steps > 1)}"
            key = {"checkpoint": pipeline.checkpoint_hash, "samples": arguments.samples}
            key["guidance"] = settings_of(pipeline, steps).guidance_scale
            is_known = all(rows.get(row, {}).get(word) == value for word, value in key.items())
            if not is_known or wanted is None:  # the first clips are what the others are compared with
                clips, seconds = made_clips(pipeline, arguments.samples, settings_of(pipeline, steps))
                wanted = clips.video if wanted is None else wanted
                keep(row, clips, to_first=psnr_db(clips.video, wanted), seconds=seconds, **key)
    show(rows)


if __name__ == "__main__":
    main()
