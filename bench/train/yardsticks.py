"""Scores of simple codes on a run's clips, without any trained model. MDSA has to be better than these.

    python -m bench.train.yardsticks [--config configs/demo.yaml] [section.key=value ...]

Fits linear planes and the cosine transform on the training split, then measures them on the clips of
evaluate.split, as ray_jobs/evaluate.py does. The last row is MDSA before training: its fitted linear path,
and a network whose output is still zero. Prints a table and the same as JSON. Writes nothing and needs no
Ray. data.prepared=FOLDER uses the prepared data of another run.
"""

import argparse
import json
import time
from collections.abc import Sequence

import numpy as np
import torch

from proav.config import Config
from proav.config.reading import load_config
from proav.data.feeds.feed import ClipFeed, evaluation_windows
from proav.data.store.shards import SegmentStore
from proav.errors import UserError
from proav.evaluate.reconstruction import evaluate_yardsticks, mean_over_windows
from proav.evaluate.yardsticks import Yardsticks, fit_yardsticks, plan_yardsticks
from proav.generation.coder import pixels_to_unit, unit_to_pixels
from proav.metrics.blockiness import blockiness, blockiness_sound
from proav.metrics.fidelity import mean_colour, mel_error_db, psnr_db
from proav.models.mdsa import MDSA
from proav.reports.kit.tables import values_text
from proav.train.fitting import fit_linear_planes

ROWS = (
    ("mean colour, mean mel", "mean_colour", "mean_mel"),
    ("temporal mean", "temporal_mean", None),
    ("linear planes", "linear_planes", "linear_planes"),
    ("cosine transform", "cosine", "cosine"),
)
HEADS = ("", "PSNR dB", "blockiness", "log-mel error dB", "blockiness of sound")


def mean_blockiness(config: Config, yardsticks: Yardsticks) -> dict[str, tuple[float, float]]:
    """{name: (of pictures, of sound)}, means over clips, for the real clips and each yardstick."""
    store, found = SegmentStore(config.data_folder), {}
    windows = evaluation_windows(
        store, config, split=config.evaluate.split, max_clips=config.evaluate.max_clips
    )
    for index, start in windows:
        window = store.window(index, start, config.clip.num_frames, want=("video", "mel"))
        video, mel = torch.from_numpy(window["video"])[None], torch.from_numpy(window["mel"]).float()[None]
        sounds = yardsticks.sounds(mel) | {"real": mel}
        made = yardsticks.pictures(pixels_to_unit(video))
        pictures = {name: unit_to_pixels(unit) for name, unit in made.items()} | {"real": video}
        for name in pictures:
            picture = blockiness(pictures[name][0].numpy(), side=config.mdsa.plane_size)
            found.setdefault(name, []).append((picture, blockiness_sound(sounds[name][0].numpy())))
    values = {name: np.array(each) for name, each in found.items()}
    return {
        name: tuple(float(column[np.isfinite(column)].mean()) for column in each.T)
        for name, each in values.items()
    }


def untrained_mdsa(config: Config) -> tuple[dict, tuple[float, float]]:
    """(means, blockiness) of MDSA's reconstructions before its first training step."""
    feed = ClipFeed.of_mdsa(config)
    torch.manual_seed(config.seed)
    model = MDSA(config).eval()
    print(fit_linear_planes(model, feed, config.mdsa.linear_planes.fit_clips).line)
    blocks, mel_range = [], {name: getattr(config.mel, name) for name in ("floor_log10", "ceiling_log10")}

    def measure(windows: Sequence[dict]) -> dict[str, np.ndarray]:
        video = pixels_to_unit(torch.from_numpy(np.stack([window["video"] for window in windows])))
        mel = torch.from_numpy(np.stack([window["mel"] for window in windows])).float()
        with torch.inference_mode():  # the whole model's result, bit for bit, at a hundredth of its cost
            pictures, sounds = (made.clamp(-1, 1) for made in model(video, mel, linear_alone=True))
        for picture, sound in zip(unit_to_pixels(pictures).numpy(), sounds.numpy(), strict=True):
            side = config.mdsa.plane_size
            blocks.append((blockiness(picture, side=side), blockiness_sound(sound)))
        rounded = pixels_to_unit(unit_to_pixels(pictures))
        own = {"psnr_db": psnr_db(rounded, video), "mel_error_db": mel_error_db(sounds, mel, **mel_range)}
        trivial = {"psnr_mean_colour_db": psnr_db(mean_colour(video), video)}  # decides which clips count
        return {name: values.numpy() for name, values in (own | trivial).items()}

    means, columns = mean_over_windows(config, measure), np.array(blocks).T
    return means, tuple(float(column[np.isfinite(column)].mean()) for column in columns)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="configs/demo.yaml")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    arguments = parser.parse_intermixed_args()
    torch.set_num_threads(1)
    try:
        config = load_config(arguments.config, arguments.overrides)
        plan = plan_yardsticks(config)
    except UserError as error:
        raise SystemExit(f"yardsticks: {error}") from None
    if not plan.available:
        raise SystemExit(f"yardsticks: they need {plan.needs}")
    began = time.monotonic()
    yardsticks = fit_yardsticks(config, plan)
    fitted = time.monotonic() - began
    means, blocks = evaluate_yardsticks(config, yardsticks), mean_blockiness(config, yardsticks)
    real = blocks.pop("real")
    rows = [HEADS, ("the clips themselves", "", f"{real[0]:.2f}", "", f"{real[1]:.2f}")]
    for name, picture, sound in ROWS:
        of_picture, of_sound = (
            (f"{block:.2f}" for block in blocks[picture]) if picture in blocks else ("", "")
        )
        error = f"{means[f'mel_error_{sound}_db']:.2f}" if sound else ""
        rows.append((name, f"{means[f'psnr_{picture}_db']:.2f}", of_picture, error, of_sound))
    if config.mdsa.linear_planes.enabled:
        own, own_blocks = untrained_mdsa(config)
        picture, sound = f"{own['psnr_db']:.2f}", f"{own['mel_error_db']:.2f}"
        rows.append(("MDSA before training", picture, f"{own_blocks[0]:.2f}", sound, f"{own_blocks[1]:.2f}"))
        means |= {
            "psnr_untrained_mdsa_db": own["psnr_db"],
            "mel_error_untrained_mdsa_db": own["mel_error_db"],
        }
        blocks["untrained_mdsa"] = own_blocks
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADS))]
    values = values_text(plan.record["values_per_stream"])
    print(f"{means['num_clips']} clips of {means['num_sources']} {config.evaluate.split} sources; {values}")
    print(f"fitted in {fitted:.1f} s on {plan.record['num_windows']} training windows, {plan.hash}")
    for row in rows:
        name, *numbers = (text.rjust(width) for text, width in zip(row, widths, strict=True))
        print("  ".join([row[0].ljust(len(name)), *numbers]))
    found = {"blockiness": blocks | {"real": real}, "means": means, "yardsticks": plan.to_dict()}
    print(json.dumps({"bench": "yardsticks", "fit_seconds": round(fitted, 1), **found}))


if __name__ == "__main__":
    main()
