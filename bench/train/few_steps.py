"""How good are a flow, and the flow map distilled from it, in few steps? Sound for pictures of the made
world.

    python ray_jobs/train.py --config configs/world.yaml stage=distill
    python -m bench.train.few_steps runs/world-clips flow=runs/world/stdit/checkpoints \
        "flow map=runs/world/distill/checkpoints" [--guidance 1.5] [--out FILE] [--clips 150]

Each model makes the sound of the same held-out pictures from the same noise, in each number of steps. Prints:

    impact_synchrony   the made world's score, with its interval over clips
    sKAD               kernel distance of the sounds to the real ones, in features of a fixed random network
    more               sKAD less that of the first model's sounds in its largest number of steps, with its
                       interval over clips
    to_first           mean log-mel difference to those sounds, in dB
    seconds            processor seconds a clip, including decoding and the conversion from mel to sound

NAME=CHECKPOINT@S samples with schedule_shift=S. `--guidance` is for flows; a flow map has learned its own
(`distill.guidance_scale`). For comparison it prints the same numbers for the real sounds, and for the first
model's sounds with other pictures. A row that is already in FILE is not measured again, unless its
checkpoint, shift, guidance, noise (--seed) or what it is compared with has changed.
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
    pipeline: SoundingVideoPipeline,
    windows: list[Clip],
    labels: list[str],
    *,
    steps: int,
    shift: float | None,
    guidance: float,
    seed: int,
) -> tuple[np.ndarray, float]:
    """(sounds [N, L], processor seconds a clip).

    shift: `schedule_shift` of the steps; None: the model's own.
    """
    made, began = [], time.process_time()
    settings = SamplingSettings(task="v2a", steps=steps, schedule_shift=shift, guidance_scale=guidance)
    for first in range(0, len(windows), BATCH):
        places = range(first, min(first + BATCH, len(windows)))
        requests = [SampleRequest(seed, place, labels[place], windows[place], settings) for place in places]
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
        features, every = self._features(sounds), np.arange(len(windows))
        found = {
            "impact_synchrony": synchrony(scores, every),
            "interval": [interval.low, interval.high],
            "sKAD": self._distance(features, every),
        }
        if truth is not None:
            first = self._features(truth)

            def more(places: np.ndarray) -> float:
                return self._distance(features, places) - self._distance(first, places)

            apart = bootstrap_interval(more, source_groups(self.names))
            found |= {"more": more(every), "more_interval": [apart.low, apart.high]}
            found["to_first"] = float(mel_errors_db(self.mel_frames, sounds, truth).mean())
        return found

    def _distance(self, features: np.ndarray, places: np.ndarray) -> float:
        """Kernel distance of the sounds at some places to the real ones there."""
        names = [np.asarray(self.names)[places]] * 2
        return kernel_distance(features[places], self.real[places], sources=names)

    def _features(self, sounds: np.ndarray) -> np.ndarray:
        return self.network(torch.from_numpy(sounds).float()).flatten(0, 1).numpy()


def show(rows: dict[str, dict]) -> None:
    print(f"{'sound':22} impact_synchrony          sKAD    more                         to_first  seconds")
    for name, row in rows.items():
        cells = [f"{row['impact_synchrony']:6.3f} {_ends(row['interval'], 3):18} {row['sKAD']:8.4f}"]
        more = f"{row['more']:8.4f} {_ends(row['more_interval'], 4)}" if "more" in row else ""
        cells += [
            f"{more:30}",
            *(f"{row[key]:8.3f}" if key in row else "" for key in ("to_first", "seconds")),
        ]
        print(f"{name:22} " + " ".join(cells))


def _ends(interval: list[float | None], digits: int) -> str:
    low, high = interval
    return "" if low is None else f"({low:.{digits}f} .. {high:.{digits}f})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("world", type=Path, help="the folder of examples/world/make.py")
    parser.add_argument("models", nargs="+", metavar="NAME=CHECKPOINT[@SHIFT]")
    parser.add_argument("--steps", type=int, nargs="+", default=[30, 10, 4, 2, 1], help="the largest first")
    parser.add_argument("--clips", type=int, default=150, help="held-out clips, of two windows each")
    parser.add_argument("--guidance", type=float, default=1.0, help="of flows (default: 1, none)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    parser.add_argument("--out", type=Path, default=Path("runs/few_steps.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    pipelines, shifts = {}, {}
    for model in arguments.models:
        name, _, place = model.partition("=")
        path, _, shift = place.partition("@")
        pipelines[name], shifts[name] = (
            SoundingVideoPipeline.from_checkpoint(path),
            float(shift) if shift else None,
        )
    best, first = next(iter(pipelines.items()))
    names = ("num_frames", "fps", "sample_rate", "height", "width")
    shape = {name: getattr(first.config.clip, name) for name in names}
    windows, labels, clips = held_out(arguments.world, arguments.clips, shape)
    measure = Measure(windows, labels, clips, MelFrames(first.config))
    rows = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}

    def guidance(model: str) -> float:
        return 1.0 if pipelines[model].process.objective == "flow_map" else arguments.guidance

    def made_of(model: str | None) -> dict:
        """What a row was measured with. model: its name; None for the real sounds."""
        of = {"windows": len(windows), "seed": arguments.seed}
        if model is None:
            return of
        compared = [pipelines[best].checkpoint_hash, shifts[best], guidance(best), arguments.steps[0]]
        own = {"checkpoint": pipelines[model].checkpoint_hash, "shift": shifts[model]}
        return of | own | {"guidance": guidance(model), "compared_with": compared}

    def is_missing(name: str, model: str | None) -> bool:
        return any(rows.get(name, {}).get(key, "") != value for key, value in made_of(model).items())

    def keep(name: str, model: str | None, row: dict) -> None:
        rows[name] = row | made_of(model)
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(rows, indent=1))
        print(name, json.dumps(row), file=sys.stderr, flush=True)

    if is_missing("real", None):
        keep("real", None, measure(np.stack([window.audio for window in windows])))

    def sounds(model: str, steps: int) -> tuple[np.ndarray, float]:
        asked = {"steps": steps, "shift": shifts[model], "guidance": guidance(model)}
        return sounds_for(pipelines[model], windows, labels, seed=arguments.seed, **asked)

    truth, _ = sounds(best, arguments.steps[0])
    if is_missing("beside other pictures", best):
        keep("beside other pictures", best, measure(truth, beside=len(windows) // 2))
    for steps in arguments.steps:
        for name in pipelines:
            row = f"{name}, {steps} step{'s' * (steps > 1)}"
            if is_missing(row, name):
                made, seconds = sounds(name, steps)
                keep(row, name, measure(made, truth) | {"seconds": seconds})
    show(rows)


if __name__ == "__main__":
    main()
