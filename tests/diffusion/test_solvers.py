"""Solvers against closed forms: straight paths, Gaussian data, mixtures, and orders of convergence.

For Gaussian data and for mixtures of Gaussians the best prediction is known.
"""

import functools
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


class Mixture:
    """Data of several Gaussians N(m, d^2 I), drawn with weights w. Its velocity is not affine.

    At time t each is N(a m, v I) with v = (a d)^2 + s^2. Given z_t, a Gaussian has the share r, and
        E[z | z_t] = sum r (m + a d^2 (z_t - a m) / v),   E[e | z_t] = sum r s (z_t - a m) / v.
    Letters: P points, G Gaussians, D numbers of a point.
    """

    weights_G = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    stds_G = torch.tensor([0.3, 0.5, 0.2], dtype=torch.float64)

    def __init__(self, means):
        """means: of each Gaussian, D numbers."""
        self.means_GD = torch.tensor(means, dtype=torch.float64)

    def predict(self, process):
        """E[target | z_t] as a function of state and time."""

        def predict(state_PD, time):
            a, s = process.shares(time)
            variance_G = (a * self.stds_G) ** 2 + s**2
            away_PGD = state_PD[:, None] - a * self.means_GD
            size_G = self.weights_G.log() - state_PD.shape[1] / 2 * variance_G.log()
            shares_PG = (size_G - away_PGD.square().sum(-1) / (2 * variance_G)).softmax(-1)
            gain_PGD = away_PGD / variance_G[:, None]
            clean_PGD = self.means_GD + a * self.stds_G[:, None] ** 2 * gain_PGD
            clean, noise = ((shares_PG[..., None] * one).sum(1) for one in (clean_PGD, s * gain_PGD))
            return process.target(clean, noise)

        return predict

    def share_below(self, points_P1, a, s):
        """How much of the mixture lies below a point at the time of (a, s). For D = 1."""
        spread_G = ((a * self.stds_G) ** 2 + s**2).sqrt()
        inside_PG = torch.special.ndtr((points_P1 - a * self.means_GD[:, 0]) / spread_G)
        return (self.weights_G * inside_PG).sum(-1, keepdim=True)


LINE = Mixture([[-1.2], [0.4], [1.6]])
PLANE = Mixture([[-1.0, -0.5], [0.5, 1.0], [1.2, -0.8]])
FINE_DDPM = DDPM(num_steps=100_000, beta_start=1.5e-5, beta_end=1.95e-4)
"""The default noise in a hundred times as many steps, so that times are hardly rounded."""


LINE_START = torch.linspace(-2.5, 2.5, 41, dtype=torch.float64)[:, None]
PLANE_START = torch.randn(64, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def end_on_the_line(process, span):
    """Where LINE_START flows, exactly: on a line, the share of the mixture below a moving point stays.

    span: the first and the last time.
    """
    before, after = (process.shares(time) for time in span)
    share = LINE.share_below(LINE_START, *before)
    low, high = torch.full_like(share, -20.0), torch.full_like(share, 20.0)
    for _ in range(60):  # bisection, to 40 / 2^60
        middle = (low + high) / 2
        is_below = LINE.share_below(middle, *after) < share
        low, high = torch.where(is_below, middle, low), torch.where(is_below, high, middle)
    return (low + high) / 2


@functools.cache
def end_in_the_plane(span, steps=400):
    """Where PLANE_START flows by the rectified flow: fine steps of fourth order (Runge and Kutta).

    span: the first and the last time.
    """
    velocity, state, width = PLANE.predict(RectifiedFlow()), PLANE_START, (span[1] - span[0]) / steps
    for step in range(steps):
        time = span[0] + step * width
        first = velocity(state, time)
        second = velocity(state + width / 2 * first, time + width / 2)
        third = velocity(state + width / 2 * second, time + width / 2)
        fourth = velocity(state + width * third, time + width)
        state = state + width / 6 * (first + 2 * second + 2 * third + fourth)
    return state


def times_even_in(axis, process, span, steps):
    """Times of ddpm's steps, nearest to those at even distances of `axis`.

    axis: the own time of a solver as a function of a and s.
    span: the first and the last time.
    """
    share = process.signal_shares
    values = axis(share.sqrt(), (1 - share).sqrt())
    first, last = (values[round(time * process.num_steps)].item() for time in span)
    wanted = torch.linspace(first, last, steps + 1, dtype=torch.float64)
    return [((values - value).abs().argmin() / process.num_steps).item() for value in wanted]


def orders(process, name, mixture, start, end, all_times):
    """log2 of how many times smaller each root mean squared error is than the one before.

    start, end: the points before, and their true ends.
    all_times: of several solutions, each with twice the steps of the one before.
    """
    ways = (solve(process, name, start, times, mixture.predict(process))[0] for times in all_times)
    found = [(way - end).square().mean().sqrt().item() for way in ways]
    return [math.log2(coarse / fine) for coarse, fine in zip(found, found[1:])]


STEPS = (40, 80, 160)
FLOW_ORDERS = [
    (name, order, span)
    for name, order in (("euler", 1), ("ddim", 1), ("heun", 2), ("dpmpp_2m", 2))
    for span in ((0.9, 0.1), (1.0, 0.0))
    if span[1] or name != "dpmpp_2m"  # its own time is infinite at both ends
]


@pytest.mark.parametrize(("name", "order", "span"), FLOW_ORDERS)
def test_a_mixture_is_followed_at_the_order_of_the_solver(name, order, span):
    process, all_times = RectifiedFlow(), [torch.linspace(*span, steps + 1).tolist() for steps in STEPS]
    on_line = orders(process, name, LINE, LINE_START, end_on_the_line(process, span), all_times)
    in_plane = orders(process, name, PLANE, PLANE_START, end_in_the_plane(span), all_times)
    assert on_line + in_plane == pytest.approx([order] * 4, abs=0.15)


@pytest.mark.parametrize(
    ("name", "order", "axis"),
    [
        ("ddim", 1, lambda a, s: s / a),  # DDIM is Euler's method in s / a, for z_t / a
        ("dpmpp_2m", 2, lambda a, s: (a / s).log()),
    ],
    ids=["ddim", "dpmpp_2m"],
)
def test_a_mixture_is_followed_by_ddpm_at_the_order_in_the_solvers_own_time(name, order, axis):
    span, process = (0.8, 0.05), FINE_DDPM
    all_times = [times_even_in(axis, process, span, steps) for steps in STEPS]
    found = orders(process, name, LINE, LINE_START, end_on_the_line(process, span), all_times)
    assert found == pytest.approx([order] * 2, abs=0.15)


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
