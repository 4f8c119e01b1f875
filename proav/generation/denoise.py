"""From noise to normalized latents: solvers, guidance, and a given modality that is held fixed.

Samples with different settings share the calls of the model. Not here: the solvers' formulas
(`proav/diffusion/solvers.py`), decoding to clips (`pipeline.py`). Follows "ProAV-DiT", Figure 2 (b), and
classifier-free guidance (Ho and Salimans 2022). Letters: B clips, D channels, P=6 planes, N plane side.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from proav.diffusion import DDPM, RectifiedFlow
from proav.diffusion.conditions import Conditions, join_conditions
from proav.diffusion.modalities import spread_to_planes
from proav.diffusion.noise import noise_batch
from proav.diffusion.solvers import Question, find_solver, num_steps
from proav.diffusion.tasks import TASKS, given_row
from proav.generation.sampling_settings import SamplingSettings


@dataclass(frozen=True)
class Group:
    """Samples that are denoised together. They have the same settings, except for guidance."""

    settings: SamplingSettings
    noise_BDPNN: Tensor
    """The first state, from `noise_batch`, on the model's device. All states have its dtype."""
    conditions: Conditions
    guidance_B4: Tensor | None = None
    """Guidance of each sample: video's scale, audio's scale, and the interval; None: that of the settings."""
    given_BDPNN: Tensor | None = None
    """For tasks with a given modality: its lone planes, normalized. The other planes are not read."""
    identities: Sequence[tuple[int, int]] | None = None
    """(seed, sample index) of each sample. Needed if the solver adds fresh noise, a function of these."""


@torch.no_grad()
def denoise(
    model: torch.nn.Module,
    process: RectifiedFlow | DDPM,
    groups: Sequence[Group],
    on_call: Callable[[int, int], None] | None = None,
) -> list[Tensor]:
    """Normalized latents [B, D, 6, N, N] of each group, in order.

    Each clip is what it would be alone, up to the rounding of the matrix kernels. One call of the model
    serves all groups that are not done.

    model: an STDiT, or any model with its `null_label`.
    process: the noise process that the model was trained with.
    groups: samples to make; at least one group.
    on_call: called with (done, total) after each call of the model; total is the largest group's number of
        calls.
    Raises UserError for a solver or a number of steps that the process does not have.
    """
    tracks = [_Track(process, group) for group in groups]
    total = max(group.settings.num_calls(process.objective) for group in groups)
    done = 0
    while active := [track for track in tracks if track.result is None]:
        predictions = _predict(model, active)
        for track, prediction in zip(active, predictions, strict=True):
            track.advance(prediction)
        done += 1
        if on_call is not None:
            on_call(done, total)
    return [track.result for track in tracks]


