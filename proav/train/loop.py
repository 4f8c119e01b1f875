"""One worker's training loop: feed -> step -> report -> checkpoint; progress is counted in clips.

It knows no model by name (`autoencoder.py` and `generator.py` say what a step is), no files and no Ray: reports and checkpoints are
callbacks. Plain torch; with several workers, torch.distributed is already set up.
"""

import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from proav.errors import UserError
from proav.train.ema import ExponentialMovingAverage
from proav.train.engine import Engine, NonFiniteError
from proav.train.schedule import learning_rates

Parts = dict[str, tuple[Tensor, Tensor | float]]
"""What a step reports besides its loss: {name: (sum over clips, number of clips)}, the same names on every worker."""


@dataclass(frozen=True)
class StepOutput:
    """The loss of one forward pass, a mean over its clips, and its parts."""

    loss: Tensor
    parts: Parts


class TrainingStep(Protocol):
    """What one forward and backward pass of a model is."""

    def loss(self, engine: Engine, batch: dict, clips: int) -> StepOutput:
        """The loss of a batch from the feed, after `clips` clips of training; every random draw is a function of (seed, clip position)."""

    def backward_others(self, accumulation_steps: int) -> None:
        """After the model's backward pass: the backward passes of networks that train beside it."""

    def step_others(self) -> None:
        """After the last pass, before the model's optimizer steps: steps those networks. Raises NonFiniteError."""

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """State of those networks for the checkpoint: {file name: {tensor name: tensor}}."""

    def load_tensors(self, read: Callable[[str], dict[str, Tensor]]) -> None:
        """Restores it; `read` gives the tensors of a file name."""


