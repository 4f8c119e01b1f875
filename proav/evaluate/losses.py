"""ST-DiT's loss on the stored latents of the evaluated split.

The loss itself is in proav/diffusion/modalities.py. Letters: B windows, D latent channels, P planes.
"""

import json

import numpy as np
import torch

from proav import storage
from proav.config import Config
from proav.data.feeds.feed import evenly_spread
from proav.data.feeds.latent_feed import LatentFeed
from proav.data.store.vectors import open_vectors
from proav.diffusion.conditions import Conditions
from proav.diffusion.modalities import denoising_loss
from proav.diffusion.noise import noise_batch
from proav.errors import UserError
from proav.generation.pipeline import SoundingVideoPipeline
from proav.runs.checkpoint import Checkpoint
from proav.runs.layout import RunFolder

NUM_TIMES = 8
"""Number of times at which ST-DiT's validation loss is measured.

They are the midpoints of equal shares of the training distribution of times.
"""


@torch.inference_mode()
def evaluate_stdit(config: Config, checkpoint_path: str, *, device: str = "cpu") -> dict:
    """ST-DiT's joint loss on stored latents of the evaluated split, with fixed times and noise.

    The result also has the loss of a zero prediction, since ST-DiT predicts exactly zero at initialization.
    """
    pipeline = SoundingVideoPipeline.from_checkpoint(checkpoint_path, device=device)
    feed = LatentFeed(
        RunFolder(config).latents,
        split=config.evaluate.split,
        labels=pipeline.labels,
        vectors=open_vectors(config.data_folder, pipeline.config.stdit.vector_shapes),
    )
    picked = evenly_spread(len(feed), config.evaluate.max_clips)
    times = pipeline.process.draw_times((torch.arange(NUM_TIMES, dtype=torch.float64) + 0.5) / NUM_TIMES)
    losses, moments = np.zeros((len(picked), NUM_TIMES)), np.zeros(len(picked))
    own_DP = torch.tensor(pipeline.coder.latents.channel_mask, device=device).T
    for first in range(0, len(picked), config.encode.batch_size):
        chosen = picked[first : first + config.encode.batch_size]
        rows = feed.rows(chosen)
        clean = pipeline.coder.normalize(rows["joint"].to(device))
        nothing_given = torch.zeros(len(chosen), 2, dtype=torch.bool, device=device)
        moments[first : first + len(chosen)] = denoising_loss(
            clean, torch.zeros_like(clean), nothing_given, own_DP
        ).cpu()
        noise = noise_batch(
            [(config.seed, int(index)) for index in chosen], clean.shape[1:], purpose="evaluate"
        ).to(device)
        for level, time in enumerate(times.tolist()):
            times_B2 = torch.full((len(chosen), 2), time, device=device)
            noisy = pipeline.process.add_noise(clean, noise, times_B2)
            prediction = pipeline.stdit(noisy, times_B2, Conditions.of_rows(rows).to(device))
            error_B = denoising_loss(prediction, pipeline.process.target(clean, noise), nothing_given, own_DP)
            losses[first : first + len(chosen), level] = error_B.cpu()
    return {
        "loss": float(losses.mean()),
        "loss_at_initialization": float(pipeline.process.zero_prediction_loss(float(moments.mean()))),
        "loss_by_time": {
            f"{time:.3f}": float(value) for time, value in zip(times.tolist(), losses.mean(0), strict=True)
        },
        "num_windows": int(len(picked)),
        "protocol": "joint task, mean squared error over the stored joint latents of the "
        f"{config.evaluate.split} sources, {NUM_TIMES} times at the middles of equal shares of the training "
        f"distribution, noise from (seed {config.seed}, window index), moving-average weights; at "
        "initialization the prediction is exactly zero, so that the loss follows from the latents' second "
        "moment",
    }


def check_latents(config: Config, stdit: Checkpoint) -> None:
    """Checks that the stored latents are those of the MDSA that ST-DiT was trained with.

    Raises UserError if they are missing or from another MDSA: the loss on them would be meaningless.
    """
    folder = RunFolder(config).latents
    path = RunFolder(config).latent_statistics
    if not storage.exists(path):
        raise UserError(
            f"no latents in {folder} (no stats.json) for ST-DiT; "
            "run: python ray_jobs/encode.py --config FILE, with the same run_dir"
        )
    if json.loads(storage.read_text(path))["mdsa_checkpoint"] != stdit.mdsa_hash:
        raise UserError(
            f"{stdit.path} was trained on the latents of another MDSA checkpoint than {folder}; delete "
            f"{RunFolder(config).stdit.checkpoints} and train anew with: python ray_jobs/train.py stage=stdit"
        )
