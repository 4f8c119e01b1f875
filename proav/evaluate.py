"""Evaluation of a run on clips of sources that training did not see; the mathematics is in proav/metrics.

Every number is written with its protocol: which clips, how many, which checkpoint, which seeds.
"""

import json

import numpy as np
import torch

from proav import storage
from proav.checkpoint import Checkpoint, check_resumable, load_checkpoint
from proav.config import Config
from proav.data.feed import LatentFeed, evaluation_windows
from proav.data.shards import SegmentStore
from proav.errors import UserError
from proav.metrics.reconstruction import mean_colour, mean_mel, mel_error_db, psnr_db, temporal_mean
from proav.pipeline import LatentCoder, load_coder, pixels_to_unit

NUM_TIMES = 8
"""Noise levels at which ST-DiT's validation loss is taken: the middles of equal shares of the training distribution of times."""
NUM_SHOWN = 6
"""Reconstructions that are kept as mp4 files for the report."""


def evaluate(config: Config) -> dict:
    """Writes eval/metrics.json and eval/reconstructions/; returns the metrics.

    Reconstruction of MDSA and, where it is trained, the loss of ST-DiT, on `evaluate.split`. Done already for these very checkpoints: nothing changes.
    """
    import ray

    for key in ("real", "fake"):
        if getattr(config.evaluate, key):
            raise UserError(
                f"evaluate.{key}={getattr(config.evaluate, key)}: comparing sets of clips is not in this version; leave evaluate.{key} empty"
            )
    path = storage.join(config.run_folder, "eval", "metrics.json")
    mdsa = load_checkpoint(storage.join(config.run_folder, "mdsa", "checkpoints"), kind="mdsa")
    check_resumable(mdsa, config.model_copy(update={"seed": mdsa.config.seed}), mdsa.labels)  # a run may be measured with another seed
    stdit_folder = storage.join(config.run_folder, "stdit", "checkpoints")
    stdit = load_checkpoint(stdit_folder, kind="stdit") if storage.exists(storage.join(stdit_folder, "latest")) else None
    identity = {
        "mdsa_checkpoint": mdsa.hash,
        "stdit_checkpoint": stdit and stdit.hash,
        "settings": config.evaluate.model_dump(mode="json"),
        "seed": config.seed,
    }
    if storage.exists(path):
        metrics = json.loads(storage.read_text(path))
        if metrics.get("protocol") == identity:
            print(f"evaluate: done already, {path}")
            return metrics
    gpus = 1 if ray.cluster_resources().get("GPU", 0) >= 1 else 0
    remote = ray.remote(num_cpus=1, num_gpus=gpus)
    if stdit is not None:
        _check_latents(config, stdit)
    parts = {"reconstruction": remote(evaluate_reconstruction).remote(config, mdsa.path)}
    if stdit is not None:
        parts["stdit"] = remote(evaluate_stdit).remote(config, stdit.path)
    try:
        metrics = {"protocol": identity, **{name: ray.get(part) for name, part in parts.items()}}
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):  # the worker's own words, not Ray's traceback around them
            raise error.cause from None
        raise
    storage.write_text(path, json.dumps(metrics, indent=1))
    print(summary(metrics))
    print(f"evaluate: {path}")
    return metrics


def summary(metrics: dict) -> str:
    """The numbers in a few lines."""
    r = metrics["reconstruction"]
    lines = [
        f"reconstruction of {r['num_clips']} clips from {r['num_sources']} unseen sources:",
        f"  picture {r['psnr_db']:.2f} dB PSNR (mean colour {r['psnr_mean_colour_db']:.2f} dB, temporal mean picture {r['psnr_temporal_mean_db']:.2f} dB)",
        f"  sound {r['mel_error_db']:.2f} dB log-mel error (mean mel {r['mel_error_mean_mel_db']:.2f} dB)",
    ]
    if "stdit" in metrics:
        s = metrics["stdit"]
        lines.append(f"ST-DiT: loss {s['loss']:.4f} on {s['num_windows']} unseen windows (at initialization {s['loss_at_initialization']:.4f})")
    return "\n".join(lines)


