"""DDPM with the noise as target: the settings of PVDM, with the same methods as the flow.

Follows DDPM (Ho et al. 2020) and PVDM's schedule. Sampling is in `solvers.py`. The estimated clean latents
are not clamped (our choice). PVDM clamps them to [-1, 1], because tanh bounds its latents. Ours have unit
variance, so many are beyond 1. Letters: B clips, D channels, P=6 planes, N plane side.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from proav.diffusion.modalities import spread_to_planes
from proav.diffusion.times import shifted
from proav.errors import UserError


@dataclass(frozen=True)
class DDPM:
    """z_k = sqrt(a_k) z + sqrt(1 - a_k) e, with target e.

    a_k = prod_{j <= k} (1 - beta_j), and sqrt(beta) is evenly spaced. The discrete steps k = 1 .. num_steps
    are the times t = k / num_steps; t = 0 is clean, a_0 = 1. Other times are rounded to the nearest.
    """

    num_steps: int = 1000
    beta_start: float = 0.0015
    beta_end: float = 0.0195
    eta: float = 0.0
    """Share of fresh noise in DDIM's steps: 0 none, 1 that of the ancestral sampler."""
    objective: ClassVar[str] = "ddpm"

    @cached_property
    def signal_shares(self) -> Tensor:
        """a_k for k = 0 .. num_steps, [num_steps + 1] float64."""
        betas = torch.linspace(
            self.beta_start**0.5, self.beta_end**0.5, self.num_steps, dtype=torch.float64
        ).square()
        return torch.cat([torch.ones(1, dtype=torch.float64), (1 - betas).cumprod(0)])

    def draw_times(self, uniforms: Tensor) -> Tensor:
        """Uniform discrete times, t = (floor(u num_steps) + 1) / num_steps, for u in (0, 1) of any shape."""
        return ((uniforms * self.num_steps).floor() + 1).clamp(max=self.num_steps) / self.num_steps

    def _shares(self, times_B2: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """(sqrt(a), sqrt(1 - a)) per plane, [B, 1, 6, 1, 1]."""
        share_B2 = self.signal_shares.to(like.device)[
            (times_B2.to(like.device) * self.num_steps).round().long()
        ]
        share = spread_to_planes(share_B2)
        return share.sqrt().to(like.dtype), (1 - share).sqrt().to(like.dtype)

    def add_noise(self, clean_BDPNN: Tensor, noise_BDPNN: Tensor, times_B2: Tensor) -> Tensor:
        """z_k = sqrt(a_k) z + sqrt(1 - a_k) e, each plane at its modality's time; exactly z at t = 0."""
        signal, spread = self._shares(times_B2, clean_BDPNN)
        return signal * clean_BDPNN + spread * noise_BDPNN

    def target(self, clean_BDPNN: Tensor, noise_BDPNN: Tensor) -> Tensor:
        """e."""
        return noise_BDPNN

    def most_steps(self, shift: float | None = None) -> int:
        """The most steps of sampling whose times lie at least a step of the process apart."""
        return int((self.num_steps - 1) / (shift or 1.0)) + 1

    def times_of(self, steps: int, shift: float | None = None) -> list[float]:
        """k_i = round(num_steps t_i), t_i = 1 - i / steps shifted by `shift`, as times k / num_steps.

        Raises UserError if two of them are the same step of the process.
        """
        ks = [round(self.num_steps * shifted(1 - i / steps, shift or 1.0)) for i in range(steps + 1)]
        if len(set(ks)) < len(ks):
            wanted = f"generate.steps={steps}" + (f" with generate.schedule_shift={shift:g}" if shift else "")
            raise UserError(
                f"{wanted}: ddpm has {self.num_steps} steps; expected at most "
                f"generate.steps={self.most_steps(shift)}" + (", or a smaller shift" if shift else "")
            )
        return [k / self.num_steps for k in ks]

    def shares(self, time: float) -> tuple[float, float]:
        """(sqrt(a_k), sqrt(1 - a_k))."""
        share = self.signal_shares[round(time * self.num_steps)].item()
        return share**0.5, (1 - share) ** 0.5

    def estimates(self, state: Tensor, prediction: Tensor, time: float) -> tuple[Tensor, Tensor]:
        """z = (z_k - sqrt(1 - a_k) e) / sqrt(a_k) and e, all planes at one time."""
        signal, spread = self.shares(time)
        return (state - spread * prediction) / signal, prediction

    def zero_prediction_loss(self, second_moment: float = 1.0) -> float:
        """The loss of a model that predicts zero, as at initialization: E |e|^2 = 1 per value.

        It does not depend on the latents.
        """
        return 1.0
