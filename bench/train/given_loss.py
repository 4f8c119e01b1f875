"""How much does a model read of what it is given? By its loss on held-out windows.

    python -m bench.train.given_loss RUN [--clips 256] [--tasks v2a a2v] [--out FILE]

RUN: a run with latents, whose ST-DiT was trained with joint, a2v and v2a (`diffusion.task_weights`). The
stream that is to be made gets noise, and the model predicts the velocity of its planes. What it gets of the
other stream differs:

    trained      the task: the lone planes of the given stream, clean
    trained, unrelated  the same, but of another source's window, with the same label if there is one
    replacement  MM-Diffusion's zero-shot method (Ruan et al. 2023): the task joint. The given planes have
                 noise of the same level, and the model is told so
    replacement, unrelated  the same with the other window's planes
    nothing      the task joint, with pure noise instead of what is given. The model is told the noise level
                 of the other stream, so this is not what it was trained for

Noise and times are the same in all ways. The times are uniform in [0, 1]: midpoints of --times equal parts.
No sample is needed, so nothing in a sample has to be followed. Tasks differ in how much they were trained,
and a loss shows that too. What a way reads of the given stream is the distance between its two rows: its own
stream and an unrelated one.

    loss         mean squared error of the velocity on the planes that are made
    less         loss less that of the task trained, with its interval over sources: above 0, the trained
                 task is better
    by time      the loss at each time

Prints a table and writes a JSON file.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bench.train.zero_shot import unrelated_places
from proav.config import Config
from proav.config.reading import load_config
from proav.data.feeds.feed import evenly_spread
from proav.data.feeds.latent_feed import LatentFeed
from proav.data.store.vectors import open_vectors
from proav.diffusion.conditions import Conditions
from proav.diffusion.modalities import denoising_loss, mix_given
from proav.diffusion.noise import noise_batch
from proav.diffusion.tasks import given_row
from proav.generation.pipeline import SoundingVideoPipeline
from proav.metrics.bootstrap import bootstrap_interval, source_groups
from proav.runs.layout import RunFolder

BATCH = 16
APART = ", unrelated"


def read_windows(config: Config, pipeline: SoundingVideoPipeline, most: int) -> tuple[dict, list[str]]:
    """Rows of the stored latents of the held-out windows, evenly spread, and the label of each."""
    feed = LatentFeed(
        RunFolder(config).latents,
        split="validation",
        labels=pipeline.labels,
        vectors=open_vectors(config.data_folder, pipeline.config.stdit.vector_shapes),
    )
    chosen = evenly_spread(len(feed), most)
    labels = [",".join(names or ()) for names in feed.index.column("labels").take(chosen).to_pylist()]
    return feed.rows(chosen), labels


def task_losses(
    pipeline: SoundingVideoPipeline, task: str, rows: dict, others: Sequence[int], times: Sequence[float]
) -> dict[str, np.ndarray]:
    """{way: losses [windows, times]}.

    task: a2v or v2a.
    rows: of the latents.
    others: for each window the place of its unrelated window.
    times: noise levels of the stream that is made.
    """
    given_2 = torch.tensor(given_row(task))
    own_DP, total = torch.tensor(pipeline.coder.latents.channel_mask).T, len(others)
    joint, lone = (pipeline.coder.normalize(rows[kind]) for kind in ("joint", "lone"))
    noise = noise_batch([(0, place) for place in range(total)], joint.shape[1:], purpose="evaluate")
    conditions, found = Conditions.of_rows(rows), {}

    def losses(places: Tensor, shown: Tensor, made_time: float, given_time: float) -> Tensor:
        """shown: whose planes are given. given_time: the noise level that they get."""
        given_B2 = given_2.expand(len(places), 2)
        clean = mix_given(joint[places], lone[shown], given_B2)
        times_B2 = torch.where(given_B2, given_time, made_time).float()
        noisy = pipeline.process.add_noise(clean, noise[places], times_B2)
        prediction = pipeline.stdit(noisy, times_B2, conditions.rows(places))
        target = pipeline.process.target(clean, noise[places])
        return denoising_loss(prediction, target, given_B2, own_DP)

    own, apart = torch.arange(total), torch.tensor(others)
    ways = {
        "trained": (own, lambda time: 0.0),
        f"trained{APART}": (apart, lambda time: 0.0),
        "replacement": (own, lambda time: time),
        f"replacement{APART}": (apart, lambda time: time),
        "nothing": (own, lambda time: 1.0),
    }
    for way, (shown, given_time) in ways.items():
        by_time = [
            torch.cat([losses(part, shown[part], time, given_time(time)) for part in own.split(BATCH)])
            for time in times
        ]
        found[way] = torch.stack(by_time, dim=1).double().numpy()
    return found


def summary(found: dict[str, np.ndarray], sources: Sequence[str], times: Sequence[float]) -> dict[str, dict]:
    """The numbers of the table for each way."""
    groups, rows = source_groups(sources), {}
    for way, each in found.items():
        row = {"loss": float(each.mean()), "by_time": dict(zip(times, each.mean(0).tolist(), strict=True))}
        if way != "trained":
            gaps = (each - found["trained"]).mean(1)
            interval = bootstrap_interval(lambda places, gaps=gaps: float(gaps[places].mean()), groups)
            row |= {"less": float(gaps.mean()), "less_interval": [interval.low, interval.high]}
        rows[way] = row
    return rows


def show(task: str, rows: dict[str, dict], times: Sequence[float]) -> None:
    print(f"{task:24} {'loss':>7}  {'less':28}" + "".join(f"{time:>8.3f}" for time in times))
    for way, row in rows.items():
        less = ""
        if "less" in row:
            low, high = row["less_interval"]
            ends = "" if low is None else f" ({low:+.4f} .. {high:+.4f})"
            less = f"{row['less']:+.4f}{ends}"
        levels = "".join(f"{value:8.4f}" for value in row["by_time"].values())
        print(f"{way:24} {row['loss']:7.4f}  {less:28}{levels}")


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run")
    parser.add_argument("--clips", type=int, default=256)
    parser.add_argument("--tasks", nargs="+", choices=["v2a", "a2v"], default=["v2a", "a2v"])
    parser.add_argument("--times", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("runs/given_loss.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = load_config(f"{arguments.run}/config.yaml", [f"run_dir={arguments.run}"])
    pipeline = SoundingVideoPipeline.from_checkpoint(RunFolder(config).stage("stdit").checkpoints)
    rows, labels = read_windows(config, pipeline, arguments.clips)
    others = unrelated_places(labels, rows["source_id"])
    times = [(part + 0.5) / arguments.times for part in range(arguments.times)]
    kept = {"run": arguments.run, "windows": len(others), "checkpoint": pipeline.checkpoint_hash}
    for task in arguments.tasks:
        found = summary(task_losses(pipeline, task, rows, others, times), rows["source_id"], times)
        show(task, found, times)
        kept[task] = found
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(kept, indent=1))


if __name__ == "__main__":
    main()
