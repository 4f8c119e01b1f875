"""FVD's and KVD's features against known degradations of real clips. `python bench/degradations.py DATA_DIR WEIGHTS [--clips 96]`

DATA_DIR: what `ray_jobs/preprocess.py` has made, at 10 fps or more; WEIGHTS: i3d-kinetics400.safetensors. Windows of 16 frames, one a source, are
compared with themselves made worse: noise, blur, shuffled and frozen frames, in rising strength, and with as many windows of other sources. With
fewer clips than 402 the Fréchet distance is of singular covariances: it orders, but is no FVD. Prints a table and one JSON line.
"""

import argparse
import json
import time
from concurrent.futures import ProcessPoolExecutor
from functools import cache

import numpy as np
import torch

from proav.data.shards import SegmentStore
from proav.media.container import Clip
from proav.metrics.distances import Moments, frechet_distance, kernel_distance
from proav.metrics.networks import load_network
from tests.degradations import OF_PICTURES

FRAMES = 16


@cache
def tools(data_dir: str, weights: str):
    torch.set_num_threads(1)
    return SegmentStore(data_dir), load_network("i3d-kinetics400", weights)


def features_of(task: tuple[str, str, int, str, float]) -> np.ndarray:
    data_dir, weights, segment, name, strength = task
    store, network = tools(data_dir, weights)
    window = store.window(segment, 0, FRAMES, want=("video", "audio"))
    row = store.rows[segment]
    clip = Clip(window["video"], window["audio"], row["fps"], row["sample_rate"])
    if name:
        clip = OF_PICTURES[name][0](clip, strength, segment)
    return network(torch.from_numpy(clip.video)[None])[0, 0].numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_dir")
    parser.add_argument("weights")
    parser.add_argument("--clips", type=int, default=96)
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    store = SegmentStore(arguments.data_dir)
    segments, _, _ = store.stretches(num_frames=FRAMES)
    sources = store.index.column("source_id").take(segments).to_pylist()
    firsts = [int(segment) for number, segment in enumerate(segments) if sources.index(sources[number]) == number]
    chosen, others = firsts[: 2 * arguments.clips : 2], firsts[1 : 2 * arguments.clips : 2]
    rows, begun = [], time.monotonic()
    with ProcessPoolExecutor(arguments.processes) as pool:

        def measure(which: list[int], name: str = "", strength: float = 0) -> np.ndarray:
            tasks = [(arguments.data_dir, arguments.weights, segment, name, strength) for segment in which]
            return np.stack(list(pool.map(features_of, tasks)))

        clean = measure(chosen)
        cases = [("itself", 0.0, clean), ("other sources", 0.0, measure(others))]
        cases += [(name, strength, measure(chosen, name, strength)) for name, (_, strengths) in OF_PICTURES.items() for strength in strengths]
    for name, strength, features in cases:
        rows.append(
            {
                "against": name,
                "strength": strength,
                "frechet": round(frechet_distance(Moments.of(clean), Moments.of(features)), 1),
                "kernel": round(kernel_distance(clean, features), 2),
            }
        )
        print(f"{name:14} {strength:5.2f}  Fréchet {rows[-1]['frechet']:9.1f}  kernel {rows[-1]['kernel']:9.2f}")
    seconds = time.monotonic() - begun
    clips = (len(cases) - 1) * len(chosen)
    print(f"{len(chosen)} clips; {clips / seconds:.2f} clips/s on {arguments.processes} processes")
    print(json.dumps({"bench": "degradations", "clips": len(chosen), "rows": rows}))


if __name__ == "__main__":
    main()
