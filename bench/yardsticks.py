"""What simple codes make of a run's clips, without any trained model: the numbers that MDSA has to beat.

    python bench/yardsticks.py [--config configs/demo.yaml] [section.key=value ...]

Fits linear planes and the cosine transform on the training split, then measures them on the clips of
evaluate.split, as evaluate.py does. Prints a table and the same as JSON. Writes nothing and needs no Ray.
data.prepared=FOLDER takes the prepared data of another run.
"""

import argparse
import json
import time

import numpy as np
import torch

from proav.config import Config
from proav.data.feed import evaluation_windows
from proav.data.shards import SegmentStore
from proav.errors import UserError
from proav.evaluate.reconstruction import evaluate_yardsticks
from proav.evaluate.yardsticks import Yardsticks, fit_yardsticks, plan_yardsticks
from proav.metrics.blockiness import blockiness, blockiness_sound
from proav.pipeline import pixels_to_unit, unit_to_pixels
from proav.report_page.tables import values_text
from proav.settings import load_config

ROWS = (
    ("mean colour, mean mel", "mean_colour", "mean_mel"),
    ("temporal mean", "temporal_mean", None),
    ("linear planes", "linear_planes", "linear_planes"),
    ("cosine transform", "cosine", "cosine"),
)
HEADS = ("", "PSNR dB", "blockiness", "log-mel error dB", "blockiness of sound")


def mean_blockiness(config: Config, yardsticks: Yardsticks) -> dict[str, tuple[float, float]]:
    """{what: (of pictures, of sound)} of the real clips and of each yardstick: means over clips."""
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
