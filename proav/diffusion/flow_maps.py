"""Training targets of a flow map: pairs of times, and the average velocity between them.

A student learns to make many steps of its teacher, a trained flow, at once. The teacher is asked where the
student arrives (Lagrangian map distillation, Boffi et al., 2024). Not here: the model (`proav/models/stdit`),
its training (`proav/train/flow_map_step.py`), sampling (`solvers.py`). Letters: B clips, D channels, P=6
planes, N plane side; t the times of the state, r the next times, per modality.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from proav.diffusion.modalities import spread_to_planes
from proav.diffusion.noise import uniforms_for
from proav.diffusion.tasks import TASKS
from proav.diffusion.times import shifted

END_SHARE = 0.125
"""This share of the pairs starts at pure noise, and the same share ends at clean planes. Our choice.

Sampling always starts at pure noise and ends at clean planes.
"""
SHORT = 1e-6
"""A way t - r this short is one step."""


def draw_time_pairs(
    seed: int, positions: Sequence[int] | Tensor, names: Sequence[str], given_B2: Tensor, shift: float = 1.0
) -> tuple[Tensor, Tensor]:
    """(t, r) of each clip, float32 [B, 2] each, 0 <= r <= t <= 1: functions of (seed, position) and its task.

    t = min(1, u / (1 - a)),   r = t max(0, 1 - u' / (1 - a)),   u and u' uniform, a = END_SHARE.

    Then both are shifted.

    seed, positions: of the run, and of the clips in the training order.
    names: of the clips' tasks. Modalities with times of their own get pairs of their own.
    given_B2: bool; a given modality has t = r = 0.
    shift: of the times (`times.py`); above 1 there are more near noise, where the ways to the clips part.
    """
    uniforms_B4 = torch.stack([uniforms_for(seed, int(one), 4, purpose="flow-map") for one in positions])
    own_B1 = torch.tensor([[TASKS[name].own_times] for name in names])
    start_B2, span_B2 = (torch.where(own_B1, pair, pair[:, :1]) for pair in uniforms_B4.split(2, dim=1))
    times_B2 = (start_B2 / (1 - END_SHARE)).clamp(max=1)
    next_times_B2 = times_B2 * (1 - span_B2 / (1 - END_SHARE)).clamp(min=0)
    pairs = (shifted(times, shift).masked_fill(given_B2, 0.0) for times in (times_B2, next_times_B2))
    return tuple(times.float() for times in pairs)


def last_step(
    times_B2: Tensor, next_times_B2: Tensor, time_step: float, shift: float = 1.0
) -> tuple[Tensor, Tensor]:
    """(s, a), float32 [B, 2] each: where the teacher's last step to r begins, and its share of the way.

        s = r + b (t - r),   b = min(1, h / (t - r)),   in times before the shift;
        a = (s - r) / (t - r)   after it, or 1 where t = r.

    The larger of a clip's two spans t - r sets b, so that both modalities reach s together.

    times_B2, next_times_B2: t and r.
    time_step: h, in (0, 1].
    shift: of the times. The teacher's steps, even before it, are shortest near noise.
    """
    even_B2, next_even_B2 = (shifted(times.double(), 1 / shift) for times in (times_B2, next_times_B2))
    span_B2 = even_B2 - next_even_B2
    part_B1 = (time_step / span_B2.amax(1, keepdim=True).clamp(min=1e-12)).clamp(max=1)
    last_B2 = shifted(next_even_B2 + part_B1 * span_B2, shift)
    way_B2 = times_B2.double() - next_times_B2.double()
    share_B2 = (last_B2 - next_times_B2.double()) / way_B2.clamp(min=1e-12)
    whole_B2 = (part_B1 == 1) | (way_B2 < SHORT)  # of a way this short, rounding leaves no share
    last_B2, share_B2 = torch.where(whole_B2, times_B2, last_B2), torch.where(whole_B2, 1.0, share_B2)
    return last_B2.float(), share_B2.float()


def step_along(velocity_BDPNN: Tensor, noisy_BDPNN: Tensor, times_B2: Tensor, later_B2: Tensor) -> Tensor:
    """z_s = z_t - (t - s) u: a step in which each modality goes from its own t to its own s.

    velocity_BDPNN, noisy_BDPNN: u, the velocity or its average over the step, and z_t.
    times_B2, later_B2: t and s.
    """
    return noisy_BDPNN - spread_to_planes(times_B2 - later_B2).to(noisy_BDPNN) * velocity_BDPNN


def flow_map_target(
    velocity_BDPNN: Tensor, prediction_BDPNN: Tensor, before_BDPNN: Tensor, share_B2: Tensor
) -> Tensor:
    """The target for u(z_t, t, r), by Lagrangian map distillation with a difference over the last step:

        v(z_s, s) - (1 - a) / a (u(z_t, t, r) - u(z_t, t, s)),   z_s = z_t - (t - s) u(z_t, t, s).

    If a map equals its target, it goes from t to s by itself, and from there to r along v:
    (t - r) u(z_t, t, r) = (t - s) u(z_t, t, s) + (s - r) v(z_s, s). Applied again and again, this is Euler's
    method with the teacher's steps. The teacher sees states that the student reaches.

    velocity_BDPNN: v(z_s, s), of the teacher.
    prediction_BDPNN, before_BDPNN: u(z_t, t, r) and u(z_t, t, s), without gradients.
    share_B2: a, in (0, 1].
    """
    assert not (prediction_BDPNN.requires_grad or before_BDPNN.requires_grad), "a target has no gradient"
    share = spread_to_planes(share_B2).to(velocity_BDPNN)
    return velocity_BDPNN - (1 - share) / share * (prediction_BDPNN - before_BDPNN)
