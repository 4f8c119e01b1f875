"""FVD, KVD, FAD-YAMNet and KAD-YAMNet against known degradations of real clips.

    python -m bench.metrics.degradations DATA_DIR WEIGHTS_DIR [--clips 512] [--device cuda]

DATA_DIR: data prepared by `ray_jobs/preprocess.py`, at 10 fps. WEIGHTS_DIR: a folder with
i3d-kinetics400.safetensors, yamnet.safetensors or both.

Takes non-overlapping windows of 16 frames, evenly spread over all sources, and compares them with copies of
themselves that are degraded with rising strength. Pictures get noise, blur, shuffled and frozen frames; sound
gets noise and a low-pass filter. Fréchet distances are marked if there are fewer vectors than features + 2:
then covariances are singular, and only the order of such numbers means something. Prints a table and one JSON
line.
"""

import argparse
import json
import os
import time
from concurrent.futures import ProcessPoolExecutor
from functools import cache

import numpy as np
import torch

from bench.helpers.known_degradations import OF_PICTURES, OF_SOUND
from proav.data.store.shards import SegmentStore
from proav.media.container import Clip
from proav.media.torchaudio import resample
from proav.metrics.distances import Moments, frechet_distance, kernel_distance, least_frechet_count
from proav.metrics.networks import load_network

FRAMES, BATCH = 16, 16
NETWORKS = {"i3d-kinetics400": ("FVD", "KVD", OF_PICTURES), "yamnet": ("FAD-YAMNet", "KAD-YAMNet", OF_SOUND)}


@cache
def tools(data_dir: str, network: str, weights: str, device: str):
    """(data set, network with its weights); a process opens them once."""
    if device == "cpu":
        torch.set_num_threads(1)
    return SegmentStore(data_dir), load_network(network, weights, device)


def features_of(
    arguments, name: str, windows: list[tuple[int, int]], kind: str, strength: float
) -> tuple[np.ndarray, float, float]:
    """(vectors [N, D], seconds of reading and degrading, seconds of the network) of some windows.

    arguments: those of the command line.
    name: name of the network.
    windows: (segment, first frame) of each.
    kind: kind of the degradation; empty: none.
    strength: strength of the degradation.
    """
    store, network = tools(
        arguments.data_dir, name, os.path.join(arguments.weights, f"{name}.safetensors"), arguments.device
    )
    began, clips = time.perf_counter(), []
    for segment, start in windows:
        window, row = store.window(segment, start, FRAMES, want=("video", "audio")), store.rows[segment]
        clip = Clip(window["video"], window["audio"], row["fps"], row["sample_rate"])
        clips.append(NETWORKS[name][2][kind][0](clip, strength, segment << 16 | start) if kind else clip)
    if network.card.kind == "video":
        batch = torch.from_numpy(np.stack([clip.video for clip in clips]))
    else:
        batch = resample(
            torch.from_numpy(np.stack([clip.audio for clip in clips])),
            clips[0].sample_rate,
            network.card.sample_rate,
        )
    read = time.perf_counter()
    features = network(batch).flatten(0, 1).float().cpu().numpy()
    return features, read - began, time.perf_counter() - read


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data_dir")
    parser.add_argument("weights")
    parser.add_argument("--clips", type=int, default=512)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    segments, firsts, lengths = SegmentStore(arguments.data_dir).stretches(num_frames=FRAMES)
    windows = [
        (int(segment), int(first) + number * FRAMES)
        for segment, first, length in zip(segments, firsts, lengths, strict=True)
        for number in range(int(length) // FRAMES)
    ]
    count = min(len(windows), arguments.clips)
    windows = [windows[number * len(windows) // count] for number in range(count)]
    parts = [windows[start : start + BATCH] for start in range(0, count, BATCH)]
    here = ProcessPoolExecutor(arguments.processes) if arguments.device == "cpu" else None
    rows, spent = [], {}

    def measure(name: str, kind: str = "", strength: float = 0) -> np.ndarray:
        columns = (
            [[value] * len(parts) for value in (arguments, name)]
            + [parts]
            + [[value] * len(parts) for value in (kind, strength)]
        )
        found = list((here.map if here else map)(features_of, *columns))
        reading, network = spent.get(name, (0.0, 0.0))
        spent[name] = reading + sum(one[1] for one in found), network + sum(one[2] for one in found)
        return np.concatenate([one[0] for one in found]).astype(np.float64)

    for name, (frechet, kernel, degradations) in NETWORKS.items():
        if not os.path.exists(os.path.join(arguments.weights, f"{name}.safetensors")):
            print(f"{name}: no {name}.safetensors in {arguments.weights}, left out")
            continue
        clean = measure(name)
        mark = (
            ""
            if len(clean) >= least_frechet_count(clean.shape[1])
            else f" (of only {len(clean)} vectors of {clean.shape[1]} features)"
        )
        cases = [("itself", 0.0)] + [
            (kind, strength) for kind, (_, strengths) in degradations.items() for strength in strengths
        ]
        for kind, strength in cases:
            features = clean if kind == "itself" else measure(name, kind, strength)
            distances = (
                frechet_distance(Moments.of(clean), Moments.of(features)),
                kernel_distance(clean, features),
            )
            rows.append(
                {
                    "network": name,
                    "against": kind,
                    "strength": strength,
                    "frechet": round(distances[0], 4),
                    "kernel": round(distances[1], 4),
                }
            )
            print(
                f"{kind:10} {strength:6.3f}  {frechet} {distances[0]:12.4f}  {kernel} "
                f"{distances[1]:12.4f}{mark}",
                flush=True,
            )
        reading, network = spent[name]
        clips = count * len(cases)  # clean ones once, all others once
        print(
            f"{name}, on one process or device: {clips / network:.2f} clips/s in the network, "
            f"{clips / reading:.1f} clips/s reading and degrading",
            flush=True,
        )
    if not rows:
        raise SystemExit(
            f"degradations: no network found in {arguments.weights}; expected one of "
            + ", ".join(f"{name}.safetensors" for name in NETWORKS)
        )
    print(json.dumps({"bench": "degradations", "clips": count, "device": arguments.device, "rows": rows}))


if __name__ == "__main__":
    main()
