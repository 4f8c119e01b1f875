"""One training step of ST-DiT: latents -> task, times and noise -> prediction -> loss. Plain torch.

Every draw (task, times, noise, label dropout) is a function of (seed, clip position). So batch split, workers
and resumes change nothing. ProAV-DiT, Section 3, prints no objective. Not here: the tasks
(`proav/diffusion/tasks.py`), the noise process (`proav/diffusion`), the loop that calls the step (`loop.py`).
B clips, D latent channels, P=6 planes (3 video, then 3 audio), N plane side.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from proav.config import Config
from proav.diffusion import make_process
from proav.diffusion.conditions import Conditions
from proav.diffusion.modalities import denoising_loss, mix_given, plane_errors
from proav.diffusion.noise import noise_batch
from proav.diffusion.tasks import TaskDraw, draw_tasks
from proav.generation.coder import LatentScale
from proav.geometry import MODALITIES, PLANES_PER_MODALITY, LatentGeometry
from proav.models.mdsa.planes import masked_condition
from proav.train.engines import Engine
from proav.train.loop import Parts, StepOutput

NOISE_BUCKETS = 4
"""The loss is also reported by noise level, in this many equal spans of time.

A flat total can hide a part that still learns.
"""


@dataclass(frozen=True)
class NoisyBatch:
    """Stored latents with the noise and the conditions that the model sees."""

    clean_BDPNN: Tensor
    noise_BDPNN: Tensor
    noisy_BDPNN: Tensor
    times_B2: Tensor
    """Times in [0, 1] of each modality; 0 for a given modality."""
    given_B2: Tensor
    conditions: Conditions


class GeneratorStep:
    """Denoising loss of a batch of stored latents.

    num_labels: size of the label vocabulary.
    latent_mean, latent_std: over the training set, [6 planes][D channels].

    The model sees (latent - mean) / std.
    """

    def __init__(
        self,
        config: Config,
        *,
        num_labels: int,
        latent_mean: Sequence[Sequence[float]],
        latent_std: Sequence[Sequence[float]],
    ) -> None:
        self.config, self.num_labels, self.process = config, num_labels, make_process(config)
        self.scale = LatentScale(latent_mean, latent_std)
        self.own_DP = torch.tensor(LatentGeometry.from_config(config).channel_mask).T

    def loss(self, engine: Engine, batch: dict, clips: int) -> StepOutput:
        """Mean over clips of the squared error on the planes that are not given.

        batch: joint, lone float32 [b, D, 6, N, N] as stored, label int64 [b], position int64 [b]; with masked
            tasks also masked float32 [b, D, 6, N, N] as stored, known bool [b, 2, T].
        clips: not used.
        """
        draw = draw_tasks(self.config.seed, batch["position"], self.config)
        made = self.add_noise(batch, draw, engine.device)
        prediction_BDPNN = engine.forward(made.noisy_BDPNN, made.times_B2, made.conditions)
        target_BDPNN = self.process.target(made.clean_BDPNN, made.noise_BDPNN)
        losses_B = denoising_loss(
            prediction_BDPNN, target_BDPNN, made.given_B2, self.own_DP.to(engine.device)
        )
        parts = self._parts(prediction_BDPNN, target_BDPNN, made.times_B2, made.given_B2)
        return StepOutput(losses_B.mean(), parts)

    def add_noise(self, batch: dict, draw: TaskDraw, device: torch.device) -> NoisyBatch:
        """The latents of a batch, normalized, at the times of `draw`."""
        given_B2, times_B2 = draw.given_B2.to(device), draw.times_B2.to(device)
        self.scale.to(device)
        joint_BDPNN, lone_BDPNN = (
            self.scale.normalize(batch[kind].to(device, non_blocking=True)) for kind in ("joint", "lone")
        )
        clean_BDPNN = mix_given(joint_BDPNN, lone_BDPNN, given_B2)
        identities = [(self.config.seed, position) for position in batch["position"].tolist()]
        noise_BDPNN = noise_batch(identities, clean_BDPNN.shape[1:], purpose="train").to(device)
        noisy_BDPNN = self.process.add_noise(clean_BDPNN, noise_BDPNN, times_B2)
        conditions = Conditions.of_rows(batch).dropped(self.num_labels, draw.drop_label_B).to(device)
        if "masked" in batch:
            masked_BDPNN = self.scale.normalize(batch["masked"].to(device, non_blocking=True))
            conditions = replace(conditions, masked_BEPNN=masked_condition(masked_BDPNN, batch["known"]))
        return NoisyBatch(clean_BDPNN, noise_BDPNN, noisy_BDPNN, times_B2, given_B2, conditions)

    @torch.no_grad()
    def _parts(
        self, prediction_BDPNN: Tensor, target_BDPNN: Tensor, times_B2: Tensor, given_B2: Tensor
    ) -> Parts:
        """The error of each modality, and of each span of noise levels, over the streams that are not given.

        prediction_BDPNN, target_BDPNN: of the model and of the process.
        times_B2: times in [0, 1] per modality.
        given_B2: whether a modality is given.
        """
        error_BP, count_P = plane_errors(
            prediction_BDPNN, target_BDPNN, self.own_DP.to(prediction_BDPNN.device)
        )
        by_modality = (len(MODALITIES), PLANES_PER_MODALITY)
        error_B2 = (error_BP * count_P).unflatten(1, by_modality).sum(2) / count_P.view(by_modality).sum(1)
        made_B2 = (~given_B2).float()
        parts = {
            f"{name}_loss": ((error_B2 * made_B2)[:, i].sum(), made_B2[:, i].sum())
            for i, name in enumerate(MODALITIES)
        }
        bucket_B2 = (times_B2 * NOISE_BUCKETS).long().clamp(max=NOISE_BUCKETS - 1)
        for bucket in range(NOISE_BUCKETS):
            chosen_B2 = made_B2 * (bucket_B2 == bucket)
            parts[f"loss_noise_{bucket + 1}_of_{NOISE_BUCKETS}"] = (
                (error_B2 * chosen_B2).sum(),
                chosen_B2.sum(),
            )
        return parts

    def backward_others(self, accumulation_steps: int) -> None:
        """Nothing trains beside ST-DiT."""

    def check_others(self) -> None:
        """Nothing trains beside ST-DiT."""

    def step_others(self) -> None:
        """Nothing trains beside ST-DiT."""

    def discard_others(self) -> None:
        """Nothing trains beside ST-DiT."""

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        return {}

    def load_tensors(self, read: Callable[[str], dict[str, Tensor]]) -> None:
        """Nothing trains beside ST-DiT."""
