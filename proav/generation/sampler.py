"""From noise to normalized latents: the steps of the process, guidance per sample, a given modality held fixed.

Not here: the process's formulas (`proav/diffusion`), decoding to clips (`proav/generation/pipeline.py`). Follows "ProAV-DiT", Figure 2 (b), and
classifier-free guidance (Ho and Salimans 2022). Letters: B clips, D channels, E=D+1, P=6 planes, N plane side.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from proav.diffusion.ddpm import DDPM
from proav.diffusion.flow import RectifiedFlow
from proav.diffusion.noise import noise_batch
from proav.diffusion.planes import spread_to_planes
from proav.diffusion.tasks import given_row, sampling_task

Process = RectifiedFlow | DDPM


@torch.no_grad()
def sample(
    model: torch.nn.Module,
    process: Process,
    noise_BDPNN: Tensor,
    *,
    labels_B: Tensor,
    guidance_scale_B: Tensor | None = None,
    steps: int = 30,
    task: str = "joint",
    given_BDPNN: Tensor | None = None,
    condition_BEPNN: Tensor | None = None,
    identities: Sequence[tuple[int, int]] | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Normalized latents [B, D, 6, N, N]; every clip is what it would be alone, up to the matrix kernels' rounding.

    model: as STDiT, with `null_label`. noise_BDPNN: the start, from `noise_batch`, on the model's device; its dtype is the state's.
    labels_B int64, the null label allowed; guidance_scale_B [B] >= 0, None is 1 (`guided_prediction`).
    task: a name of TASKS that can sample; a2v and v2a want given_BDPNN, whose planes of the given modality (lone, normalized) are held
    at time 0 and returned as they are; its other planes are not read. condition_BEPNN: for tasks with a mask.
    identities [B] of (seed, sample index): wanted by a stochastic process (DDIM with eta > 0), whose noise is a function of them and the step.
    on_step(done, total) is called after each step. Raises UserError for a task or a number of steps that cannot be had.
    """
    row = sampling_task(task)
    assert (row.given is None) == (given_BDPNN is None), f"task {task} {'wants' if row.given else 'takes no'} given planes"
    assert (row.mask is None) == (condition_BEPNN is None), f"task {task} {'wants' if row.mask else 'takes no'} condition"
    batch, device = noise_BDPNN.shape[0], noise_BDPNN.device
    labels_B = labels_B.to(device)
    scales_B = torch.ones(batch, device=device) if guidance_scale_B is None else guidance_scale_B.to(device)
    guided = guided_rows(labels_B, scales_B, model.null_label)
    given_B2 = torch.tensor([given_row(task)], device=device).expand(batch, 2)
    held = spread_to_planes(given_B2)

    def hold(state: Tensor) -> Tensor:
        return state if given_BDPNN is None else torch.where(held, given_BDPNN.to(state), state)

    schedule = process.times_of(steps)
    state = hold(noise_BDPNN)
    for done, (time, next_time) in enumerate(zip(schedule, schedule[1:])):
        times_B2 = torch.full((batch, 2), time, device=device).masked_fill(given_B2, 0.0)
        prediction = guided_prediction(model, state, times_B2, labels_B, scales_B, guided, condition_BEPNN)
        fresh = None
        if process.is_stochastic:
            assert identities is not None and len(identities) == batch, "a stochastic process wants the (seed, index) of each sample"
            fresh = noise_batch(identities, noise_BDPNN.shape[1:], purpose=f"step-{done}").to(state)
        state = hold(process.step(state, prediction, time, next_time, fresh))
        if on_step is not None:
            on_step(done + 1, steps)
    return state


def guided_rows(labels_B: Tensor, scales_B: Tensor, null_label: int) -> Tensor:
    """Which samples need the null label evaluated: not s = 1, which asks for v_label alone, nor the null label, where v_label = v_null."""
    return ((scales_B != 1) & (labels_B != null_label)).nonzero().flatten()


def guided_prediction(
    model: torch.nn.Module,
    state_BDPNN: Tensor,
    times_B2: Tensor,
    labels_B: Tensor,
    scales_B: Tensor,
    guided: Tensor,
    condition_BEPNN: Tensor | None = None,
) -> Tensor:
    """v = v_label + (s - 1) (v_label - v_null), which is v_null + s (v_label - v_null); s differs per sample.

    guided: the rows of `guided_rows`; the null label is evaluated for them only, in the same call. The others cost one evaluation a step
    instead of two, and their result does not depend on their neighbours' scales.
    """
    if guided.numel() == 0:
        return model(state_BDPNN, times_B2, labels_B, condition_BEPNN)

    def with_guided(values: Tensor | None) -> Tensor | None:
        return None if values is None else torch.cat([values, values[guided]])

    labels = torch.cat([labels_B, torch.full_like(guided, model.null_label)])
    both = model(with_guided(state_BDPNN), with_guided(times_B2), labels, with_guided(condition_BEPNN))
    prediction, null = both[: len(labels_B)].clone(), both[len(labels_B) :]
    extra = (scales_B[guided] - 1).to(null.dtype)[:, None, None, None, None]
    prediction[guided] += extra * (prediction[guided] - null)
    return prediction
