"""How good are a flow, and the flow map distilled from it, in few steps? Sound for pictures of the made
world.

    python ray_jobs/train.py --config configs/world.yaml stage=distill
    python -m bench.train.few_steps runs/world-clips flow=runs/world/stdit/checkpoints \
        "flow map=runs/world/distill/checkpoints" [--out FILE] [--clips 150]

Each model makes the sound of the same held-out pictures from the same noise, in each number of steps. Prints:

    impact_synchrony   the made world's score, with its interval over clips
    sKAD               kernel distance of the sounds to the real ones, in features of a fixed random network
    to_first           mean log-mel difference to the first model's sound in its largest number of steps, in
    dB seconds            processor seconds a clip, including decoding and the conversion from mel to sound

For comparison it prints the same numbers for the real sounds, and for the first model's sounds with other
pictures. A row that is already in FILE is not measured again, unless its checkpoint has changed.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch

from bench.helpers.sounds import mel_errors_db
from bench.train.world_claim import held_out, synchrony
from proav.generation.pipeline import SampleRequest, SoundingVideoPipeline
from proav.generation.sampling_settings import SamplingSettings
from proav.media.container import Clip
from proav.media.melframes import MelFrames
from proav.metrics.bootstrap import bootstrap_interval, source_groups
from proav.metrics.distances import kernel_distance
from proav.metrics.networks import load_network
from proav.metrics.world import world_scores

BATCH = 10


def sounds_for(
    pipeline: SoundingVideoPipeline, windows: list[Clip], labels: list[str], steps: int
) -> tuple[np.ndarray, float]:
    """(sounds [N, L], processor seconds a clip)."""
    made, began = [], time.process_time()
    settings = SamplingSettings(task="v2a", steps=steps)
    for first in range(0, len(windows), BATCH):
        places = range(first, min(first + BATCH, len(windows)))
        requests = [SampleRequest(0, place, labels[place], windows[place], settings) for place in places]
        made += [clip.audio for clip in pipeline.sample(requests)]
    return np.stack(made), (time.process_time() - began) / len(windows)


class Measure:
    """Measures the sounds that were made for some windows.

    windows: the windows.
    labels: their labels.
    names: names of their clips.
    mel_frames: the mel transform of the models.
    """

    def __init__(
        self, windows: list[Clip], labels: list[str], names: list[str], mel_frames: MelFrames
    ) -> None:
        self.windows, self.labels, self.names, self.mel_frames = windows, labels, names, mel_frames
        self.network = load_network("surrogate-audio")
        self.real = self._features(np.stack([window.audio for window in windows]))

    def __call__(self, sounds: np.ndarray, truth: np.ndarray | None = None, *, beside: int = 0) -> dict:
        """The numbers of some sounds, one for each window.

        truth: sounds to compare with.
        beside: shift in the list of windows from a sound to its pictures; 0: its own pictures.
        """
        windows = self.windows[beside:] + self.windows[:beside]
        scores = [
            world_scores(window.video, sound, fps=window.fps, sample_rate=window.sample_rate, label=label)
            for window, sound, label in zip(windows, sounds, self.labels, strict=True)
        ]
        interval = bootstrap_interval(lambda places: synchrony(scores, places), source_groups(self.names))
        names = (self.names, self.names)
        found = {
            "impact_synchrony": synchrony(scores, np.arange(len(windows))),
            "interval": [interval.low, interval.high],
            "sKAD": kernel_distance(self._features(sounds), self.real, sources=names),
        }
        if truth is not None:
            found["to_first"] = float(mel_errors_db(self.mel_frames, sounds, truth).mean())
        return found

    def _features(self, sounds: np.ndarray) -> np.ndarray:
        return self.network(torch.from_numpy(sounds).float()).flatten(0, 1).numpy()


def show(rows: dict[str, dict]) -> None:
    print(f"{'sound':20} impact_synchrony                sKAD    to_first  seconds")
    for name, row in rows.items():
        low, high = row["interval"]
        ends = "" if low is None else f"{low:.3f} .. {high:.3f}"
        more = "  ".join(
            f"{row[key]:>{width}.3f}" if key in row else " " * width
            for key, width in (("to_first", 10), ("seconds", 7))
        )
        print(f"{name:20} {row['impact_synchrony']:6.3f}   {ends:16} {row['sKAD']:9.4f}  {more}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("world", type=Path, help="the folder of examples/world/make.py")
    parser.add_argument("models", nargs="+", metavar="NAME=CHECKPOINT")
    parser.add_argument("--steps", type=int, nargs="+", default=[30, 10, 4, 2, 1], help="the largest first")
    parser.add_argument("--clips", type=int, default=150, help="held-out clips, of two windows each")
    parser.add_argument("--out", type=Path, default=Path("runs/few_steps.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    pipelines = {}
    for model in arguments.models:
        name, _, path = model.partition("=")
        pipelines[name] = SoundingVideoPipeline.from_checkpoint(path)
    first = next(iter(pipelines.values()))
    names = ("num_frames", "fps", "sample_rate", "height", "width")
    shape = {name: getattr(first.config.clip, name) for name in names}
    windows, labels, clips = held_out(arguments.world, arguments.clips, shape)
    measure = Measure(windows, labels, clips, MelFrames(first.config))
    rows = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}

    def is_missing(name: str, pipeline: SoundingVideoPipeline | None) -> bool:
        of = {"windows": len(windows), "checkpoint": pipeline and pipeline.checkpoint_hash}
        return any(rows.get(name, {}).get(key, "") != value for key, value in of.items())

    def keep(name: str, pipeline: SoundingVideoPipeline | None, row: dict) -> None:
        of = {"windows": len(windows), "checkpoint": pipeline and pipeline.checkpoint_hash}
        rows[name] = row | of
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(rows, indent=1))
        print(name, json.dumps(row), file=sys.stderr, flush=True)

    if is_missing("real", None):
        keep("real", None, measure(np.stack([window.audio for window in windows])))
    truth, _ = sounds_for(first, windows, labels, arguments.steps[0])
    if is_missing("beside other pictures", first):
        keep("beside other pictures", first, measure(truth, beside=len(windows) // 2))
    for steps in arguments.steps:
        for name, pipeline in pipelines.items():
            row = f"{name}, {steps} step{'s' * (steps > 1)}"
            if is_missing(row, pipeline):
                sounds, seconds = sounds_for(pipeline, windows, labels, steps)
                keep(row, pipeline, measure(sounds, truth) | {"seconds": seconds})
    show(rows)


if __name__ == "__main__":
    main()