@torch.inference_mode()
def evaluate_reconstruction(config: Config, checkpoint_path: str) -> dict:
    """PSNR and log-mel error of MDSA's reconstructions beside those of trivial predictions; the first few clips are saved for the report."""
    coder = load_coder(load_checkpoint(checkpoint_path, kind="mdsa"), device="cuda" if torch.cuda.is_available() else "cpu")
    store = SegmentStore(storage.join(config.run_folder, "data"))
    windows = evaluation_windows(store, config, split=config.evaluate.split, max_clips=config.evaluate.max_clips)
    scores: dict[str, list[float]] = {}
    mel_range = {"floor_log10": config.mel.floor_log10, "ceiling_log10": config.mel.ceiling_log10}
    folder = storage.join(config.run_folder, "eval", "reconstructions")
    storage.delete_folder(folder)  # pairs of an earlier evaluation may have other numbers
    shown = set(np.linspace(0, len(windows) - 1, min(NUM_SHOWN, len(windows))).round().astype(int).tolist())
    for first in range(0, len(windows), config.encode.batch_size):
        batch = windows[first : first + config.encode.batch_size]
        clips = [store.window(index, start, config.clip.num_frames) for index, start in batch]
        video = torch.from_numpy(np.stack([clip["video"] for clip in clips]))
        mel = torch.from_numpy(np.stack([clip["mel"] for clip in clips])).float()
        decoded_video, decoded_mel = (value.cpu() for value in coder.decode(coder.encode(video, mel)))
        lone_video, lone_mel = (value.cpu() for value in coder.decode(coder.encode(video, mel, lone=True), lone=True))
        unit, decoded = pixels_to_unit(video), pixels_to_unit(decoded_video)
        measured = {
            "psnr_db": psnr_db(decoded, unit),
            "psnr_lone_db": psnr_db(pixels_to_unit(lone_video), unit),
            "psnr_mean_colour_db": psnr_db(mean_colour(unit), unit),
            "psnr_temporal_mean_db": psnr_db(temporal_mean(unit), unit),
            "mel_error_db": mel_error_db(decoded_mel, mel, **mel_range),
            "mel_error_lone_db": mel_error_db(lone_mel, mel, **mel_range),
            "mel_error_mean_mel_db": mel_error_db(mean_mel(mel), mel, **mel_range),
        }
        for name, values in measured.items():
            scores.setdefault(name, []).extend(values.tolist())
        _save_shown(coder, folder, first, shown, (video, mel), (decoded_video, decoded_mel))
    finite = {name: np.array(values)[np.isfinite(scores["psnr_mean_colour_db"])] for name, values in scores.items()}
    return {
        **{name: float(values.mean()) for name, values in finite.items()},
        "num_clips": int(len(finite["psnr_db"])),
        "num_one_colour_clips_left_out": int(len(windows) - len(finite["psnr_db"])),
        "num_sources": len({store.rows[index]["source_id"] for index, _ in windows}),
        "protocol": f"mean over non-overlapping windows of {config.clip.num_frames} frames of the {config.evaluate.split} sources, moving-average weights; "
        "PSNR over all pixels of a clip, peak 255; mean colour and temporal mean are the clip's own; log-mel error is mean |difference| over the native mel grid; "
        "lone: each modality encoded and decoded without the other",
    }


@torch.inference_mode()
def evaluate_stdit(config: Config, checkpoint_path: str) -> dict:
    """ST-DiT's joint loss on stored latents of the evaluated split at fixed times and noises, beside the loss that a zero prediction has."""
    from proav.diffusion.noise import noise_batch
    from proav.pipeline import SoundingVideoPipeline

    device = "cuda" if torch.cuda.is_available() else "cpu"
    pipeline = SoundingVideoPipeline.from_checkpoint(checkpoint_path, device=device)
    feed = LatentFeed(storage.join(config.run_folder, "latents"), split=config.evaluate.split, labels=pipeline.labels)
    picked = np.unique(np.linspace(0, len(feed) - 1, min(config.evaluate.max_clips, len(feed))).round().astype(int))
    times = pipeline.process.draw_times((torch.arange(NUM_TIMES, dtype=torch.float64) + 0.5) / NUM_TIMES)
    losses, moments = np.zeros((len(picked), NUM_TIMES)), np.zeros(len(picked))
    for first in range(0, len(picked), config.encode.batch_size):
        chosen = picked[first : first + config.encode.batch_size]
        rows = feed.rows(chosen)
        clean = pipeline.coder.normalize(rows["joint"].to(device))
        moments[first : first + len(chosen)] = clean.square().flatten(1).mean(1).cpu()
        noise = noise_batch([(config.seed, int(index)) for index in chosen], clean.shape[1:], purpose="evaluate").to(device)
        for level, time in enumerate(times.tolist()):
            times_B2 = torch.full((len(chosen), 2), time, device=device)
            prediction = pipeline.stdit(pipeline.process.add_noise(clean, noise, times_B2), times_B2, rows["label"].to(device))
            error = (prediction.float() - pipeline.process.target(clean, noise)).square().flatten(1).mean(1)
            losses[first : first + len(chosen), level] = error.cpu()
    return {
        "loss": float(losses.mean()),
        "loss_at_initialization": float(pipeline.process.zero_prediction_loss(float(moments.mean()))),
        "loss_by_time": {f"{time:.3f}": float(value) for time, value in zip(times.tolist(), losses.mean(0), strict=True)},
        "num_windows": int(len(picked)),
        "protocol": f"joint task, mean squared error over the stored joint latents of the {config.evaluate.split} sources, {NUM_TIMES} times at the middles of equal shares "
        f"of the training distribution, noise from (seed {config.seed}, window index), moving-average weights; at initialization the prediction is exactly zero, "
        "so that the loss follows from the latents' second moment",
    }


def _check_latents(config: Config, stdit: Checkpoint) -> None:
    """Raises UserError where the stored latents are missing or not those of the MDSA that ST-DiT was trained with: its loss would mean nothing."""
    folder = storage.join(config.run_folder, "latents")
    path = storage.join(folder, "stats.json")
    if not storage.exists(path):
        raise UserError(f"no latents in {folder} (no stats.json) for ST-DiT; run: python ray_jobs/encode.py --config FILE, with the same run_dir")
    if json.loads(storage.read_text(path))["mdsa_checkpoint"] != stdit.mdsa_hash:
        raise UserError(
            f"{stdit.path} was trained on the latents of another MDSA checkpoint than {folder}; "
            f"delete {storage.join(config.run_folder, 'stdit', 'checkpoints')} and train anew with: python ray_jobs/train.py stage=stdit"
        )


def _save_shown(coder: LatentCoder, folder: str, first: int, shown: set[int], real: tuple, decoded: tuple) -> None:
    for offset in range(len(real[0])):
        if first + offset not in shown:
            continue
        name = f"{first + offset:03d}"
        for kind, (video, mel) in (("real", real), ("reconstructed", decoded)):
            clip = coder.to_clips(video[offset : offset + 1], mel[offset : offset + 1], seeds=[first + offset])[0]
            clip.save(storage.join(folder, f"{name}_{kind}.mp4"))
