"""One training step of MDSA: reconstruction of picture and sound, and training of the discriminators.

This is plain torch. The paper gives no list of losses. Terms and weights for pictures are those of its
ancestor PVDM: L1 4, perceptual 4, adversarial 1, feature matching 4. The terms for mel images correspond to
them. Every draw (modality dropout, noise, hidden cells, judged frame) is a function of (seed, clip position).
The loop that calls the step is in `loop.py`. Letters: B clips, T frames, C channels, H W rows and columns, M
mel bins, S mel columns in a frame, D latent channels, V values of a clip's planes.
"""

import contextlib
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from proav.config import Config
from proav.diffusion.noise import noise_batch, uniforms_for
from proav.generation.coder import pixels_to_unit
from proav.geometry import PLANE_NAMES, LatentGeometry
from proav.models.discriminators import (
    AudioDiscriminator,
    VideoDiscriminators,
    feature_matching_loss,
    hinge_discriminator_loss,
    hinge_generator_loss,
    pick_frames,
)
from proav.models.mdsa import Exchange
from proav.models.perceptual import LPIPS, multi_scale_gradient_loss
from proav.train.engines import Engine, NonFiniteError, average_gradients
from proav.train.loop import StepOutput, mean_part
from proav.train.optimizers import MOMENTS

DISCRIMINATOR_GRADIENT_CLIP = 1.0
"""Largest gradient norm of the discriminators, as in PVDM."""
MASK_RATIOS = (0.25, 0.5, 0.75)
"""Shares of hidden cells, as in SSVAE."""