@dataclass
class LoopState:
    """Where training stands; saved with every checkpoint, so that a resumed curve is the uninterrupted one."""

    clips: int = 0
    step: int = 0
    seconds: float = 0.0
    """Time in the loop, over all resumes."""
    reported_clips: int = 0
    reported_seconds: float = 0.0
    wait_seconds: float = 0.0
    """Time spent waiting for data since the last report."""
    sums: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Sums and counts since the last report, over all workers."""


class Meter:
    """Sums over clips between two reports, kept on the device so that adding to them waits for nothing."""

    def __init__(self, device: torch.device, start: dict[str, tuple[float, float]]) -> None:
        self.device = device
        self.sums = {name: torch.tensor(pair, dtype=torch.float64, device=device) for name, pair in start.items()}

    def add(self, name: str, total: Tensor | float, count: Tensor | float) -> None:
        pair = torch.stack([torch.as_tensor(value, dtype=torch.float64, device=self.device).detach() for value in (total, count)])
        self.sums[name] = self.sums[name] + pair if name in self.sums else pair

    def totals(self) -> dict[str, tuple[float, float]]:
        """Sums and counts over all workers. Every worker calls it."""
        if not self.sums:
            return {}
        names = sorted(self.sums)
        stacked = torch.stack([self.sums[name] for name in names])
        if dist.is_initialized():
            dist.all_reduce(stacked)
        return {name: (total, count) for name, (total, count) in zip(names, stacked.tolist(), strict=True)}

    def clear(self) -> None:
        self.sums = {}


def run_loop(
    step: TrainingStep,
    batches: Iterator[dict],
    engine: Engine,
    average: ExponentialMovingAverage,
    state: LoopState,
    *,
    report: Callable[[dict], None],
    save: Callable[[LoopState], None],
    checkpoint_wanted: Callable[[], bool] = lambda: False,
) -> LoopState:
    """Trains from `state` until engine.train.num_clips clips are seen; returns the last state.

    batches: from state.step on, this worker's share of each global batch: {name: tensor [clips / workers, ...]}, `position` among them.
    report, save: called on every worker equally often; save also at the end. checkpoint_wanted: asked each step (a node is about to go).
    Raises NonFiniteError before the optimizer steps, and what the feed raises as UserError; both on every worker.
    """
    train = engine.train
    meter = Meter(engine.device, state.sums)
    clock = time.monotonic()
    while state.clips < train.num_clips:
        waited = time.monotonic()
        batch, save_now = _next_batch(batches, engine.device, checkpoint_wanted())
        state.wait_seconds += time.monotonic() - waited
        _train_step(step, batch, engine, meter, state)
        before, state.clips, state.step = state.clips, state.clips + train.batch_size, state.step + 1
        average.update(engine.shards(), clips=state.clips, batch_clips=train.batch_size)
        state.seconds, clock = state.seconds + time.monotonic() - clock, time.monotonic()
        done = state.clips >= train.num_clips
        if done or _crosses(before, state.clips, train.report_every_clips):
            report(_line(meter, state, learning_rates(train, before)))
            meter.clear()
            state.reported_clips, state.reported_seconds, state.wait_seconds = state.clips, state.seconds, 0.0
        if done or save_now or _crosses(before, state.clips, train.checkpoint_every_clips):
            state.sums = meter.totals()
            save(state)
    return state


def split_batch(batch: dict, parts: int) -> list[dict]:
    """A batch as `parts` equal batches, in order."""
    sizes = {len(values) for values in batch.values()}
    assert len(sizes) == 1 and sizes.pop() % parts == 0, "a worker's batch splits evenly into its passes (checked by TrainConfig)"
    chunks = {name: [values[i * len(values) // parts : (i + 1) * len(values) // parts] for i in range(parts)] for name, values in batch.items()}
    return [{name: chunks[name][i] for name in batch} for i in range(parts)]


def mean_part(values_B: Tensor) -> tuple[Tensor, float]:
    """One value per clip as (sum, number) for `StepOutput.parts`."""
    return values_B.detach().sum(), float(len(values_B))


def _next_batch(batches: Iterator[dict], device: torch.device, checkpoint_wanted: bool) -> tuple[dict, bool]:
    """This worker's next batch, and whether some worker wants a checkpoint.

    A user's mistake that one worker meets here (a damaged shard) is raised on every worker: none is left waiting for the one that stopped.
    """
    batch, mistake = None, None
    try:
        batch = next(batches)
    except UserError as error:
        mistake = error
    broken, wanted = _any_worker(device, mistake is not None, checkpoint_wanted)
    if broken:
        raise next(found for found in _everyone(mistake) if found is not None)
    return batch, wanted


def _train_step(step: TrainingStep, batch: dict, engine: Engine, meter: Meter, state: LoopState) -> None:
    """All passes of one optimizer step, and the step."""
    train, losses = engine.train, []
    for part in split_batch(batch, train.accumulation_steps):
        output = step.loss(engine, part, state.clips)
        losses.append(output.loss.detach())
        if any(_any_worker(engine.device, not bool(torch.isfinite(output.loss)))):
            _refuse("the loss is not finite", losses, batch, state)
        engine.backward(output.loss)
        step.backward_others(train.accumulation_steps)
        count = len(part["position"])
        meter.add("loss", output.loss.detach().double() * count, count)
        for name, (total, number) in output.parts.items():
            meter.add(name, total, number)
    try:
        step.step_others()
        norm = engine.step(learning_rates(train, state.clips))
    except NonFiniteError as error:
        _refuse(str(error), losses, batch, state)
    meter.add("skipped_steps", float(norm is None), 1.0)
    meter.add("grad_norm", norm or 0.0, float(norm is not None))  # always: the workers sum equal lists of names


def _refuse(reason: str, losses: list[Tensor], batch: dict, state: LoopState) -> None:
    """Raises NonFiniteError with the losses and clip positions of every worker; every worker calls it."""
    mine = f"loss {', '.join(f'{loss.item():.6g}' for loss in losses)} on clip positions {[int(position) for position in batch['position']]}"
    raise NonFiniteError(
        f"training stopped before optimizer step {state.step + 1} ({state.clips:,} clips seen): {reason}; {'; '.join(_everyone(mine))}. "
        "The last checkpoint is from before; go on from it with a lower train.learning_rate or train.precision=fp32"
    )


def _everyone(mine) -> list:
    """One object of each worker, in order of rank. Every worker calls it."""
    if not dist.is_initialized():
        return [mine]
    objects = [None] * dist.get_world_size()
    dist.all_gather_object(objects, mine)
    return objects


def _any_worker(device: torch.device, *flags: bool) -> list[bool]:
    """Whether each flag is set on any worker. Every worker calls it."""
    votes = torch.tensor([float(flag) for flag in flags], device=device)
    if dist.is_initialized():
        dist.all_reduce(votes, op=dist.ReduceOp.MAX)
    return [bool(vote) for vote in votes.tolist()]


def _line(meter: Meter, state: LoopState, rates: dict[str, float]) -> dict:
    """One report: means since the last, over all workers."""
    totals = meter.totals()
    skipped = totals.pop("skipped_steps")[0]
    means = {name: total / count for name, (total, count) in totals.items() if count}
    seconds = max(state.seconds - state.reported_seconds, 1e-9)
    line = {"clips": state.clips, "step": state.step, "loss": means.pop("loss"), **means}
    if skipped:  # fp16 overflows: the batch was used, the weights did not move
        line["skipped_steps"] = int(skipped)
    return line | {
        **rates,
        "clips_per_second": (state.clips - state.reported_clips) / seconds,
        "seconds": state.seconds,
        "data_wait": min(1.0, state.wait_seconds / seconds),
        "device": torch.cuda.get_device_name(meter.device) if meter.device.type == "cuda" else meter.device.type,
        "peak_memory_gib": _peak_memory_bytes(meter.device) / 2**30,
    }


def _peak_memory_bytes(device: torch.device) -> int:
    """Of this worker: allocated on the GPU, or resident where there is none."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _crosses(before: int, after: int, every: int) -> bool:
    return before // every != after // every