class _Track:
    """A group while it is denoised: its solver, and the state for which the solver asks a prediction."""

    def __init__(self, process: RectifiedFlow | DDPM, group: Group) -> None:
        self.group, settings = group, group.settings
        noise, batch = group.noise_BDPNN, len(group.noise_BDPNN)
        wants, has = TASKS[settings.task].given, group.given_BDPNN is not None
        assert has == (wants is not None), f"task {settings.task} {'wants' if wants else 'takes no'} planes"
        self.conditions = group.conditions.to(noise.device)
        own = torch.tensor([[*settings.guidance_scales, *settings.guidance_interval]]).expand(batch, 4)
        self.guidance_B4 = (own if group.guidance_B4 is None else group.guidance_B4).to(noise.device)
        self.given_B2 = torch.tensor([given_row(settings.task)], device=noise.device).expand(batch, 2)
        self._held = spread_to_planes(self.given_B2)
        solver = find_solver(settings.solver, process.objective)
        times = process.times_of(num_steps(settings.steps, process.objective), settings.schedule_shift)
        self._solution = solver.solve(process, noise, times, self._fresh_noise)
        self.result: Tensor | None = None
        self._ask(next(self._solution))

    def advance(self, prediction: Tensor) -> None:
        """Gives the solver the prediction that it asked for."""
        try:
            self._ask(self._solution.send(prediction))
        except StopIteration as end:
            self.result = self._hold(end.value)

    @property
    def times_B2(self) -> Tensor:
        return self._per_modality(self.time)

    @property
    def next_times_B2(self) -> Tensor:
        """For flow maps; a given modality stays at time 0."""
        return self._per_modality(self.next_time)

    def _per_modality(self, time: float) -> Tensor:
        times_B2 = torch.full(self.given_B2.shape, time, device=self.state.device)
        return times_B2.masked_fill(self.given_B2, 0.0)

    def _ask(self, question: Question | tuple[Tensor, float]) -> None:
        state, self.time, self.next_time = Question(*question)
        self.state = self._hold(state)

    @property
    def scales_B2(self) -> Tensor:
        """Guidance scales of each sample at this time: 1 outside its interval, and for a given modality."""
        low_B1, high_B1 = self.guidance_B4[:, 2:].split(1, dim=1)
        idle_B2 = (self.time < low_B1) | (self.time > high_B1) | self.given_B2
        return self.guidance_B4[:, :2].masked_fill(idle_B2, 1.0)

    def _hold(self, state: Tensor) -> Tensor:
        given = self.group.given_BDPNN
        return state if given is None else torch.where(self._held, given.to(state), state)

    def _fresh_noise(self, step: int) -> Tensor:
        noise, identities = self.group.noise_BDPNN, self.group.identities
        assert identities is not None and len(identities) == len(noise), "fresh noise needs identities"
        return noise_batch(identities, noise.shape[1:], purpose=f"step-{step}").to(noise)


def _predict(model: torch.nn.Module, tracks: Sequence[_Track]) -> Sequence[Tensor]:
    """The guided prediction for each track, by one call of the model."""
    state_BDPNN, times_B2 = (
        _joined([getattr(track, name) for track in tracks]) for name in ("state", "times_B2")
    )
    conditions = join_conditions([track.conditions for track in tracks])
    if tracks[0].next_time is None:
        scales_B2 = _joined([track.scales_B2 for track in tracks])
        prediction = guided_prediction(model, state_BDPNN, times_B2, conditions, scales_B2)
    else:  # a flow map needs no guidance; if one track is a flow map's, all are
        prediction = model(
            state_BDPNN, times_B2, conditions, _joined([track.next_times_B2 for track in tracks])
        )
    return prediction.split([len(track.state) for track in tracks])


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def guided_prediction(
    model: torch.nn.Module, state_BDPNN: Tensor, times_B2: Tensor, conditions: Conditions, scales_B2: Tensor
) -> Tensor:
    """v = v_c + (s - 1) (v_c - v_0), which equals v_0 + s (v_c - v_0); s is that of a plane's modality.

    v_c is the prediction with labels and vectors, v_0 the one without them. v_0 is evaluated in the same
    call, and only for the samples that need it. A sample with both s = 1 needs only v_c. The same holds for a
    sample without labels and vectors, whose v_c and v_0 are equal. Such samples cost one evaluation instead
    of two, and their result does not depend on the scales of other samples.

    model: an STDiT, or any model with its `null_label`.
    state_BDPNN, times_B2: noisy planes, and the time of each modality in [0, 1].
    conditions: of the samples.
    scales_B2: guidance scale s of each sample's video and audio; 1: no guidance.
    """
    conditioned_B = conditions.conditioned_B(model.null_label)
    guided = ((scales_B2 != 1).any(dim=1) & conditioned_B).nonzero().flatten()
    if guided.numel() == 0:
        return model(state_BDPNN, times_B2, conditions)
    beside = conditions.rows(guided).dropped(model.null_label, conditioned_B[guided])
    states, times = torch.cat([state_BDPNN, state_BDPNN[guided]]), torch.cat([times_B2, times_B2[guided]])
    both = model(states, times, join_conditions([conditions, beside]))
    prediction, null = both[: len(conditions)].clone(), both[len(conditions) :]
    extra = spread_to_planes(scales_B2[guided] - 1).to(null.dtype)
    prediction[guided] += extra * (prediction[guided] - null)
    return prediction