class AutoencoderStep:
    """Losses of a batch of clips, and the discriminators' own training.

    L = L_video + audio * L_audio, with
    L_video = pixel |x - y| + pixel_squared (x - y)^2 + perceptual LPIPS(one frame)
              + adversarial (hinge) + feature_matching,
    L_audio = mel |x - y| + mel_squared (x - y)^2 + mel_difference |dx - dy| + adversarial + feature_matching.
    Without LPIPS weights, multi_scale_gradient |dx - dy| replaces the perceptual term. Adversarial and
    feature_matching start after mdsa.loss.adversarial_start_clips clips. Every worker holds the whole
    discriminators. The terms pixel_squared, mel_squared, mel_difference and multi_scale_gradient are reported
    only if their weight is not zero.
    """

    def __init__(self, config: Config, *, device: torch.device) -> None:
        self.config, self.weights, self.device = config, config.mdsa.loss, device
        self.perceptual = (
            LPIPS(self.weights.perceptual_weights).to(device) if self.weights.perceptual_weights else None
        )
        self.discriminators = nn.ModuleDict(
            {"video": VideoDiscriminators(config), "audio": AudioDiscriminator(config)}
        ).to(device)
        self.optimizer = torch.optim.AdamW(
            self.discriminators.parameters(),
            lr=self.weights.discriminator_learning_rate,
            betas=config.mdsa.train.betas,
            weight_decay=0.0,
        )
        self.optimizer_steps = 0
        self._judged: dict | None = None
        self._checked = False

    def loss(self, engine: Engine, batch: dict, clips: int) -> StepOutput:
        """The loss of a batch, and its parts.

        batch: video uint8 [b, T, H, W, 3], mel float32 [b, T, M, S] in [-1, 1], position int64 [b].
        clips: clips seen in training before this step.
        """
        positions = batch["position"].tolist()
        video_BCTHW = pixels_to_unit(batch["video"].to(self.device, non_blocking=True))
        mel_BTMS = batch["mel"].to(self.device, non_blocking=True)
        frames_B = draw_frames(self.config.seed, positions, self.config.clip.num_frames)
        exchange = draw_exchange(self.config.seed, positions, self.config.mdsa.modality_dropout)
        mdsa, noise, shown = self.config.mdsa, None, None
        if mdsa.latent_noise:
            noise = self._to_device(draw_noise(self.config, positions))
        if mdsa.latent_mask:
            shown = self._to_device(draw_shown(self.config, positions))
        alone = clips < mdsa.alone_clips
        outputs = engine.forward(
            video_BCTHW, mel_BTMS, exchange=exchange, noise=noise, shown=shown, linear_alone=alone
        )
        video_out, mel_out = (output.float() for output in outputs)
        terms = self._reconstruction(video_BCTHW, video_out, mel_BTMS, mel_out, frames_B)
        self._judged = None
        if clips >= self.weights.adversarial_start_clips:
            self._judged = {
                "autocast": engine.autocast
                if self.config.mdsa.train.precision == "bf16"
                else contextlib.nullcontext,
                "video": ((video_BCTHW, video_out.detach()), (frames_B,)),
                "audio": ((mel_BTMS, mel_out.detach()), ()),
            }
            terms |= self._adversarial(video_BCTHW, video_out, mel_BTMS, mel_out, frames_B)
        total = sum(weight * value for weight, value in terms.values())
        error_B = (video_out.detach().clamp(-1, 1) - video_BCTHW).square().mean(dim=(1, 2, 3, 4))
        parts = {
            name: (value.detach() * len(positions), float(len(positions)))
            for name, (_, value) in terms.items()
        }
        return StepOutput(
            total, parts | {"video_psnr": mean_part(10 * torch.log10(4 / error_B.clamp(min=1e-10)))}
        )

    def _to_device(self, planes: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: plane.to(self.device, non_blocking=True) for name, plane in planes.items()}

    def _reconstruction(
        self, video: Tensor, video_out: Tensor, mel: Tensor, mel_out: Tensor, frames_B: Tensor
    ) -> dict[str, tuple[float, Tensor]]:
        """{name: (weight, value)} of the terms without discriminators.

        video, video_out: given and decoded pictures [B, C, T, H, W].
        mel, mel_out: given and decoded mel images [B, T, M, S].
        frames_B: the frame of each clip for LPIPS.
        """
        weights = self.weights
        terms = {
            "video_l1": (weights.pixel, F.l1_loss(video_out, video)),
            "mel_l1": (weights.audio * weights.mel, F.l1_loss(mel_out, mel)),
        }
        if weights.pixel_squared:
            terms["video_l2"] = (weights.pixel_squared, F.mse_loss(video_out, video))
        if weights.mel_squared:
            terms["mel_l2"] = (weights.audio * weights.mel_squared, F.mse_loss(mel_out, mel))
        if self.perceptual:
            frames = pick_frames(video_out, frames_B), pick_frames(video, frames_B)
            terms["video_lpips"] = (weights.perceptual, self.perceptual(*frames).mean())
        elif weights.multi_scale_gradient:
            terms["video_gradient"] = (
                weights.multi_scale_gradient,
                multi_scale_gradient_loss(video_out, video),
            )
        if weights.mel_difference:
            difference_BMC = rearrange(mel_out - mel, "b t m s -> b m (t s)")
            between_steps, between_bands = (difference_BMC.diff(dim=axis).abs().mean() for axis in (-1, -2))
            weight = weights.audio * weights.mel_difference
            terms["mel_difference"] = (weight, (between_steps + between_bands) / 2)
        return terms

    def _adversarial(
        self, video: Tensor, video_out: Tensor, mel: Tensor, mel_out: Tensor, frames_B: Tensor
    ) -> dict[str, tuple[float, Tensor]]:
        """{name: (weight, value)} of the adversarial terms; arguments as in `_reconstruction`."""
        terms = {}
        self.discriminators.requires_grad_(False)
        for name, share, real, fake, more in (
            ("video", 1.0, video, video_out, (frames_B,)),
            ("audio", self.weights.audio, mel, mel_out, ()),
        ):
            with self._judged["autocast"]():
                with torch.no_grad():
                    _, real_features = self.discriminators[name](real, *more)
                fake_logits, fake_features = self.discriminators[name](fake, *more)
            terms[f"{name}_adversarial"] = (
                share * self.weights.adversarial,
                hinge_generator_loss(fake_logits),
            )
            terms[f"{name}_feature_matching"] = (
                share * self.weights.feature_matching,
                feature_matching_loss(real_features, fake_features),
            )
        self.discriminators.requires_grad_(True)
        return terms

    def backward_others(self, accumulation_steps: int) -> None:
        """Backward pass of the discriminators' hinge loss, on given and decoded clips of the last `loss`."""
        if self._judged is None:
            return
        for name, discriminator in self.discriminators.items():
            (real, fake), more = self._judged[name]
            with self._judged["autocast"]():
                real_logits, fake_logits = discriminator(real, *more)[0], discriminator(fake, *more)[0]
            (hinge_discriminator_loss(real_logits, fake_logits) / accumulation_steps).backward()

    def check_others(self) -> None:
        """Averages the discriminators' gradients over the workers and clips them.

        Raises NonFiniteError if they are not finite.
        """
        if self._judged is None:
            return
        self._judged = None
        parameters = list(self.discriminators.parameters())
        average_gradients(parameters)
        norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters])
        if not torch.isfinite(norm):
            raise NonFiniteError(f"the discriminators' gradient norm is {norm.item()}")
        nn.utils.clip_grads_with_norm_(parameters, DISCRIMINATOR_GRADIENT_CLIP, norm)
        self._checked = True

    def step_others(self) -> None:
        """Steps the discriminators; checks their gradients first if that was not done."""
        self.check_others()
        if not self._checked:
            return
        self._checked = False
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.optimizer_steps += 1

    def discard_others(self) -> None:
        """Drops the discriminators' gradients."""
        self._judged, self._checked = None, False
        self.optimizer.zero_grad(set_to_none=True)

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """The discriminators, and their optimizer once it has stepped."""
        moments = {"steps": torch.tensor(self.optimizer_steps)}
        for name, parameter in self.discriminators.named_parameters() if self.optimizer_steps else ():
            moments |= {f"{moment}.{name}": self.optimizer.state[parameter][moment] for moment in MOMENTS}
        return {
            "discriminators": self.discriminators.state_dict(),
            "training/discriminators_optimizer": moments,
        }

    def load_tensors(self, read: Callable[[str], dict[str, Tensor]]) -> None:
        self.discriminators.load_state_dict(read("discriminators"))
        moments = read("training/discriminators_optimizer")
        self.optimizer_steps = int(moments["steps"])
        for name, parameter in self.discriminators.named_parameters() if self.optimizer_steps else ():
            state = {moment: moments[f"{moment}.{name}"].to(self.device) for moment in MOMENTS}
            self.optimizer.state[parameter] = {"step": torch.tensor(float(self.optimizer_steps)), **state}


