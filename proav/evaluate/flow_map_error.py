"""How far a flow map's samples are from its teacher's, from the same noise.

The sampling loop is in `proav/generation/denoise.py`, the training target in `proav/diffusion/flow_maps.py`.
"""

import torch
from torch import Tensor

from proav.config import Config
from proav.data.feeds.feed import evenly_spread
from proav.data.feeds.latent_feed import LatentFeed
from proav.data.store.vectors import open_vectors
from proav.diffusion.conditions import Conditions
from proav.diffusion.noise import noise_batch
from proav.diffusion.solvers import num_steps
from proav.errors import UserError
from proav.generation.denoise import Group, denoise
from proav.generation.pipeline import SoundingVideoPipeline
from proav.generation.sampling_settings import SamplingSettings
from proav.runs.layout import RunFolder

STUDENT_STEPS = {"error_1_step": 1, "error_2_steps": 2, "error_4_steps": 4}


@torch.inference_mode()
def evaluate_flow_map(config: Config, checkpoint_path: str, *, device: str = "cpu") -> dict:
    """{"error_1_step", "error_2_steps", "error_4_steps"}: distances to the teacher's samples.

    The teacher takes its default number of steps.

    Flow map and teacher make joint samples from the same noise, with the labels of the evaluated split's
    windows. The error is sqrt(mean (z - z')^2 / mean (z' - m)^2), with z the flow map's sample, z' the
    teacher's, and m the mean of all z'. 0 means equal samples. 1 means that its samples are as far from
    the teacher's as m is.
    Raises UserError if the flow map was made from another teacher, or if there are fewer than 2 windows.
    """
    student, teacher = (
        SoundingVideoPipeline.from_checkpoint(path, device=device)
        for path in (checkpoint_path, config.distill.teacher or RunFolder(config).stdit.checkpoints)
    )
    if student.teacher_hash != teacher.checkpoint_hash:
        raise UserError(
            f"{checkpoint_path} was not made from the ST-DiT that this run names; write distill.teacher=PATH"
        )
    feed = LatentFeed(
        RunFolder(config).latents,
        split=config.evaluate.split,
        labels=student.labels,
        vectors=open_vectors(config.data_folder, student.config.stdit.vector_shapes),
    )
    picked, split = evenly_spread(len(feed), config.evaluate.max_clips), config.evaluate.split
    if len(picked) < 2:
        mend = "write evaluate.max_clips=2 or more"
        if len(feed) < 2:
            mend = "write evaluate.split=" + ("train" if split == "validation" else "validation")
        raise UserError(
            f"evaluate.max_clips={config.evaluate.max_clips} and the {split} split's windows, {len(feed)} in "
            f"all, leave {len(picked)} to measure the flow map's error with; expected 2 or more: {mend}"
        )

    def samples(pipeline: SoundingVideoPipeline, steps: int) -> Tensor:
        video, audio = student.process.guidance_scales
        settings = SamplingSettings(steps=steps, guidance_scale=video, audio_guidance_scale=audio)
        made = []
        for first in range(0, len(picked), config.encode.batch_size):
            chosen = picked[first : first + config.encode.batch_size]
            identities = [(config.seed, int(index)) for index in chosen]
            noise = noise_batch(identities, pipeline.coder.latents.stack_shape, purpose="evaluate").to(device)
            group = Group(settings, noise, Conditions.of_rows(feed.rows(chosen)).to(device))
            made += [part.cpu() for part in denoise(pipeline.stdit, pipeline.process, [group])]
        return torch.cat(made)

    steps = num_steps(None, teacher.process.objective)
    truth = samples(teacher, steps)
    spread = (truth - truth.mean(0)).square().mean()
    errors = {name: samples(student, count) - truth for name, count in STUDENT_STEPS.items()}
    return {name: float((error.square().mean() / spread).sqrt()) for name, error in errors.items()} | {
        "num_windows": int(len(picked)),
        "protocol": f"joint samples from the noise of (seed {config.seed}, window index) with the labels of "
        f"the {split} windows, moving-average weights; root mean squared difference to the "
        f"teacher's normalized latents in {steps} steps, divided by the standard deviation of those latents "
        "around their mean",
    }
