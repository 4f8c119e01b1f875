"""One worker's training loop: feed -> step -> report -> checkpoint; progress is counted in clips.

The loop does not depend on a model, on files or on Ray. The steps are in `autoencoder_step.py`,
`generator_step.py` and `flow_map_step.py`; reports and checkpoints are callbacks. This is plain torch. With
several workers, torch.distributed must be set up before.
"""

import contextlib
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from proav.config import TrainConfig
from proav.errors import UserError
from proav.train.ema import ExponentialMovingAverage
from proav.train.engines import Engine, NonFiniteError
from proav.train.schedule import learning_rates

Parts = dict[str, tuple[Tensor, Tensor | float]]
"""What a step reports besides its loss: {name: (sum over clips, number)}; same names on all workers."""


@dataclass(frozen=True)
class StepOutput:
    """The loss of one forward pass, a mean over its clips, and its parts."""

    loss: Tensor
    parts: Parts


class TrainingStep(Protocol):
    """One forward and backward pass of a model, with the networks that train beside it."""

    def loss(self, engine: Engine, batch: dict, clips: int) -> StepOutput:
        """The loss of a batch from the feed, after `clips` clips of training.

        Every random draw is a function of (seed, clip position).
        """

    def backward_others(self, accumulation_steps: int) -> None:
        """Backward passes of the networks beside the model; called after the model's backward pass."""

    def check_others(self) -> None:
        """Averages their gradients over the workers, after the last pass. Raises NonFiniteError."""

    def step_others(self) -> None:
        """Steps those networks, after the model has stepped."""

    def discard_others(self) -> None:
        """Drops the gradients of those networks; called instead of `step_others`."""

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """State of those networks for the checkpoint: {file name: {tensor name: tensor}}."""

    def load_tensors(self, read: Callable[[str], dict[str, Tensor]]) -> None:
        """Restores that state; `read` returns the tensors of a file name."""


@dataclass
class LoopState:
    """The state of training; it is in every checkpoint, so a resumed curve equals the uninterrupted one."""

    clips: int = 0
    step: int = 0
    seconds: float = 0.0
    """Time of steps and of waiting for their batches, over all resumes; without reports and checkpoints."""
    reported_clips: int = 0
    reported_seconds: float = 0.0
    sums: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Sums and counts since the last report, over all workers.

    After a resume, only worker 0 has them. The others have zeros.
    """
    skipped_in_a_row: int = 0
    """Batches left out since the last step because their loss or gradient was not finite."""
    skipped: list[str] = field(default_factory=list)
    """Segments of the batches left out since the last report."""


WAITS = ("data_wait", "worker_wait", "host_wait")
"""What a worker waits for: its next batch, the other workers' batches, and the host.

