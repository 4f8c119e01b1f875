"""Trains variants of a configuration on equally many clips and measures each on unseen sources.

    python -m bench.train.ablations bench/train/variants/mdsa.yaml RUN [--out DIR] [--seeds 0 1]
    [--only NAME ...]

Each variant has one change. RUN is a finished run of the file's `config`. Its data and, for stage stdit, its
MDSA and latents are used. The YAML file names the stage, the settings that all variants share and those of
each variant. A variant that is already trained is only measured, and one that was stopped is resumed. Prints
a table (means over seeds, and the range over them) and the same as JSON. Processor seconds are of one thread.
Needs no Ray.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
import yaml

from proav.config import Config
from proav.config.reading import load_config
from proav.data.feeds.feed import evaluation_windows
from proav.data.store.shards import SegmentStore
from proav.errors import UserError
from proav.evaluate.losses import evaluate_stdit
from proav.evaluate.reconstruction import evaluate_reconstruction
from proav.evaluate.scores import ClipScorer
from proav.generation.coder import load_coder
from proav.generation.pipeline import SampleRequest, SoundingVideoPipeline
from proav.generation.sampling_settings import SamplingSettings
from proav.metrics.blockiness import blockiness, blockiness_sound
from proav.runs.checkpoint import list_checkpoints, load_checkpoint
from proav.train.worker import checkpoints_folder, train_worker

HEADS = {
    "mdsa": {
        "psnr_db": "PSNR dB",
        "mel_error_db": "log-mel error dB",
        "blockiness": "blockiness",
        "blockiness_of_sound": "of sound",
    },
    "stdit": {
        "loss": "loss, unseen",
        "training_loss": "training",
        "blockiness": "blockiness",
        "blockiness_of_sound": "of sound",
    },
}


def measure_mdsa(config: Config, checkpoint: str) -> dict[str, float]:
    """Joint scores on evaluate.split, and the blockiness of those reconstructions."""
    scores = evaluate_reconstruction(config, checkpoint)
    coder, store = load_coder(load_checkpoint(checkpoint, kind="mdsa")), SegmentStore(config.data_folder)
    windows = evaluation_windows(
        store, config, split=config.evaluate.split, max_clips=config.evaluate.max_clips
    )
    of_picture, of_sound = [], []
    with torch.inference_mode():
        for index, start in windows:
            window = store.window(index, start, config.clip.num_frames)
            video = torch.from_numpy(window["video"])[None]
            mel = torch.from_numpy(window["mel"])[None].float()
            picture, sound = coder.decode(coder.encode(video, mel))
            of_picture.append(blockiness(picture[0].numpy(), side=config.mdsa.plane_size))
            of_sound.append(blockiness_sound(sound[0].numpy()))
    return {name: scores[name] for name in ("psnr_db", "mel_error_db")} | _means(of_picture, of_sound)


def measure_stdit(config: Config, checkpoint: str, samples: int) -> dict[str, float]:
    """Loss on unseen and on training clips, and the blockiness of `samples` clips with labels in turn."""
    lines = Path(config.run_folder, "stdit", "metrics.jsonl").read_text().splitlines()
    losses = {
        "loss": evaluate_stdit(config, checkpoint)["loss"],
        "training_loss": json.loads(lines[-1])["loss"],
    }
    if not samples:
        return losses
    pipeline = SoundingVideoPipeline.from_checkpoint(checkpoint)
    scorer = ClipScorer(config, ("blockiness", "blockiness_sound"))
    scores, generate, settings = [], config.generate, SamplingSettings.from_config(config)
    for first in range(0, samples, generate.batch_size):
        requests = [
            SampleRequest(
                config.seed, index, pipeline.labels[index % len(pipeline.labels)], settings=settings
            )
            for index in range(first, min(samples, first + generate.batch_size))
        ]
        scores += [scorer(clip, None, {}) for clip in pipeline.sample(requests)]
    return losses | _means(*([score[name] for score in scores] for name in scorer.names))


def run_variant(spec: dict, run: Path, out: Path, name: str, seed: int, samples: int) -> dict[str, float]:
    """Trains one variant in out/<stage>/<name>-<seed>, unless it is trained already, and measures it.

    spec: content of the YAML file.
    run: the finished run.
    out: folder of the variants.
    name: name of the variant.
    seed: seed of the training.
    samples: number of clips that ST-DiT makes to measure blockiness.
    """
    stage = spec["stage"]
    folder = out / stage / f"{name.replace(' ', '_')}-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    if stage == "stdit":
        for given in ("mdsa", "latents"):
            if not (folder / given).exists():
                os.symlink(run / given, folder / given)
    own = [f"run_dir={folder}", f"data.prepared={run / 'data'}", f"seed={seed}"]
    config = load_config(spec["config"], [*spec.get("base", []), *(spec["variants"][name] or []), *own])
    began, clock = time.process_time(), time.monotonic()
    summary = train_worker(config, stage, device=torch.device("cpu"))
    seconds = {"cpu_seconds": time.process_time() - began, "seconds": time.monotonic() - clock}
    path = list_checkpoints(checkpoints_folder(config, stage))[0][1]
    measured = measure_mdsa(config, path) if stage == "mdsa" else measure_stdit(config, path, samples)
    return measured | seconds | {"clips": summary["clips"]}


def _means(of_picture: list[float], of_sound: list[float]) -> dict[str, float]:
    """Means over the clips for which the measure is defined."""
    columns = zip(("blockiness", "blockiness_of_sound"), (of_picture, of_sound), strict=True)
    return {name: float(np.nanmean(values)) for name, values in columns}


def table(stage: str, results: dict[str, list[dict[str, float]]]) -> str:
    """Rows of Markdown: means over seeds and, in brackets, the difference of largest and smallest."""
    heads = {
        name: head
        for name, head in HEADS[stage].items()
        if any(name in row for rows in results.values() for row in rows)
    }
    lines = [
        f"| variant | {' | '.join(heads.values())} | clips | CPU seconds |",
        "|---" * (len(heads) + 3) + "|",
    ]
    for variant, rows in results.items():
        cells = []
        for name in heads:
            values = [row[name] for row in rows]
            spread = f" ({max(values) - min(values):.3f})" if len(values) > 1 else ""
            cells.append(f"{sum(values) / len(values):.3f}{spread}")
        seconds = sum(row["cpu_seconds"] for row in rows) / len(rows)
        lines.append(f"| {variant} | {' | '.join(cells)} | {rows[0]['clips']:,} | {seconds:.0f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("spec", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/ablations"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", nargs="+", default=None, metavar="NAME")
    parser.add_argument("--samples", type=int, default=0, help="clips that each ST-DiT makes")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    spec, run, out = (
        yaml.safe_load(arguments.spec.read_text()),
        arguments.run.resolve(),
        arguments.out.resolve(),
    )
    names = arguments.only or list(spec["variants"])
    if unknown := [name for name in names if name not in spec["variants"]]:
        parser.error(f"--only {unknown[0]!r} is not in {arguments.spec}: {', '.join(spec['variants'])}")
    results, stored = {}, out / spec["stage"] / "results.json"
    if stored.exists():
        results = json.loads(stored.read_text())
    try:
        for seed in arguments.seeds:
            for name in names:
                if str(seed) in results.get(name, {}):
                    continue
                found = run_variant(spec, run, out, name, seed, arguments.samples)
                results.setdefault(name, {})[str(seed)] = found
                stored.write_text(json.dumps(results, indent=1))
                print(name, seed, json.dumps(found), file=sys.stderr, flush=True)
    except UserError as error:
        raise SystemExit(f"ablations: {error}") from None
    shown = {name: list(results[name].values()) for name in names}
    print(table(spec["stage"], shown))
    print(json.dumps({"bench": "ablations", "stage": spec["stage"], "results": shown}))


if __name__ == "__main__":
    main()
