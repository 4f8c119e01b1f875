"""What MDSA makes of clips, beside trivial predictions of them. Needs no network of features; the mathematics is in proav/metrics."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from proav import storage
from proav.checkpoint import load_checkpoint
from proav.config import Config
from proav.data.feed import evaluation_windows
from proav.data.shards import SegmentStore
from proav.media.container import Clip
from proav.metrics.reconstruction import mean_colour, mean_mel, mel_error_db, psnr_db, temporal_mean
from proav.pipeline import LatentCoder, load_coder, pixels_to_unit

NUM_SHOWN = 6
"""Reconstructions that are kept as mp4 files for the report."""
SCORES = ("psnr_db", "psnr_mean_colour_db", "psnr_temporal_mean_db", "mel_error_db", "mel_error_mean_mel_db", "psnr_lone_db", "mel_error_lone_db")
"""What `reconstruct` measures of each clip."""


@dataclass(frozen=True)
class Reconstructed:
    """clips: empty where no sound was asked for. scores: {name: [B]} of SCORES; infinite PSNR where a clip is one colour and so is its prediction."""

    clips: list[Clip]
    scores: dict[str, np.ndarray]


@torch.inference_mode()
def reconstruct(coder: LatentCoder, config: Config, windows: Sequence[dict], *, seeds: Sequence[int] = (), brief: bool = False) -> Reconstructed:
    """Encodes and decodes windows of prepared segments (`SegmentStore.window`), jointly and each modality without the other.

    seeds: of the phases of each clip's sound. brief: the joint scores alone, no clips.
    """
    mel_range = {"floor_log10": config.mel.floor_log10, "ceiling_log10": config.mel.ceiling_log10}
    video = torch.from_numpy(np.stack([window["video"] for window in windows]))
    mel = torch.from_numpy(np.stack([window["mel"] for window in windows])).float()
    on_device = coder.decode(coder.encode(video, mel))
    decoded_video, decoded_mel = (value.cpu() for value in on_device)
    unit, decoded = pixels_to_unit(video), pixels_to_unit(decoded_video)
    scores = {
        "psnr_db": psnr_db(decoded, unit),
        "psnr_mean_colour_db": psnr_db(mean_colour(unit), unit),
        "psnr_temporal_mean_db": psnr_db(temporal_mean(unit), unit),
        "mel_error_db": mel_error_db(decoded_mel, mel, **mel_range),
        "mel_error_mean_mel_db": mel_error_db(mean_mel(mel), mel, **mel_range),
    }
    if not brief:
        lone_video, lone_mel = (value.cpu() for value in coder.decode(coder.encode(video, mel, lone=True), lone=True))
        scores["psnr_lone_db"] = psnr_db(pixels_to_unit(lone_video), unit)
        scores["mel_error_lone_db"] = mel_error_db(lone_mel, mel, **mel_range)
    clips = [] if brief else coder.to_clips(*on_device, seeds=seeds)
    return Reconstructed(clips, {name: values.numpy() for name, values in scores.items()})


def evaluate_reconstruction(config: Config, checkpoint_path: str, *, device: str = "cpu") -> dict:
    """Means of the joint scores over the clips of `evaluate.split`: what a sweep compares."""
    coder = load_coder(load_checkpoint(checkpoint_path, kind="mdsa"), device=device)
    store = SegmentStore(config.data_folder)
    windows = evaluation_windows(store, config, split=config.evaluate.split, max_clips=config.evaluate.max_clips)
    parts = []
    for first in range(0, len(windows), config.encode.batch_size):
        batch = [store.window(index, start, config.clip.num_frames) for index, start in windows[first : first + config.encode.batch_size]]
        parts.append(reconstruct(coder, config, batch, brief=True).scores)
    scores = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return mean_scores(scores, sources=[store.rows[index]["source_id"] for index, _ in windows], config=config)


def mean_scores(scores: dict[str, np.ndarray], *, sources: Sequence[str], config: Config) -> dict:
    """Means over clips, with their number and protocol. Clips of one single colour, whose trivial prediction is perfect, are left out and counted."""
    used = np.isfinite(scores["psnr_mean_colour_db"])
    return {
        **{name: float(values[used].mean()) for name, values in scores.items()},
        "num_clips": int(used.sum()),
        "num_one_colour_clips_left_out": int((~used).sum()),
        "num_sources": len(set(sources)),
        "protocol": f"mean over non-overlapping windows of {config.clip.num_frames} frames of the {config.evaluate.split} sources, moving-average weights; "
        "PSNR over all pixels of a clip, peak 255; mean colour and temporal mean are the clip's own; log-mel error is mean |difference| over the native mel grid; "
        "lone: each modality encoded and decoded without the other",
    }


def save_shown(config: Config, checkpoint_path: str, *, device: str = "cpu") -> None:
    """Writes eval/reconstructions/NNN_real.mp4 and NNN_reconstructed.mp4 of a few clips for the report; NNN is the clip's place among those measured."""
    coder = load_coder(load_checkpoint(checkpoint_path, kind="mdsa"), device=device)
    store = SegmentStore(config.data_folder)
    windows = evaluation_windows(store, config, split=config.evaluate.split, max_clips=config.evaluate.max_clips)
    folder = storage.join(config.run_folder, "eval", "reconstructions")
    storage.delete_folder(folder)  # pairs of an earlier evaluation may have other numbers
    for number in np.unique(np.linspace(0, len(windows) - 1, min(NUM_SHOWN, len(windows))).round().astype(int)).tolist():
        index, start = windows[number]
        window = store.window(index, start, config.clip.num_frames)
        (clip,) = reconstruct(coder, config, [window], seeds=[number]).clips
        real = Clip(window["video"], window["audio"], config.clip.fps, config.clip.sample_rate)
        for kind, one in (("real", real), ("reconstructed", clip)):
            one.save(storage.join(folder, f"{number:03d}_{kind}.mp4"))