The host takes reports and checkpoints, and decides when to save.
"""


class Waits:
    """Seconds that this worker has waited since the last report, by cause."""

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self.seconds, self.since = dict.fromkeys(WAITS, 0.0), time.monotonic()

    @contextlib.contextmanager
    def on(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] += time.monotonic() - began

    def shares(self, device: torch.device) -> dict[str, float]:
        """Each wait as a share of all time since the last call, for the worker that waited longest.

        Every worker calls it.
        """
        seconds = max(time.monotonic() - self.since, 1e-9)
        longest = torch.tensor([self.seconds[name] for name in WAITS], dtype=torch.float64, device=device)
        if dist.is_initialized():
            dist.all_reduce(longest, op=dist.ReduceOp.MAX)
        self._clear()
        return {name: min(1.0, value / seconds) for name, value in zip(WAITS, longest.tolist(), strict=True)}


class Meter:
    """Sums over clips between two reports, kept on the device so that `add` does not wait for it.

    start: sums and counts to begin with; the same names on all workers.
    """

    def __init__(self, device: torch.device, start: dict[str, tuple[float, float]]) -> None:
        self.device = device
        self.sums = {
            name: torch.tensor(pair, dtype=torch.float64, device=device) for name, pair in start.items()
        }

    def add(self, name: str, total: Tensor | float, count: Tensor | float) -> None:
        pair = torch.stack(
            [
                torch.as_tensor(value, dtype=torch.float64, device=self.device).detach()
                for value in (total, count)
            ]
        )
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


@dataclass(frozen=True)
class Asked:
    """Requests from outside the loop; every worker calls both before each step."""

    checkpoint: Callable[[], bool] = lambda: False
    """Whether to write a checkpoint after the next step, because a node is about to be removed."""
    stop: Callable[[], bool] = lambda: False
    """Whether to write a checkpoint of all finished steps, and end."""


def run_loop(
    step: TrainingStep,
    batches: Iterator[dict],
    engine: Engine,
    average: ExponentialMovingAverage,
    state: LoopState,
    *,
    report: Callable[[dict], None],
    save: Callable[[LoopState], None],
    asked: Asked = Asked(),
    say: Callable[[str], None] = lambda line: None,
) -> bool:
    """Trains until num_clips clips are seen or max_seconds have passed; False if it was asked to stop before.

    step: the model's losses.
    batches: this worker's share of each further global batch: {name: tensor [clips / workers, ...]}, with a
        tensor `position`.
    engine: holds the model and its optimizer.
    average: the moving average of the weights.
    state: the state of training; it is updated.
    report, save: called equally often on every worker; save also at the end.
    asked: requests from outside the loop.
    say: takes lines for people.
    Raises NonFiniteError before the optimizer steps, and the UserError of a feed; both on every worker.
    """
    train, saved_clips = engine.train, state.clips
    meter, waits, clock = Meter(engine.device, state.sums), Waits(), time.monotonic()
    saved_at = clock

    def keep() -> None:
        nonlocal saved_clips, saved_at
        if state.clips > saved_clips:
            state.sums = meter.totals()
            save(state)
            saved_clips = state.clips
        saved_at = time.monotonic()

    done = is_trained(train, clips=state.clips, seconds=state.seconds)
    while not done:
        with waits.on("host_wait"):
            every = 60 * train.checkpoint_every_minutes
            due = every > 0 and time.monotonic() - saved_at > every
            wanted = due or asked.checkpoint(), asked.stop()
        batch, save_now, stop = _next_batch(batches, engine.device, waits, *wanted)
        if stop:
            keep()
            return False
        _train_step(step, batch, engine, meter, state, say)
        before, state.clips, state.step = state.clips, state.clips + train.batch_size, state.step + 1
        average.update(engine.shards(), clips=state.clips, batch_clips=train.batch_size)
        state.seconds += time.monotonic() - clock
        done = is_trained(train, clips=state.clips, seconds=state.seconds)
        if train.max_seconds is not None:  # the workers' clocks differ
            (done,) = _any_worker(engine.device, done)
        if meter.sums and (done or _crosses(before, state.clips, train.report_every_clips)):
            line = _line(meter, waits, state, learning_rates(train, before))
            with waits.on("host_wait"):
                report(line)
            meter.clear()
            state.reported_clips, state.reported_seconds, state.skipped = state.clips, state.seconds, []
        if done or save_now or _crosses(before, state.clips, train.checkpoint_every_clips):
            keep()
        clock = time.monotonic()  # reports and checkpoints are not time of steps
    return True


def is_trained(train: TrainConfig, *, clips: int, seconds: float) -> bool:
    """Whether training is complete by the settings, after this many clips and seconds of steps."""
    return clips >= train.num_clips or (train.max_seconds is not None and seconds >= train.max_seconds)


def split_batch(batch: dict, parts: int) -> list[dict]:
    """A batch as `parts` equal batches, in order."""
    sizes = {len(values) for values in batch.values()}
    assert len(sizes) == 1 and sizes.pop() % parts == 0, (
        "a worker's batch splits evenly into its passes (checked by TrainConfig)"
    )
    chunks = {
        name: [values[i * len(values) // parts : (i + 1) * len(values) // parts] for i in range(parts)]
        for name, values in batch.items()
    }
    return [{name: chunks[name][i] for name in batch} for i in range(parts)]


def mean_part(values_B: Tensor) -> tuple[Tensor, float]:
    """One value per clip as (sum, number) for `StepOutput.parts`."""
    return values_B.detach().sum(), float(len(values_B))


def _next_batch(
    batches: Iterator[dict], device: torch.device, waits: Waits, checkpoint: bool, stop: bool
) -> tuple[dict, bool, bool]:
    """This worker's next batch, whether some worker wants a checkpoint, and whether one wants to stop.

    If one worker gets a UserError here, such as a damaged shard, it is raised on every worker. So no worker
    waits for one that has stopped.

    batches, device, waits: this worker's.
    checkpoint, stop: what this worker wants.
    """
    batch, mistake = None, None
    with waits.on("data_wait"):
        try:
            batch = next(batches)
        except UserError as error:
            mistake = error
    if device.type == "cuda":  # the previous step may still run there, which is no wait for others
        torch.cuda.synchronize(device)
    with waits.on("worker_wait"):
        broken, checkpoint, stop = _any_worker(device, mistake is not None, checkpoint, stop)
    if broken:
        raise next(found for found in _everyone(mistake) if found is not None)
    return batch, checkpoint, stop


def _train_step(
    step: TrainingStep,
    batch: dict,
    engine: Engine,
    meter: Meter,
    state: LoopState,
    say: Callable[[str], None],
) -> None:
    """All passes of one optimizer step, then the step itself.

    A batch without a finite loss or gradient is left out (train.skip_nonfinite).

    batch: this worker's share of the global batch.
    meter: receives the losses and their parts.
    The others are as in `run_loop`.
    """
    train, outputs, reason = engine.train, [], None
    for part in split_batch(batch, train.accumulation_steps):
        output = step.loss(engine, part, state.clips)
        outputs.append((output, len(part["position"])))
        if any(_any_worker(engine.device, not bool(torch.isfinite(output.loss)))):
            reason = "the loss is not finite"
            if state.skipped_in_a_row >= train.skip_nonfinite:
                break
        engine.backward(output.loss)
        step.backward_others(train.accumulation_steps)
    norm = None
    if reason is None:
        try:
            step.check_others()
            norm = engine.step(learning_rates(train, state.clips))
            step.step_others()
        except NonFiniteError as error:
            reason = str(error)
    if reason is not None:
        _leave_out(reason, [output.loss for output, _ in outputs], batch, step, engine, state, say)
        return
    state.skipped_in_a_row = 0
    for output, count in outputs:
        meter.add("loss", output.loss.detach().double() * count, count)
        for name, (total, number) in output.parts.items():
            meter.add(name, total, number)
    meter.add("skipped_steps", float(norm is None), 1.0)
    meter.add(
        "grad_norm", norm or 0.0, float(norm is not None)
    )  # added in any case: all workers must sum the same names


def _leave_out(
    reason: str,
    losses: Sequence[Tensor],
    batch: dict,
    step: TrainingStep,
    engine: Engine,
    state: LoopState,
    say: Callable[[str], None],
) -> None:
    """Drops the gradients of a batch without a finite step; every worker calls it.

    reason: what is not finite.
    losses: one for each pass.
    The others are as in `run_loop`.
    Raises NonFiniteError if train.skip_nonfinite batches in a row were left out already. Its message has
    losses, positions, segments and sources of all workers.
    """
    mine = f"loss {', '.join(f'{loss.item():.6g}' for loss in losses)} on {_clips_text(batch)}"
    where, limit = "; ".join(_everyone(mine)), engine.train.skip_nonfinite
    if state.skipped_in_a_row >= limit:
        raise NonFiniteError(
            f"training stopped before optimizer step {state.step + 1} ({state.clips:,} clips seen): "
            f"{reason}; {where}. The last checkpoint is from before. A resumed run reaches the same clips "
            "again: write a lower train.learning_rate or train.precision=fp32, or leave such batches out: "
            f"train.skip_nonfinite={max(10, 2 * limit)}"
        )
    engine.discard()
    step.discard_others()
    state.skipped_in_a_row += 1
    for segments in _everyone(list(batch.get("segment_id", ()))):
        state.skipped += segments
    count = f"{state.skipped_in_a_row} of {limit}"
    say(f"left out the batch after {state.clips:,} clips ({count}): {reason}; {where}")


def _clips_text(batch: dict, most: int = 16) -> str:
    """Positions, segments and sources of a batch, the first `most` of them."""
    positions = batch["position"].tolist()
    text = f"clip positions {positions[:most]}"
    for name, head in (("segment_id", "segments"), ("source_id", "of sources")):
        if name in batch:
            text += f", {head} {', '.join(list(dict.fromkeys(batch[name]))[:most])}"
    return text + (f" and {len(positions) - most} more clips" if len(positions) > most else "")


def _everyone(mine) -> list:
    """The objects of all workers, in order of rank. Every worker calls it."""
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


def _line(meter: Meter, waits: Waits, state: LoopState, rates: dict[str, float]) -> dict:
    """One report: means since the last one, over all workers.

    meter, waits, state: of the loop.
    rates: {name of the setting: learning rate}.
    """
    totals = meter.totals()
    overflows = totals.pop("skipped_steps", (0.0, 0.0))[0]
    means = {name: total / count for name, (total, count) in totals.items() if count}
    seconds = max(state.seconds - state.reported_seconds, 1e-9)
    line = {"clips": state.clips, "step": state.step, "loss": means.pop("loss"), **means}
    if overflows:  # fp16 overflow: the batch was used, but the weights did not change
        line["skipped_steps"] = int(overflows)
    if state.skipped:
        line["skipped_segments"] = state.skipped
    return line | {
        **rates,
        "clips_per_second": (state.clips - state.reported_clips) / seconds,
        "seconds": state.seconds,
        **waits.shares(meter.device),
        "device": torch.cuda.get_device_name(meter.device)
        if meter.device.type == "cuda"
        else meter.device.type,
        "peak_memory_gib": _peak_memory_bytes(meter.device) / 2**30,
    }


def _peak_memory_bytes(device: torch.device) -> int:
    """This worker's peak: memory allocated on the GPU, or resident memory without a GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _crosses(before: int, after: int, every: int) -> bool:
    return before // every != after // every
