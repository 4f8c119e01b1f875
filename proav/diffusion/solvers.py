"""Solvers: from noise to clean planes along the times of a process, in few calls of the model.

A solver is a Python generator. It yields a state and its time, receives the model's prediction for them, and
returns the clean state. It may call the model any number of times, and its local variables are its memory.
So samples with different solvers, times and numbers of steps can share each call of a model
(`proav/generation/denoise.py`). To add a solver, add a function here, a row of SOLVERS, and a test.

All solvers have the same parameters:

    process: the noise process.
    noise: the state at the first time.
    times: from noise to clean.
    fresh: gives noise for a step, if the solver adds any.

Not here: processes (`flow.py`, `ddpm.py`), guidance and given modalities (`proav/generation/denoise.py`).
Letters: t times in [0, 1], 0 clean and 1 noise; a and s the shares of clean and noise in z_t = a z + s e.
"""

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, Protocol

from torch import Tensor

from proav.errors import UserError


class Question(NamedTuple):
    """What a solver asks the model."""

    state: Tensor
    time: float
    next_time: float | None = None
    """For flow maps: the time up to which the velocity is averaged."""


Solution = Generator[Question | tuple[Tensor, float], Tensor, Tensor]
"""Yields questions, receives predictions, and returns the clean state."""


class Process(Protocol):
    """What a solver needs of a noise process."""

    objective: str
    eta: float
    """Share of fresh noise in DDIM's steps, 0 to 1."""

    def shares(self, time: float) -> tuple[float, float]:
        """(a, s) at this time."""

    def estimates(self, state: Tensor, prediction: Tensor, time: float) -> tuple[Tensor, Tensor]:
        """(clean, noise): the clean planes and the noise that a prediction at this time implies."""


FreshNoise = Callable[[int], Tensor]
"""N(0, 1) in the shape of the state, for the number of a step."""


def euler(process: Process, noise: Tensor, times: Sequence[float], fresh: FreshNoise) -> Solution:
    """z_u = z_t + (u - t) v, with v the predicted velocity: first order, one call a step. For flows."""
    state = noise
    for time, next_time in pairwise(times):
        velocity = yield state, time
        state = state + (next_time - time) * velocity
    return state


def heun(process: Process, noise: Tensor, times: Sequence[float], fresh: FreshNoise) -> Solution:
    """z_u = z_t + (u - t) (v_t + v_u) / 2, with v_u the velocity where Euler's step ends. For flows.

    Second order, two calls a step; the last step, which ends at u = 0, has one (Karras et al., 2022,
    Algorithm 1).
    """
    state = noise
    for time, next_time in pairwise(times):
        velocity = yield state, time
        guess = state + (next_time - time) * velocity
        if next_time == 0:
            return guess
        at_guess = yield guess, next_time
        state = state + (next_time - time) * (velocity + at_guess) / 2
    return state


def flow_map(process: Process, noise: Tensor, times: Sequence[float], fresh: FreshNoise) -> Solution:
    """z_r = z_t - (t - r) u(z_t, t, r), with u the predicted average velocity: exact, one call a step."""
    state = noise
    for time, next_time in pairwise(times):
        velocity = yield Question(state, time, next_time)
        state = state + (next_time - time) * velocity
    return state


def ddim(process: Process, noise: Tensor, times: Sequence[float], fresh: FreshNoise) -> Solution:
    """z_u = a_u z + sqrt(s_u^2 - q^2) e + q n,   q = eta s_u sqrt(1 - (a_t s_u / (a_u s_t))^2).

    First order, one call a step. z and e are estimated from the prediction, n is fresh noise (Song et al.,
    2021, Equation 12, in the shares of any process). For a flow with eta = 0 this is Euler's step.
    """
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
    """z_u = (s_u / s_t) z_t + (a_u - a_t s_u / s_t) d,   d = clean_t + (clean_t - clean_before) / (2 r).

    Second order, one call a step (Lu et al., 2022, DPM-Solver++(2M)). r = (l_t - l_before) / (l_u - l_t) with
    l = log(a / s). A step is of first order, d = clean_t, if no step came before it or if l is infinite at
    one of the three times. The first steps and the last are such steps.
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
    """A row of SOLVERS: the function, the processes that it supports, and how often it calls the model."""

    solve: Callable[[Process, Tensor, Sequence[float], FreshNoise], Solution]
    objectives: tuple[str, ...]
    """Objectives of the processes that it supports."""
    num_calls: Callable[[int], int] = lambda steps: steps
    """Calls of the model, as a function of the number of steps."""


SOLVERS = {
    "euler": Solver(euler, ("flow",)),
    "heun": Solver(heun, ("flow",), lambda steps: 2 * steps - 1),
    "dpmpp_2m": Solver(dpmpp_2m, ("flow", "ddpm")),
    "ddim": Solver(ddim, ("flow", "ddpm")),
    "flow_map": Solver(flow_map, ("flow_map",)),
}
DEFAULTS = {"flow": "euler", "ddpm": "ddim", "flow_map": "flow_map"}
"""The solver of each process if none is named."""
DEFAULT_STEPS = {"flow": 30, "ddpm": 30, "flow_map": 4}
"""The steps of each process if no number is given."""


def num_steps(steps: int | None, objective: str) -> int:
    """`steps`; if it is None, the default number of this objective."""
    return DEFAULT_STEPS[objective] if steps is None else steps


def find_solver(name: str | None, objective: str) -> Solver:
    """The solver of this name; None: the default of the process.

    Raises UserError if the name is unknown, or if the solver does not support the process. The message lists
    those that do.
    """
    name = name or DEFAULTS[objective]
    fitting = [known for known, solver in SOLVERS.items() if objective in solver.objectives]
    if name not in fitting:
        said = f"does not follow diffusion.objective={objective}" if name in SOLVERS else "is unknown"
        raise UserError(f"solver={name} {said}; expected one of {', '.join(fitting)}")
    return SOLVERS[name]
