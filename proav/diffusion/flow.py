"""Rectified flow: straight lines from data to noise, their velocity as target, Euler steps back.

Follows rectified flow (Liu et al. 2022) with the logit-normal times of Stable Diffusion 3 (Esser et al.
2024); the paper does not print its objective. Letters: B clips, D channels, P=6 planes, N plane side. Sign
convention: v = dz_t / dt = noise - clean.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from proav.diffusion.planes import spread_to_planes


@dataclass(frozen=True)
class RectifiedFlow:
    """z_t = (1 - t) z + t e,  e ~ N(0, 1),  target v = e - z,  sampled by Euler from t = 1 (noise) to t = 0
    (clean).
    """

    time_sampling: Literal["logit_normal", "uniform"] = "logit_normal"
    shift: float = 1.0
    """Times of training and sampling are moved toward noise: t' = s t / (1 + (s - 1) t), s >= 1 (Esser et al.
    2024); 1 leaves them.
    """

    @property
    def is_stochastic(self) -> bool:
        """Whether `step` wants fresh noise."""
        return False

    def draw_times(self, uniforms: Tensor) -> Tensor:
        """Training times by the inverse distribution function: t = sigmoid(Phi^-1(u)) (logit-normal(0, 1)) or
        t = u, shifted.

        uniforms in (0, 1), any shape.
        """
        return self._shifted(
            torch.special.ndtri(uniforms).sigmoid()
            if self.time_sampling == "logit_normal"
            else uniforms.clone()
        )

    def _shifted(self, time):
        return self.shift * time / (1 + (self.shift - 1) * time) if self.shift != 1 else time

    def add_noise(self, clean_BDPNN: Tensor, noise_BDPNN: Tensor, times_B2: Tensor) -> Tensor:
        """z_t = (1 - t) z + t e, each plane at its modality's time; exactly z at t = 0."""
        time = spread_to_planes(times_B2).to(clean_BDPNN.dtype)
        return (1 - time) * clean_BDPNN + time * noise_BDPNN

    def target(self, clean_BDPNN: Tensor, noise_BDPNN: Tensor) -> Tensor:
        """v = e - z."""
        return noise_BDPNN - clean_BDPNN

    def clean_from(self, noisy_BDPNN: Tensor, prediction_BDPNN: Tensor, times_B2: Tensor) -> Tensor:
        """z = z_t - t v."""
        return noisy_BDPNN - spread_to_planes(times_B2).to(noisy_BDPNN.dtype) * prediction_BDPNN

    def noise_from(self, noisy_BDPNN: Tensor, prediction_BDPNN: Tensor, times_B2: Tensor) -> Tensor:
        """e = z_t + (1 - t) v."""
        return noisy_BDPNN + (1 - spread_to_planes(times_B2).to(noisy_BDPNN.dtype)) * prediction_BDPNN

    def times_of(self, steps: int) -> list[float]:
        """t_i = 1 - i / steps, i = 0 .. steps, shifted."""
        return [self._shifted(1 - i / steps) for i in range(steps + 1)]

    def step(
        self, noisy: Tensor, prediction: Tensor, time: float, next_time: float, noise: Tensor | None = None
    ) -> Tensor:
        """Euler: z_s = z_t + (s - t) v. `noise` is not used."""
        return noisy + (next_time - time) * prediction

    def zero_prediction_loss(self, second_moment: float = 1.0) -> float:
        """E |e - z|^2 = 1 + E[z^2] per value: the loss of a model that predicts zero, 2 for normalized
        latents; the loss at initialization.
        """
        return 1.0 + second_moment