def draw_frames(seed: int, positions: list[int], num_frames: int) -> Tensor:
    """int64 [B]: the frame of each clip for LPIPS and the 2D discriminator, uniform by (seed, position)."""
    return torch.tensor(
        [int(uniforms_for(seed, position, 1, purpose="frame")[0] * num_frames) for position in positions]
    )


def draw_exchange(seed: int, positions: list[int], probability: float) -> Exchange:
    """Modality dropout: which modality of a clip sees the other; a function of (seed, position).

    Three cases have `probability` each: audio gets nothing from video, video gets nothing from audio, neither
    gets anything. So each modality can be decoded if the other is not given.
    """
    uniform_B = torch.stack([uniforms_for(seed, position, 1, purpose="flow")[0] for position in positions])
    return Exchange.from_uniform(uniform_B, probability)


def draw_noise(config: Config, positions: list[int]) -> dict[str, Tensor]:
    """{plane: mdsa.latent_noise * N(0, 1), [B, D, rows, columns]}, a function of (seed, position)."""
    geometry = LatentGeometry.from_config(config)
    sizes = zip(PLANE_NAMES, geometry.channels, strict=True)
    shapes = {name: (channels, *geometry.plane_shapes[name[2:]]) for name, channels in sizes}
    clips = [(config.seed, position) for position in positions]
    noise_BV = config.mdsa.latent_noise * noise_batch(clips, (geometry.values_per_clip,), purpose="latents")
    parts = noise_BV.split([math.prod(shape) for shape in shapes.values()], dim=1)
    return {name: part.reshape(-1, *shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


def draw_shown(config: Config, positions: list[int]) -> dict[str, Tensor]:
    """{plane: float32 [B, 1, rows, columns], 0 for hidden cells, else 1}, a function of (seed, position).

    A clip has hidden cells with probability mdsa.latent_mask. Each of its cells is then hidden with a
    probability that is drawn from MASK_RATIOS (SSVAE).
    """
    shapes = {name: LatentGeometry.from_config(config).plane_shapes[name[2:]] for name in PLANE_NAMES}
    draws = [uniforms_for(config.seed, position, 2, purpose="mask") for position in positions]
    ratio_B = torch.tensor(
        [
            MASK_RATIOS[int(which * len(MASK_RATIOS))] if chosen < config.mdsa.latent_mask else 0.0
            for chosen, which in draws
        ]
    )
    clips = [(config.seed, position) for position in positions]
    noise_BV = noise_batch(clips, (sum(map(math.prod, shapes.values())),), purpose="mask")
    shown_BV = (torch.special.ndtr(noise_BV) >= ratio_B[:, None]).float()
    parts = shown_BV.split([math.prod(shape) for shape in shapes.values()], dim=1)
    return {name: part.reshape(-1, 1, *shapes[name]) for name, part in zip(shapes, parts, strict=True)}
