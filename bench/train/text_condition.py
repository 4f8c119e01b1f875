"""Does ST-DiT follow the captions that it is told? Its loss on held-out clips, with right and wrong captions.

    python -m bench.train.text_condition --config configs/world_text.yaml

The run has data, latents and an ST-DiT with the vectors `caption` of examples/text. Each held-out window is
denoised with its own caption, with that of a clip with another label, with none, and with words that training
did not hold: other wordings, and German. Noises and times are the same for all, so differences have no noise
of their own. `told apart`: how often, of one caption for each label, a clip's own has the lowest loss.
"""

import argparse
import json

import numpy as np
import torch

from examples.text.e5 import encode
from proav.config.reading import load_config
from proav.data.feeds.latent_feed import LatentFeed
from proav.data.store.shards import SegmentStore
from proav.data.store.vectors import open_vectors
from proav.diffusion.conditions import Conditions
from proav.diffusion.modalities import denoising_loss
from proav.diffusion.noise import noise_batch
from proav.generation.pipeline import SoundingVideoPipeline
from proav.runs.layout import RunFolder

NAME, TIMES = "caption", 4
UNHEARD = "an object of {} that falls and bounces"
GERMAN = {
    "drum": "eine Trommel",
    "glass": "ein Stück Glas",
    "metal": "ein Stück Metall",
    "rubber": "ein Gummiball",
    "wood": "ein Stück Holz",
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="configs/world_text.yaml")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    options = parser.parse_args()
    config = load_config(options.config, options.overrides)
    print(json.dumps(measure(config), indent=1))


@torch.inference_mode()
def measure(config) -> dict:
    """Mean losses over held-out windows, and the shares of windows whose own caption is best."""
    torch.set_num_threads(1)
    run, store = RunFolder(config), SegmentStore(config.data_folder)
    own = run.stage(config.generate.stage).checkpoints
    pipeline = SoundingVideoPipeline.from_checkpoint(config.generate.checkpoint or own)
    vectors = open_vectors(config.data_folder, pipeline.vector_shapes)
    feed = LatentFeed(run.latents, split="validation", labels=pipeline.labels, vectors=vectors)
    labels = sorted(store.labels)
    of_segment = dict(zip(store.column("id"), store.column("label"), strict=True))
    chosen = np.unique(np.linspace(0, len(feed) - 1, min(config.evaluate.max_clips, len(feed))).astype(int))
    rows = feed.rows(chosen)
    own = np.array([labels.index(of_segment[segment]) for segment in rows["segment_id"]])
    stored = rows[f"vector.{NAME}"]
    told = {
        "own": stored,
        "of another label": stored[_of_others(own)],
        "none": torch.zeros_like(stored),
        "own, unheard wording": _encoded([UNHEARD.format(label) for label in labels])[own],
        "own, German": _encoded([GERMAN[label] for label in labels])[own],
    }
    losses = {name: _losses(pipeline, rows, values, config.seed) for name, values in told.items()}
    result = {
        "windows": len(own),
        "loss": {name: round(float(one.mean()), 4) for name, one in losses.items()},
    }
    gaps = losses["of another label"] - losses["own"]
    error = gaps.std(ddof=1) / len(gaps) ** 0.5
    result["another - own"] = f"{gaps.mean():.4f} +- {error:.4f} (standard error)"
    for name, texts in (("unheard wording", [UNHEARD.format(label) for label in labels]),
                        ("German", [GERMAN[label] for label in labels])):  # fmt: skip
        each = np.stack([_losses(pipeline, rows, vector.expand(len(own), -1), config.seed)
                         for vector in _encoded(texts)])  # fmt: skip
        result[f"told apart, {name}"] = round(float((each.argmin(0) == own).mean()), 3)
    return result | {"chance": round(1 / len(labels), 3)}


def _encoded(texts: list[str]) -> torch.Tensor:
    return torch.from_numpy(encode(texts))


def _of_others(own: np.ndarray) -> np.ndarray:
    """For each window another one with another label: the next such window, round about."""
    count = len(own)
    return np.array(
        [next(j % count for j in range(i + 1, i + count) if own[j % count] != own[i]) for i in range(count)]
    )


def _losses(pipeline: SoundingVideoPipeline, rows: dict, told: torch.Tensor, seed: int) -> np.ndarray:
    """Loss of each window, mean over TIMES times, with these captions. Noise is of (seed, place)."""
    clean, count = pipeline.coder.normalize(rows["joint"]), len(told)
    noise = noise_batch([(seed, place) for place in range(count)], clean.shape[1:], purpose="evaluate")
    own_DP = torch.tensor(pipeline.coder.latents.channel_mask).T
    conditions = Conditions(rows["label"], vectors={NAME: told})
    nothing, losses = torch.zeros(count, 2, dtype=torch.bool), []
    for time in pipeline.process.draw_times((torch.arange(TIMES, dtype=torch.float64) + 0.5) / TIMES):
        times = torch.full((count, 2), float(time))
        noisy = pipeline.process.add_noise(clean, noise, times)
        prediction = pipeline.stdit(noisy, times, conditions)
        losses.append(denoising_loss(prediction, pipeline.process.target(clean, noise), nothing, own_DP))
    return torch.stack(losses).mean(0).double().numpy()


if __name__ == "__main__":
    main()
