"""Rectified flow: straight lines from data to noise, with their velocity as target.

Follows rectified flow (Liu et al. 2022) with the logit-normal times of Stable Diffusion 3 (Esser et al.
2024). The paper does not print its objective. Sampling is in `solvers.py`. Sign convention:
v = dz_t / dt = noise - clean. Letters: B clips, D channels, P=6 planes, N plane side.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from proav.diffusion.modalities import spread_to_planes
from proav.diffusion.times import shifted


@dataclass(frozen=True)
class RectifiedFlow:
    """z_t = (1 - t) z + t e,  e ~ N(0, 1),  target v = e - z;  t = 0 is clean, t = 1 noise."""

    time_sampling: Literal["logit_normal", "uniform"] = "logit_normal"
    shift: float = 1.0
    """Moves the times of training and sampling toward noise (`times.py`); 1 leaves them."""

    objective: ClassVar[str] = "flow"
    eta: ClassVar[float] = 0.0
    """Sampling from a flow adds no fresh noise."""

    def draw_times(self, uniforms: Tensor) -> Tensor:
        """Training times by the inverse distribution function, then shifted.

        t = sigmoid(Phi^-1(u)) for logit-normal(0, 1) times, t = u for uniform ones. uniforms: u in (0, 1), of
        any shape.
        """
        normal = self.time_sampling == "logit_normal"
        return shifted(torch.special.ndtri(uniforms).sigmoid() if normal else uniforms.clone(), self.shift)

    def add_noise(self, clean_BDPNN: Tensor, noise_BDPNN: Tensor, times_B2: Tensor) -> Tensor:
        """z_t = (1 - t) z + t e, each plane at its modality's time; exactly z at t = 0."""
        time = spread_to_planes(times_B2).to(clean_BDPNN.dtype)
        return (1 - time) * clean_BDPNN + time * noise_BDPNN

    def target(self, clean_BDPNN: Tensor, noise_BDPNN: Tensor) -> Tensor:
        """v = e - z."""
        return noise_BDPNN - clean_BDPNN

    def times_of(self, steps: int, shift: float | None = None) -> list[float]:
        """t_i = 1 - i / steps, i = 0 .. steps, shifted by `shift`; None: as in training."""
        return [shifted(1 - i / steps, self.shift if shift is None else shift) for i in range(steps + 1)]

    def shares(self, time: float) -> tuple[float, float]:
        """(1 - t, t)."""
        return 1 - time, time

    def estimates(self, state: Tensor, prediction: Tensor, time: float) -> tuple[Tensor, Tensor]:
        """z = z_t - t v and e = z_t + (1 - t) v, all planes at one time."""
        return state - time * prediction, state + (1 - time) * prediction

    def zero_prediction_loss(self, second_moment: float = 1.0) -> float:
        """The loss of a model that predicts zero, as at initialization: E |e - z|^2 = 1 + E[z^2] per value.

        It is 2 for normalized latents.
        """
        return 1.0 + second_moment


@dataclass(frozen=True)
class FlowMap(RectifiedFlow):
    """The same path from data to noise, for a model that predicts the average velocity between two times.

        u(z_t, t, r) = (z_t - z_r) / (t - r),   r <= t;   u(z_t, t, t) = v(z_t, t),

    where z_r is reached from z_t along the velocity v of a flow (Geng et al., 2025). `shift` is 1, so times
    of sampling are evenly spaced by default. Pairs of times for training are drawn in `flow_maps.py`.
    """

    guidance_scales: tuple[float, float] = (1.0, 1.0)
    """The guidance that v contains, (video's, audio's) scale; sampling cannot change it."""

    objective: ClassVar[str] = "flow_map"
