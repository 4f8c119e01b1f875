"""Flow maps against closed forms: Gaussian data, for which velocity and average velocity are known."""

from itertools import pairwise

import pytest
import torch

from proav.diffusion import FlowMap, RectifiedFlow
from proav.diffusion.flow_maps import (
    END_SHARE,
    draw_time_pairs,
    flow_map_target,
    last_step,
    step_along,
)
from proav.diffusion.modalities import spread_to_planes
from proav.diffusion.solvers import SOLVERS, Question
from proav.diffusion.times import shifted

MEAN, STD = 0.7, 0.3
SHAPE = (16, 2, 6, 4, 4)


def states() -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def pair_of_times(t: float, r: float) -> tuple[torch.Tensor, torch.Tensor]:
    return tuple(torch.full((SHAPE[0], 2), value, dtype=torch.float64) for value in (t, r))


def spread_at(time: torch.Tensor) -> torch.Tensor:
    """sqrt((1 - t)^2 std^2 + t^2), the deviation of z_t."""
    return (((1 - time) * STD) ** 2 + time**2).sqrt()


def velocity(state: torch.Tensor, times_B2: torch.Tensor) -> torch.Tensor:
    """E[e - z | z_t] for data ~ N(MEAN, STD^2)."""
    time = spread_to_planes(times_B2)
    gain = (state - (1 - time) * MEAN) / spread_at(time) ** 2
    return time * gain - (MEAN + (1 - time) * STD**2 * gain)


def average(state: torch.Tensor, times_B2: torch.Tensor, next_B2: torch.Tensor) -> torch.Tensor:
    """(z_t - z_r) / (t - r) on the way z_r = (1 - r) MEAN + (z_t - (1 - t) MEAN) spread(r) / spread(t)."""
    time, next_time = (spread_to_planes(values) for values in (times_B2, next_B2))
    after = (1 - next_time) * MEAN + (state - (1 - time) * MEAN) * spread_at(next_time) / spread_at(time)
    return torch.where(
        time == next_time, velocity(state, times_B2), (state - after) / (time - next_time).clamp(min=1e-30)
    )


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("shift", [1.0, 6.0])
def test_the_exact_map_carries_noise_to_the_data_in_any_number_of_steps(steps, shift):
    noise = states()
    solution = SOLVERS["flow_map"].solve(FlowMap(), noise, FlowMap().times_of(steps, shift), None)
    question, calls = next(solution), 0
    while True:
        assert isinstance(question, Question)
        calls += 1
        try:
            question = solution.send(average(question.state, *pair_of_times(*question[1:])))
        except StopIteration as end:
            made = end.value
            break
    torch.testing.assert_close(made, MEAN + STD * noise, rtol=1e-10, atol=1e-10)
    assert calls == steps == SOLVERS["flow_map"].num_calls(steps)


