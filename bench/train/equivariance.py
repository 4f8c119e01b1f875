"""Whether block codes can be equivariant to scale: pooled codes, decoded at half the size.

    python -m bench.train.equivariance RUN

RUN is a finished run of configs/demo.yaml. Principal components code blocks of 8 x 8 pixels of each clip's
mean picture, as the HW plane does. The codes are then averaged over 2 x 2 cells and decoded, and the result
is compared with the picture at half its size. Prints PSNR over unseen sources. Needs no Ray.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from einops import rearrange, reduce

from proav.config import Config
from proav.config.reading import load_config
from proav.data.feeds.feed import evaluation_windows
from proav.data.store.shards import SegmentStore

SIDE = 8
CHANNELS = (3, 16, 46)
"""Numbers of components. The last is that of the demo's HW plane."""


def mean_pictures(config: Config, split: str, count: int) -> np.ndarray:
    """float64 [N, H, W, 3] in [-1, 1]: the mean frame of each window."""
    store = SegmentStore(config.data_folder)
    windows = (
        store.window(index, start, config.clip.num_frames, want=("video",))["video"]
        for index, start in evaluation_windows(store, config, split=split, max_clips=count)
    )
    return np.stack([window.mean(axis=0) / 127.5 - 1 for window in windows])


def psnr(made: np.ndarray, real: np.ndarray) -> float:
    """Mean PSNR over pictures, in dB."""
    return float(np.mean(10 * np.log10(4 / np.square(made - real).mean(axis=(1, 2, 3)))))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    run = parser.parse_args().run
    config = load_config(str(run / "config.yaml"), [f"data.prepared={run / 'data'}"])
    cells = "n (r p) (s q) c -> n r s (p q c)"
    training = rearrange(mean_pictures(config, "train", 200), cells, p=SIDE, q=SIDE)
    unseen = mean_pictures(config, "validation", 48)
    half = reduce(unseen, "n (h p) (w q) c -> n h w c", "mean", p=2, q=2)
    values = training.reshape(-1, training.shape[-1])
    mean, bases = values.mean(axis=0), np.linalg.svd(values - values.mean(axis=0), full_matrices=False)[2]
    flat = reduce(unseen, "n (h p) (w q) c -> n h w c", "mean", p=2 * SIDE, q=2 * SIDE)
    flat = flat.repeat(SIDE, axis=1).repeat(SIDE, axis=2)  # one colour for each pooled cell
    rows = []
    for channels in CHANNELS:
        basis = bases[:channels]

        def code(pictures: np.ndarray, basis=basis) -> np.ndarray:
            return (rearrange(pictures, cells, p=SIDE, q=SIDE) - mean) @ basis.T

        def decode(codes: np.ndarray, basis=basis) -> np.ndarray:
            return rearrange(codes @ basis + mean, "n r s (p q c) -> n (r p) (s q) c", p=SIDE, q=SIDE)

        pooled = reduce(code(unseen), "n (r p) (s q) d -> n r s d", "mean", p=2, q=2)
        rows.append(
            {
                "channels": channels,
                "whole_db": round(psnr(decode(code(unseen)), unseen), 2),
                "half_coded_db": round(psnr(decode(code(half)), half), 2),
                "half_of_pooled_codes_db": round(psnr(decode(pooled), half), 2),
            }
        )
        print(", ".join(f"{name}: {value}" for name, value in rows[-1].items()))
    print(f"each pooled cell's mean colour alone: {psnr(flat, half):.2f} dB")
    print(json.dumps({"bench": "equivariance", "rows": rows, "cell_means_db": round(psnr(flat, half), 2)}))


if __name__ == "__main__":
    main()
