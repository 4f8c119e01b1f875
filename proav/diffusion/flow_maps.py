"""Training targets of a flow map: pairs of times, and the average velocity between them.

Follows decoupled MeanFlow (Lee et al., 2025) with the velocity of a teacher, a trained flow. Not here: the
model (`proav/models/stdit`), its training (`proav/train/flow_map_step.py`), sampling (`solvers.py`). Letters:
B clips, D channels, P=6 planes, N plane side; t the times of the state, r the next times, per modality.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from proav.diffusion.modalities import spread_to_planes
from proav.diffusion.noise import uniforms_for
from proav.diffusion.tasks import TASKS

END_SHARE = 0.125
"""This share of the pairs starts at pure noise, and the same share ends at clean planes. Our choice.

Sampling always starts at pure noise and ends at clean planes.
"""


def draw_time_pairs(
    seed: int, positions: Sequence[int] | Tensor, names: Sequence[str], given_B2: Tensor
) -> tuple[Tensor, Tensor]:
    """(t, r) of each clip, float32 [B, 2] each, 0 <= r <= t <= 1: functions of (seed, position) and its task.

    t = min(1, u / (1 - a)),   r = t max(0, 1 - u' / (1 - a)),   u and u' uniform, a = END_SHARE.

    seed, positions: of the run, and of the clips in the training order.
    names: of the clips' tasks. Modalities with times of their own get pairs of their own.
    given_B2: bool; a given modality has t = r = 0.
    """
    uniforms_B4 = torch.stack([uniforms_for(seed, int(one), 4, purpose="flow-map") for one in positions])
    own_B1 = torch.tensor([[TASKS[name].own_times] for name in names])
    start_B2, span_B2 = (torch.where(own_B1, pair, pair[:, :1]) for pair in uniforms_B4.split(2, dim=1))
    times_B2 = (start_B2 / (1 - END_SHARE)).clamp(max=1)
    next_times_B2 = times_B2 * (1 - span_B2 / (1 - END_SHARE)).clamp(min=0)
    return tuple(times.masked_fill(given_B2, 0.0).float() for times in (times_B2, next_times_B2))


def later_times(times_B2: Tensor, next_times_B2: Tensor, time_step: float) -> tuple[Tensor, Tensor]:
    """(s, share [B]): the times one step later, s = t - share (t - r) with share = min(1, h / max(t - r)).

    The larger of a clip's two spans sets the share, so that both modalities reach their r together.

    times_B2, next_times_B2: t and r.
    time_step: h, in (0, 1].
    """
    span_B2 = times_B2 - next_times_B2
    share_B = (time_step / span_B2.amax(1).clamp(min=1e-12)).clamp(max=1)
    return torch.where(share_B[:, None] < 1, times_B2 - share_B[:, None] * span_B2, next_times_B2), share_B


def step_along(velocity_BDPNN: Tensor, noisy_BDPNN: Tensor, times_B2: Tensor, later_B2: Tensor) -> Tensor:
    """z_s = z_t - (t - s) v(z_t, t): Euler's step, in which each modality goes from its own t to its own s.

    velocity_BDPNN, noisy_BDPNN: v and z_t.
    times_B2, later_B2: t and s.
    """
    return noisy_BDPNN - spread_to_planes(times_B2 - later_B2).to(noisy_BDPNN) * velocity_BDPNN


def mean_flow_target(
    velocity_BDPNN: Tensor, prediction_BDPNN: Tensor, later_BDPNN: Tensor, share_B: Tensor
) -> Tensor:
    """The target for u(z_t, t, r), which is MeanFlow's u = v - (t - r) du/dt with a backward difference:

        v - (1 - a) / a (u(z_t, t, r) - u(z_s, s, r)),   a = (t - s) / (t - r).

    If a map equals its target, it goes from t to s along v, and from s to r by itself:
    (t - r) u(z_t, t, r) = (t - s) v + (s - r) u(z_s, s, r). Applied again and again, this is Euler's method
    with steps of length h.

    velocity_BDPNN: v(z_t, t).
    prediction_BDPNN, later_BDPNN: u(z_t, t, r) and u(z_s, s, r), without gradients.
    share_B: a, in (0, 1].
    """
    assert not (prediction_BDPNN.requires_grad or later_BDPNN.requires_grad), "a target has no gradient"
    share_B1111 = share_B[:, None, None, None, None].to(velocity_BDPNN)
    return velocity_BDPNN - (1 - share_B1111) / share_B1111 * (prediction_BDPNN - later_BDPNN)
