"""Does ST-DiT follow its captions, or its labels? By its loss on held-out clips, and by the sound it makes.

    python -m bench.train.text_condition --config configs/world_text.yaml [--made 250] [--guidance 1 3]
    python -m bench.train.text_condition --config configs/world.yaml [--made 250] [--guidance 1 3]

The run has data of the made world, latents, and an ST-DiT that takes the vectors `caption` of examples/text,
or labels. Each held-out window is denoised with its own material, with that of a clip of another one, and
with none. A model of captions is also told its own in words that training did not hold: another wording, and
German. Noises and times are the same for all, so differences have no noise of their own.

    loss           mean over windows and times
    another - own  difference of a window's losses, and its standard error
    told apart     each clip is told each material in turn; how often its own has the lowest loss
    label fits     of --made new clips, by the task joint, materials in turn: the share whose sound is most
                   similar to the material that was told (`label_fits` of docs/world.md), its standard error,
                   and the number of clips with a sound. A row for each --guidance. `none` is judged by the
                   materials that it was not told: what is right by chance
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence

import numpy as np
import torch

from proav.config.reading import load_config
from proav.data.feeds.latent_feed import LatentFeed
from proav.data.store.shards import SegmentStore
from proav.data.store.vectors import open_vectors
from proav.diffusion.modalities import denoising_loss
from proav.diffusion.noise import noise_batch
from proav.generation.pipeline import SoundingVideoPipeline
from proav.generation.requests import SampleRequest
from proav.generation.sampling_settings import SamplingSettings
from proav.metrics.world import world_scores
from proav.runs.layout import RunFolder

NAME, TIMES, BATCH = "caption", 4, 25
HEARD, UNHEARD = "the sound of {}", "an object of {} that falls and bounces"
"""A wording of examples/text/captions.py, and one that is not there."""
GERMAN = {
    "drum": "eine Trommel",
    "glass": "ein Stück Glas",
    "metal": "ein Stück Metall",
    "rubber": "ein Gummiball",
    "wood": "ein Stück Holz",
}
Telling = Callable[[str], dict]
"""From a material to what a request says of it."""


def tellings(pipeline: SoundingVideoPipeline, materials: Sequence[str]) -> dict[str, Telling]:
    """{way of telling a material: its words for a request}; the last way tells nothing."""
    if pipeline.labels:
        return {"label": lambda material: {"label": material}, "none": lambda material: {}}
    from examples.text.e5 import encode

    ways: dict[str, Telling] = {}
    for way, wording in (
        ("caption", HEARD.format),
        ("unheard wording", UNHEARD.format),
        ("German", GERMAN.get),
    ):
        vectors = dict(zip(materials, encode([wording(material) for material in materials]), strict=True))
        ways[way] = lambda material, vectors=vectors: {"vectors": {NAME: vectors[material]}}
    return ways | {"none": lambda material: {}}


@torch.inference_mode()
def losses(pipeline: SoundingVideoPipeline, rows: dict, told: Sequence[dict], seed: int) -> np.ndarray:
    """Loss of each window, mean over TIMES times, with what is told of it. Noise is of (seed, place)."""
    clean, count = pipeline.coder.normalize(rows["joint"]), len(told)
    noise = noise_batch([(seed, place) for place in range(count)], clean.shape[1:], purpose="evaluate")
    own_DP = torch.tensor(pipeline.coder.latents.channel_mask).T
    conditions = pipeline.conditions("joint", [SampleRequest(**one) for one in told])
    nothing, found = torch.zeros(count, 2, dtype=torch.bool), []
    for time in pipeline.process.draw_times((torch.arange(TIMES, dtype=torch.float64) + 0.5) / TIMES):
        times = torch.full((count, 2), float(time))
        noisy = pipeline.process.add_noise(clean, noise, times)
        prediction = pipeline.stdit(noisy, times, conditions)
        found.append(denoising_loss(prediction, pipeline.process.target(clean, noise), nothing, own_DP))
    return torch.stack(found).mean(0).double().numpy()


def measure_losses(pipeline: SoundingVideoPipeline, config, ways: dict[str, Telling]) -> dict:
    """Losses of held-out windows, and the shares of windows whose own material is best."""
    run, store = RunFolder(config), SegmentStore(config.data_folder)
    materials = sorted(store.labels)
    of_segment = dict(zip(store.column("id"), store.column("label"), strict=True))
    vectors = open_vectors(config.data_folder, pipeline.vector_shapes)
    feed = LatentFeed(run.latents, split="validation", labels=pipeline.labels, vectors=vectors)
    chosen = np.unique(np.linspace(0, len(feed) - 1, min(config.evaluate.max_clips, len(feed))).astype(int))
    rows = feed.rows(chosen)
    own = [of_segment[segment] for segment in rows["segment_id"]]
    other = [own[place] for place in _of_others(own)]
    first = next(iter(ways))
    told = {way: [tell(material) for material in own] for way, tell in ways.items()}
    told["of another material"] = [ways[first](material) for material in other]
    found = {way: losses(pipeline, rows, one, config.seed) for way, one in told.items()}
    gaps = found["of another material"] - found[first]
    apart = {}
    for way, tell in ways.items():
        if way != "none":
            each = [
                losses(pipeline, rows, [tell(material)] * len(own), config.seed) for material in materials
            ]
            best = np.argmin(each, axis=0)
            apart[way] = round(float(np.mean([materials[i] == mine for i, mine in zip(best, own)])), 3)
    return {
        "windows": len(own),
        "loss": {way: round(float(one.mean()), 4) for way, one in found.items()},
        "another - own": [round(float(gaps.mean()), 4), round(float(gaps.std(ddof=1) / len(gaps) ** 0.5), 4)],
        "told apart": apart | {"chance": round(1 / len(materials), 3)},
    }


def measure_made(
    pipeline: SoundingVideoPipeline, materials: Sequence[str], tell: Telling, count: int, guidance: float
) -> dict:
    """How often the sound of new clips fits the material that is told."""
    settings, fits = SamplingSettings(steps=None, guidance_scale=guidance), []
    for first in range(0, count, BATCH):
        places = range(first, min(first + BATCH, count))
        own = [materials[place % len(materials)] for place in places]
        requests = [
            SampleRequest(0, place, settings=settings, **{"label": None} | tell(material))
            for place, material in zip(places, own, strict=True)
        ]
        for clip, material in zip(pipeline.sample(requests), own, strict=True):
            shape = {"fps": clip.fps, "sample_rate": clip.sample_rate}
            fits.append(world_scores(clip.video, clip.audio, label=material, **shape)["label_fits"])
    judged = np.array([fit for fit in fits if np.isfinite(fit)])
    if not len(judged):
        return {"label fits": None, "error": None, "clips with sounds": 0}
    share = float(judged.mean())
    error = (share * (1 - share) / len(judged)) ** 0.5
    return {"label fits": round(share, 3), "error": round(error, 3), "clips with sounds": len(judged)}


def _of_others(own: Sequence[str]) -> list[int]:
    """For each window the next one in the list that has another material; the list wraps around."""
    count = len(own)
    return [
        next(j % count for j in range(i + 1, i + count) if own[j % count] != own[i]) for i in range(count)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="configs/world_text.yaml")
    parser.add_argument("--made", type=int, default=250, help="new clips for each way of telling; 0: none")
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 3.0])
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    options = parser.parse_args()
    torch.set_num_threads(1)
    config = load_config(options.config, options.overrides)
    own = RunFolder(config).stage(config.generate.stage).checkpoints
    pipeline = SoundingVideoPipeline.from_checkpoint(config.generate.checkpoint or own)
    materials = sorted(SegmentStore(config.data_folder).labels)
    ways = tellings(pipeline, materials)
    result = measure_losses(pipeline, config, ways)
    print(json.dumps(result, indent=1), file=sys.stderr, flush=True)
    for guidance in options.guidance if options.made else []:
        for way, tell in ways.items():
            if way == "none" and guidance != 1:
                continue
            row = measure_made(pipeline, materials, tell, options.made, guidance)
            result[f"made, {way}, guidance {guidance:g}"] = row
            print(way, guidance, row, file=sys.stderr, flush=True)
    print(json.dumps({"bench": "text_condition", **result}))


if __name__ == "__main__":
    main()