def target_of(
    t: float, r: float, time_step: float, average=average, shift: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """(target, prediction) of a map at z_t.

    t, r: the times.
    time_step, shift: h and the teacher's shift, of `last_step`.
    average: the map.
    """
    times_B2, next_B2 = pair_of_times(t, r)
    last_B2, share_B2 = (values.double() for values in last_step(times_B2, next_B2, time_step, shift))
    state = states()
    before = average(state, times_B2, last_B2)
    arrived = step_along(before, state, times_B2, last_B2)
    prediction = average(state, times_B2, next_B2)
    return flow_map_target(velocity(arrived, last_B2), prediction, before, share_B2), prediction


@pytest.mark.parametrize("shift", [1.0, 6.0])
@pytest.mark.parametrize(("t", "r"), [(1.0, 0.0), (0.8, 0.3), (0.4, 0.0)])
def test_the_exact_map_equals_its_target_as_the_step_of_time_goes_to_zero(t, r, shift):
    """The derivative by r is replaced by a difference, whose error is proportional to the step."""
    wide, narrow = (
        (target - prediction).abs().max().item()
        for target, prediction in (target_of(t, r, step / shift, shift=shift) for step in (2e-3, 1e-3))
    )
    assert narrow < 2e-2 and wide / narrow == pytest.approx(2, rel=0.03)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_eulers_steps_together_are_the_map_that_equals_its_target(shift):
    """A map that equals its target goes from t to r by the teacher's steps. They are counted from r, so the
    first one is the shorter one."""
    step = 1 / 8

    def eulers_average(state, times_B2, next_B2):
        if torch.equal(times_B2, next_B2):
            return velocity(state, times_B2)
        times, last = [next_B2], next_B2
        while (times_B2 - last).amax() > 1e-7:
            even, begin = (shifted(values, 1 / shift) for values in (last, times_B2))
            last = torch.minimum(shifted(torch.minimum(even + step, begin), shift), times_B2)
            times.append(last)
        position = state
        for then, now in reversed(list(pairwise(times))):
            position = step_along(velocity(position, now), position, now, then)
        return (state - position) / spread_to_planes(times_B2 - next_B2)

    for t, r in ((1.0, 0.0), (0.9, 0.2), (0.5, 0.47)):
        target, prediction = target_of(t, r, step, eulers_average, shift)
        torch.testing.assert_close(target, prediction, rtol=1e-5, atol=1e-5)  # times are float32


@pytest.mark.parametrize(("t", "r"), [(0.5, 0.5), (0.5, 0.48)])
def test_over_less_than_a_step_the_target_is_the_velocity(t, r):
    target, _ = target_of(t, r, 1 / 32)
    assert torch.equal(target, velocity(states(), pair_of_times(t, r)[0]))


def test_modalities_with_times_of_their_own_reach_the_last_step_together():
    times_B2 = torch.tensor([[1.0, 0.5], [0.0, 0.75], [0.25, 0.25]])
    next_B2 = torch.tensor([[0.0, 0.25], [0.0, 0.5], [0.25, 0.25]])
    last_B2, share_B2 = last_step(times_B2, next_B2, 0.125)
    assert share_B2.tolist() == [[0.125, 0.125], [1.0, 0.5], [1.0, 1.0]]
    assert last_B2.tolist() == [[0.125, 0.28125], [0.0, 0.625], [0.25, 0.25]]


def test_shifted_steps_are_those_of_the_teachers_sampling():
    """The teacher's times t_i of n steps: the step to t_i begins at t_(i - 1)."""
    times = RectifiedFlow(shift=6.0).times_of(32)
    for number in (1, 2, 17, 31, 32):
        last_B2, share_B2 = last_step(*pair_of_times(1.0, times[number]), 1 / 32, 6.0)
        assert last_B2[0].tolist() == pytest.approx([times[number - 1]] * 2, abs=1e-6)
        way = (times[number - 1] - times[number]) / (1 - times[number])
        assert share_B2[0].tolist() == pytest.approx([way] * 2, abs=1e-5)


@pytest.mark.parametrize("shift", [1.0, 6.0, 100.0])
def test_no_span_is_so_short_that_nothing_is_left_of_its_last_step(shift):
    spans = torch.logspace(-9, 0, 400)
    times_B2 = torch.stack([spans, torch.ones(400)], 1)
    for next_B2 in (torch.zeros(400, 2), times_B2 - torch.stack([spans, spans.flip(0)], 1)):
        last_B2, share_B2 = last_step(times_B2, next_B2.clamp(min=0), 1 / 32, shift)
        assert ((share_B2 > 1e-5) & (share_B2 <= 1)).all()
        assert ((last_B2 >= next_B2.clamp(min=0)) & (last_B2 <= times_B2)).all()


def test_pairs_of_times_are_drawn_by_clip_and_reach_both_ends():
    names = ("joint", "independent", "v2a")
    given = torch.tensor([[False, False], [False, False], [True, False]])
    tasks, positions = [names[i % 3] for i in range(3000)], list(range(3000))
    times, next_times = draw_time_pairs(0, positions, tasks, given.repeat(1000, 1))
    alone = draw_time_pairs(0, [17], tasks[17:18], given[17 % 3 : 17 % 3 + 1])
    assert torch.equal(alone[0][0], times[17]) and torch.equal(alone[1][0], next_times[17])
    assert ((next_times >= 0) & (next_times <= times) & (times <= 1)).all()
    assert torch.equal(times[::3, 0], times[::3, 1]) and torch.equal(next_times[::3, 0], next_times[::3, 1])
    assert not torch.equal(times[1::3, 0], times[1::3, 1])
    assert (times[2::3, 0] == 0).all() and (next_times[2::3, 0] == 0).all()
    for share in ((times[::3, 0] == 1).float().mean(), (next_times[::3, 0] == 0).float().mean()):
        assert share.item() == pytest.approx(END_SHARE, abs=0.03)
    assert times[::3, 0].mean().item() == pytest.approx((1 - END_SHARE) / 2 + END_SHARE, abs=0.03)
    near_noise = draw_time_pairs(0, positions, tasks, given.repeat(1000, 1), 6.0)
    for drawn, even in zip(near_noise, (times, next_times), strict=True):
        torch.testing.assert_close(drawn, shifted(even, 6.0), rtol=1e-5, atol=1e-6)
