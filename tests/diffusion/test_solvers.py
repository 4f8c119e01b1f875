"""Solvers against closed forms: straight paths, Gaussian data and orders of convergence.

For Gaussian data the best prediction is known.
"""

import math

import pytest
import torch

from proav.diffusion import DDPM, RectifiedFlow
from proav.diffusion.noise import noise_batch
from proav.diffusion.solvers import SOLVERS, find_solver
from proav.errors import UserError

SHAPE = (4, 3, 6, 5, 5)
PAIRS = [
    (process, name)
    for process in (RectifiedFlow(), DDPM())
    for name, solver in SOLVERS.items()
    if process.objective in solver.objectives
]


def solve(process, name, noise, times, predict, fresh=None):
    """(result, times at which the model was called).

    process: the noise process.
    name: of the solver.
    noise: the first state.
    times: from noise to clean.
    predict: the model, a function of state and time.
    fresh: as for solvers.
    """
    solution, asked = SOLVERS[name].solve(process, noise, times, fresh), []
    state, time = next(solution)
    while True:
        asked.append(time)
        try:
            state, time = solution.send(predict(state, time))
        except StopIteration as end:
            return end.value, asked


def pair(seed=0, shape=SHAPE):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))


@pytest.mark.parametrize(("process", "name"), PAIRS)
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_the_true_target_leads_to_the_clip_itself_in_any_number_of_steps(process, name, steps):
    clean, noise = pair()
    start = process.add_noise(clean, noise, torch.ones(4, 2))
    times = process.times_of(steps)
    made, asked = solve(process, name, start, times, lambda state, time: process.target(clean, noise))
    torch.testing.assert_close(made, clean, rtol=1e-8, atol=1e-8)
    assert len(asked) == SOLVERS[name].num_calls(steps)


@pytest.mark.parametrize("time, next_time", [(1.0, 0.5), (0.5, 0.125), (0.25, 0.0)])
def test_ddims_fresh_noise_keeps_the_marginal_of_a_known_clip(time, next_time):
    """A step from z_t = a z + s e with the true e gives z_u the deviation s_u around a_u z, for any eta."""
    process = DDPM(eta=1.0)
    clean, noise = pair(shape=(64, 3, 6, 8, 8))
    _, fresh = pair(seed=1, shape=clean.shape)
    noisy = process.add_noise(clean, noise, torch.full((64, 2), time, dtype=torch.float64))
    made, _ = solve(process, "ddim", noisy, [time, next_time], lambda *_: noise, lambda step: fresh)
    signal, spread = process.shares(next_time)
    assert (made - signal * clean).std().item() == pytest.approx(spread, rel=0.01, abs=1e-6)


@pytest.mark.parametrize("time, next_time", [(1.0, 0.5), (0.75, 0.25)])
def test_ddims_fresh_noise_is_that_of_song_and_others(time, next_time):
    """sigma = eta sqrt((1 - a') / (1 - a)) sqrt(1 - a / a'); a and a' are the squared shares."""
    process = DDPM(eta=0.7)
    share, next_share = (process.shares(at)[0] ** 2 for at in (time, next_time))
    sigma = 0.7 * math.sqrt((1 - next_share) / (1 - share)) * math.sqrt(1 - share / next_share)
    zeros = torch.zeros(SHAPE, dtype=torch.float64)
    made, _ = solve(process, "ddim", zeros, [time, next_time], lambda *_: zeros, lambda step: zeros + 1)
    torch.testing.assert_close(made, zeros + sigma)


def best_prediction(process, mean, std):
    """E[target | z_t] for data ~ N(mean, std^2)."""

    def predict(state, time):
        signal, spread = process.shares(time)
        gain = (state - signal * mean) / ((signal * std) ** 2 + spread**2)
        return process.target(mean + signal * std**2 * gain, spread * gain)

    return predict


def errors(process, name, all_steps, span=None):
    """Largest error on the path of a Gaussian, from noise to clean, or between two times:

    z_u = a_u mean + (z_t - a_t mean) sqrt((a_u^2 std^2 + s_u^2) / (a_t^2 std^2 + s_t^2)).

    process: the noise process.
    name: of the solver.
    all_steps: the numbers of steps; one error each.
    span: two times; None: from noise to clean.
    """
    generator = torch.Generator().manual_seed(3)
    mean = torch.randn(3, 6, 1, 1, generator=generator, dtype=torch.float64)
    std = 0.2 + torch.rand(3, 6, 1, 1, generator=generator, dtype=torch.float64)
    noise = noise_batch([(0, index) for index in range(4)], SHAPE[1:]).double()
    (a_t, s_t), (a_u, s_u) = (process.shares(time) for time in span or (1.0, 0.0))
    growth = ((a_u**2 * std**2 + s_u**2) / (a_t**2 * std**2 + s_t**2)).sqrt()
    truth = a_u * mean + (noise - a_t * mean) * growth
    predict = best_prediction(process, mean, std)

    def times(steps):
        return torch.linspace(*span, steps + 1).tolist() if span else process.times_of(steps)

    made = [solve(process, name, noise, times(steps), predict)[0] for steps in all_steps]
    return [(one - truth).abs().max().item() for one in made]


@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("ddim", 1), ("heun", 2), ("dpmpp_2m", 2)])
def test_errors_fall_with_the_steps_at_the_order_of_the_solver(name, order):
    """With twice the steps the error is 2^order times smaller.

    The test runs between two times. DPM-Solver++ steps in the logarithm of the shares, which is infinite at
    noise and at clean.
    """
    found = errors(RectifiedFlow(), name, (20, 40, 80, 160), span=(0.9, 0.1))
    falls = [math.log2(coarse / fine) for coarse, fine in zip(found, found[1:])]
    assert falls == pytest.approx([order] * 3, abs=0.2), (found, falls)


def test_second_order_at_equal_calls_is_nearer_than_first():
    euler, heun, multistep = (
        errors(RectifiedFlow(), name, (steps,))[0]
        for name, steps in (("euler", 20), ("heun", 10), ("dpmpp_2m", 20))
    )
    assert heun < euler / 4 and multistep < euler / 4


def test_ddim_of_a_flow_is_eulers_step():
    process, (_, noise) = RectifiedFlow(), pair()
    predict = best_prediction(process, 0.3, 0.5)
    one, other = (solve(process, name, noise, process.times_of(7), predict)[0] for name in ("euler", "ddim"))
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["ddim", "dpmpp_2m"])
def test_ddpm_is_followed_to_its_data(name):
    found = errors(DDPM(), name, (50, 100, 200))
    assert found[-1] < 0.06 and all(fine < 0.65 * coarse for coarse, fine in zip(found, found[1:]))


def test_solvers_that_do_not_fit_are_reported_with_those_that_do():
    assert find_solver(None, "flow") is SOLVERS["euler"] and find_solver(None, "ddpm") is SOLVERS["ddim"]
    with pytest.raises(UserError, match="solver=heun does not follow .*ddpm; expected one of dpmpp_2m"):
        find_solver("heun", "ddpm")
    with pytest.raises(UserError, match="solver=rk4 is unknown; expected one of euler, heun"):
        find_solver("rk4", "flow")
