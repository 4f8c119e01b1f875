"""How measures of synchrony fall when the sound is shifted against the picture.

    python -m bench.metrics.sync_shift DATA_DIR [--shifts 0 1 2 4 8]

DATA_DIR: data prepared by `ray_jobs/preprocess.py`. Every window of `--frames` frames is measured with its
    own
sound, and with the sound of the same segment 1, 2, 4, 8 frames earlier, as if the sound were late. All shifts
use the same windows: only those with enough frames of their segment before them for the largest shift. Prints
the means over windows with their standard errors over sources, and one JSON line.
"""

import argparse
import json
from collections import defaultdict

import numpy as np
import torch

from proav.config.reading import load_config
from proav.data.store.shards import SegmentStore
from proav.media.container import Clip
from proav.media.melframes import MelFrames
from proav.metrics.av_align import audio_onsets, from_events, motion_strengths
from proav.metrics.clip_synchrony import clip_synchrony

MEASURES = ("av_align", "av_align_one_to_one", "synchrony")


def measure(
    video: np.ndarray,
    audio: np.ndarray,
    motion: np.ndarray,
    fps: int,
    sample_rate: int,
    mel_frames: MelFrames,
) -> dict[str, float]:
    """MEASURES of one window.

    video: uint8 [T, H, W, 3].
    audio: float32 [samples].
    motion: `motion_strengths` of the video.
    fps: frames per second.
    sample_rate: in Hz.
    mel_frames: the mel transform.
    """
    aligned = from_events(audio_onsets(audio, sample_rate), motion, fps=fps)
    return aligned | {"synchrony": clip_synchrony(Clip(video, audio, fps, sample_rate), mel_frames)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data_dir")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--shifts", type=int, nargs="+", default=[0, 1, 2, 4, 8])
    parser.add_argument("--max-windows", type=int, default=1000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    store = SegmentStore(arguments.data_dir)
    settings = [
        f"{key}={value}"
        for key, value in store.manifest["settings"].items()
        if key.split(".")[0] in ("clip", "mel")
    ]
    config = load_config(None, settings)
    mel_frames, frames, furthest = MelFrames(config), arguments.frames, max(arguments.shifts)
    segments, firsts, lengths = store.stretches(num_frames=frames + furthest)
    windows = [
        (int(segment), int(first) + furthest + number * frames)
        for segment, first, length in zip(segments, firsts, lengths, strict=True)
        for number in range((int(length) - furthest) // frames)
    ]
    windows = [
        windows[number * len(windows) // min(len(windows), arguments.max_windows)]
        for number in range(min(len(windows), arguments.max_windows))
    ]
    found = {shift: {name: defaultdict(list) for name in MEASURES} for shift in arguments.shifts}
    for segment, start in windows:
        row = store.rows[segment]
        fps, sample_rate = row["fps"], row["sample_rate"]
        video = store.window(segment, start, frames, want=("video",))["video"]
        motion = motion_strengths(video)
        for shift in arguments.shifts:
            audio = store.window(segment, start - shift, frames, want=("audio",))["audio"]
            for name, value in measure(video, audio, motion, fps, sample_rate, mel_frames).items():
                if np.isfinite(value):
                    found[shift][name][row["source_id"]].append(value)
    print(
        f"{len(windows)} windows of {frames} frames at {config.clip.fps} fps from "
        f"{len({store.rows[segment]['source_id'] for segment, _ in windows})} sources"
    )
    print(f"{'sound late by':>14} " + " ".join(f"{name:>26}" for name in MEASURES))
    rows = []
    for shift in arguments.shifts:
        row = {"shift": shift}
        for name in MEASURES:
            by_source = [np.mean(values) for values in found[shift][name].values()]
            weights = [len(values) for values in found[shift][name].values()]
            mean = float(np.average(by_source, weights=weights))
            spread = float(
                np.sqrt(np.sum((np.array(weights) * (np.array(by_source) - mean)) ** 2)) / np.sum(weights)
            )
            row |= {name: round(mean, 4), f"{name}_error": round(spread, 4)}
        rows.append(row)
        print(
            f"{shift:7} frames "
            + " ".join(f"{row[name]:16.4f} +- {row[f'{name}_error']:.4f}" for name in MEASURES)
        )
    print(
        json.dumps(
            {
                "bench": "sync_shift",
                "windows": len(windows),
                "frames": frames,
                "fps": config.clip.fps,
                "rows": rows,
            }
        )
    )


if __name__ == "__main__":
    main()
