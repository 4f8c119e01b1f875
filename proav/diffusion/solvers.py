"""Solvers: from noise to clean planes along the times of a process, in as few calls of the model as may be.

A solver is a generator: it yields a state and its time, is sent the model's prediction there, and returns the
clean state. It may ask as often as it likes, and what it remembers between two calls are its own variables.
So samples with unlike solvers, times and numbers of steps can share each call of a model
(`proav/generation/denoise.py`). A new solver is a function here, a row of SOLVERS, and a test.
Not here: processes (`flow.py`, `ddpm.py`), guidance and given modalities, which only change predictions and
states. t times in [0, 1] from noise to clean, a and s the shares of clean and noise in z_t = a z + s e.
"""

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

from torch import Tensor

from proav.errors import UserError

Solution = Generator[tuple[Tensor, float], Tensor, Tensor]
"""Yields (state, time), is sent predictions, returns the clean state."""


class Process(Protocol):
    """What a solver needs of a noise process."""

    objective: str
    eta: float
    """Share of fresh noise in DDIM's steps."""

    def shares(self, time: float) -> tuple[float, float]:
        """(a, s) at a time."""

    def estimates(self, state: Tensor, prediction: Tensor, time: float) -> tuple[Tensor, Tensor]:
        """(clean, noise) that a prediction at a time stands for."""


FreshNoise = Callable[[int], Tensor]
"""N(0, 1) for a step's number, in the shape of the state."""


def euler(process: Process, noise: Tensor, times: Sequence[float], fresh: FreshNoise) -> Solution:
    """z_u = z_t + (u - t) v, v the predicted velocity: first order, one call a step. For flows."""
    state = noise
    for time, next_time in pairwise(times):
        velocity = yield state, time
        state = state + (next_time - time) * velocity
    return state


def heun(process: Process, noise: Tensor, times: Sequence[float], fresh: FreshNoise) -> Solution:
    """z_u = z_t + (u - t) (v_t + v_u) / 2, v_u the velocity where Euler's step ends: second order, two calls
    a step, one in the last, which ends at u = 0 (Karras et al., 2022, Algorithm 1). For flows."""
    state = noise
    for time, next_time in pairwise(times):
        velocity = yield state, time
        guess = state + (next_time - time) * velocity
        if next_time == 0:
            return guess
        at_guess = yield guess, next_time
        state = state + (next_time - time) * (velocity + at_guess) / 2
    return state


def ddim(process: Process, noise: Tensor, times: Sequence[float], fresh: FreshNoise) -> Solution:
    """z_u = a_u z + sqrt(s_u^2 - q^2) e + q n,   q = eta s_u sqrt(1 - (a_t s_u / (a_u s_t))^2):
    first order, one call a step; z and e are estimated from the prediction, n is fresh noise (Song et al.,
    2021, Equation 12, in the shares of any process). For a flow with eta = 0 this is Euler's step."""
    state = noise
    for step, (time, next_time) in enumerate(pairwise(times)):
        prediction = yield state, time
        clean, noise_part = process.estimates(state, prediction, time)
        (a_t, s_t), (a_u, s_u) = process.shares(time), process.shares(next_time)
        q = process.eta * s_u * max(1 - (a_t * s_u / (a_u * s_t)) ** 2, 0.0) ** 0.5 if process.eta else 0.0
        state = a_u * clean + max(s_u**2 - q**2, 0.0) ** 0.5 * noise_part
        if q:
            state = state + q * fresh(step)
    return state


def dpmpp_2m(process: Process, noise: Tensor, times: Sequence[float], fresh: FreshNoise) -> Solution:
    """z_u = (s_u / s_t) z_t + (a_u - a_t s_u / s_t) d,   d = clean_t + (clean_t - clean_before) / (2 r):
    second order, one call a step (Lu et al., 2022, DPM-Solver++(2M)).

    r = (l_t - l_before) / (l_u - l_t) with l = log(a / s). Where l is infinite, r is too, or the step ends
    clean: the first steps and the last are of first order.
    """
    state, before = noise, None
    for time, next_time in pairwise(times):
        prediction = yield state, time
        clean, _ = process.estimates(state, prediction, time)
        (a_t, s_t), (a_u, s_u) = process.shares(time), process.shares(next_time)
        direction = clean
        if before is not None and s_u > 0:
            clean_before, (a_b, s_b) = before
            if a_b > 0:
                ratio = _log_step(a_b, s_b, a_t, s_t) / _log_step(a_t, s_t, a_u, s_u)
                direction = clean + (clean - clean_before) / (2 * ratio)
        state = (s_u / s_t) * state + (a_u - a_t * s_u / s_t) * direction
        before = clean, (a_t, s_t)
    return state


def _log_step(a_t: float, s_t: float, a_u: float, s_u: float) -> float:
    """log(a_u / s_u) - log(a_t / s_t)."""
    return math.log(a_u * s_t / (s_u * a_t))


@dataclass(frozen=True)
class Solver:
    """A row of SOLVERS."""

    solve: Callable[[Process, Tensor, Sequence[float], FreshNoise], Solution]
    objectives: tuple[str, ...]
    """Of the processes that it can follow."""
    num_calls: Callable[[int], int] = lambda steps: steps
    """Calls of the model in so many steps."""


SOLVERS = {
    "euler": Solver(euler, ("flow",)),
    "heun": Solver(heun, ("flow",), lambda steps: 2 * steps - 1),
    "dpmpp_2m": Solver(dpmpp_2m, ("flow", "ddpm")),
    "ddim": Solver(ddim, ("flow", "ddpm")),
}
DEFAULTS = {"flow": "euler", "ddpm": "ddim"}
"""The solver of each process, if none is named."""


def find_solver(name: str | None, objective: str) -> Solver:
    """The solver of a name, or of a process without one. Raises UserError with those that can be had."""
    name = name or DEFAULTS[objective]
    fitting = [known for known, solver in SOLVERS.items() if objective in solver.objectives]
    if name not in fitting:
        said = f"does not follow diffusion.objective={objective}" if name in SOLVERS else "is unknown"
        raise UserError(f"generate.solver={name} {said}; expected one of {', '.join(fitting)}")
    return SOLVERS[name]
