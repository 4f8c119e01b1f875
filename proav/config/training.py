"""Settings of how a model is trained; the section of each trained model holds one of these sections.

Rules between the fields are checked at construction.
"""

import itertools
import math
from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from proav.config.changes import Changes
from proav.config.section import Count, PositiveFloat, PositiveInt, Probability, Section, UseGPU, Weight


class TrainConfig(Section):
    """How one model is trained.

    Durations are counted in clips, so that batch size and worker count can change.
    """

    changes = ("training",)

    num_clips: PositiveInt = 1_000_000
    """How long to train, in clips seen."""
    max_seconds: PositiveFloat | None = None
    """Training ends after this many seconds of steps, or after num_clips if that is sooner; empty: no limit.
    """
    batch_size: PositiveInt = 64
    """Clips per optimizer step, over all workers and accumulation steps."""
    accumulation_steps: PositiveInt = 1
    """Forward and backward passes per optimizer step; batch_size is split over them."""
    num_workers: Annotated[PositiveInt | tuple[PositiveInt, PositiveInt], Changes("machine")] = 1
    """Training processes, one for each GPU if there are GPUs; [MIN,MAX] is elastic."""
    use_gpu: Annotated[UseGPU, Changes("machine")] = "auto"
    """auto: a GPU for each worker if the cluster has any, or its autoscaler can add one."""
    cpus_per_worker: Annotated[PositiveInt, Changes("machine")] = 1
    """CPUs that a worker reserves; also the number of its torch threads if it has no GPU."""
    loader: Annotated[Literal["processes", "actors"], Changes("machine")] = "processes"
    """What prepares batches ahead. processes: processes beside each worker. actors: Ray actors on any node,
    also on nodes without GPUs; each takes one CPU.
    """
    loader_workers: Annotated[Count, Changes("machine")] = 0
    """Loading processes or actors per worker; 0: the training process prepares each batch itself."""
    engine: Annotated[Literal["deepspeed", "torch"], Changes("machine")] = "deepspeed"
    """deepspeed: ZeRO. torch: plain data parallel, no DeepSpeed needed."""
    zero_stage: Annotated[int, Field(ge=0, le=3), Changes("machine")] = 1
    """What ZeRO shards over workers. 0: nothing. 1: optimizer state. 2: also gradients. 3: also parameters.
    """
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    """Precision of the forward and backward pass; statistics, losses, EMA and master weights stay fp32."""
    activation_checkpointing: Annotated[bool, Changes("machine")] = False
    """Recompute block activations in the backward pass: less memory, about a third more time."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """muon: orthogonalized momentum for matrices of blocks and linear planes, AdamW for all other weights."""
    learning_rate: PositiveFloat = 1e-4
    """AdamW's step size after warm-up."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.99)
    """AdamW's two averaging factors."""
    weight_decay: Weight = 0.0
    """AdamW's decoupled weight decay."""
    muon_learning_rate: PositiveFloat = 0.02
    """Muon's step size after warm-up; the singular values of an update are about as large. Only with
    optimizer=muon.
    """
    muon_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """Muon's averaging factor of gradients (Nesterov); only with optimizer=muon."""
    muon_weight_decay: Weight = 0.0
    """Muon's decoupled weight decay; only with optimizer=muon."""
    warmup_clips: Count = 320_000
    """The learning rates grow linearly over this many clips."""
    decay_fraction: Probability = 0.0
    """Over this last share of num_clips the learning rates fall linearly to 2 %; 0: they do not fall."""
    gradient_clip: PositiveFloat = 1.0
    """Largest global gradient norm."""
    skip_nonfinite: Count = 0
    """Batches in a row that may be left out because their loss or gradient is not finite."""
    ema_half_life_clips: PositiveFloat = 440_000
    """Clips after which a weight's share in the average has halved; 440,000 is 0.9999 per step at batch 64.
    """
    ema_ramp_up: PositiveFloat = 0.05
    """Longest half-life as a share of the clips seen, so that early averages forget the initialization."""
    checkpoint_every_clips: Annotated[PositiveInt, Changes("machine")] = 64_000
    """Clips between checkpoints; one more is written at the end."""
    checkpoint_every_minutes: Annotated[float, Field(ge=0), Changes("machine")] = 15.0
    """Minutes after which a checkpoint is written in any case; 0: checkpoints depend on clips alone."""
    keep_checkpoints: Annotated[PositiveInt, Changes("machine")] = 2
    """Newest checkpoints that are kept; older ones are removed."""
    report_every_clips: Annotated[PositiveInt, Changes("machine")] = 3_200
    """Clips between lines of metrics.jsonl."""
    validate_every_clips: Annotated[Count, Changes("machine")] = 0
    """Clips between measurements of the moving-average weights on evaluate.split; 0: none. A Ray task beside
    the trainer measures; it needs a CPU or GPU of its own.
    """
    max_failures: Annotated[int, Field(ge=-1), Changes("machine")] = 3
    """Restarts from the last checkpoint after a worker or node is lost; -1: no limit."""

    @model_validator(mode="before")
    @classmethod
    def _without_zero(cls, values: Any) -> Any:
        """Makes 0 the default of zero_stage if engine=torch."""
        return (
            {"zero_stage": 0, **values}
            if isinstance(values, dict) and values.get("engine") == "torch"
            else values
        )

    @model_validator(mode="after")
    def _check(self) -> "TrainConfig":
        if not isinstance(self.num_workers, int) and self.num_workers[0] > self.num_workers[1]:
            raise ValueError(
                f"train.num_workers={list(self.num_workers)}: MIN is above MAX; "
                f"write [{self.num_workers[1]},{self.num_workers[0]}]"
            )
        if not self._splits(self.worker_counts, self.accumulation_steps):
            raise ValueError(self._uneven())
        if self.loader == "actors" and not self.loader_workers:
            raise ValueError("train.loader=actors needs loader workers; write train.loader_workers=2")
        if self.num_clips < self.batch_size:
            raise ValueError(
                f"train.num_clips={self.num_clips} is less than one batch; "
                f"expected at least train.batch_size={self.batch_size}"
            )
        if self.engine == "torch" and self.zero_stage > 0:
            raise ValueError(
                f"train.engine=torch shards nothing, but train.zero_stage={self.zero_stage}; "
                "write train.zero_stage=0 or train.engine=deepspeed"
            )
        return self

    @property
    def worker_counts(self) -> range:
        """The numbers of training processes that the run may have."""
        least, most = (self.num_workers,) * 2 if isinstance(self.num_workers, int) else self.num_workers
        return range(least, most + 1)

    def _splits(self, counts: Iterable[int], steps: int) -> bool:
        """Whether each of these worker counts cuts a batch of so many steps into whole micro-batches."""
        clips, rest = divmod(self.batch_size, steps)
        return not rest and all(clips % count == 0 for count in counts)

    def _uneven(self) -> str:
        """The message for a batch that does not split; it names settings that fit."""
        counts, steps = self.worker_counts, self.accumulation_steps
        least, most = counts[0], counts[-1]
        given = f"{most}" if least == most else f"{least} to {most}"
        sizes = self._batch_sizes_that_fit()
        if self.batch_size % steps:
            others = [other for other in range(1, self.batch_size + 1) if self._splits(counts, other)]
            others = _nearest(others, steps, steps) or [1]  # if no number fits, one of the workers is next
            choices = [*sizes, *(f"train.accumulation_steps={other}" for other in others)]
            return (
                f"train.batch_size={self.batch_size} does not split into {steps} accumulation steps; "
                f"write {' or '.join(choices)}"
            )
        choices = [*(f"train.num_workers={count}" for count in self._worker_counts_that_fit()), *sizes]
        return (
            f"train.batch_size={self.batch_size} does not split over {given} workers x "
            f"{steps} accumulation steps into whole micro-batches; write {' or '.join(choices)}"
        )

    def _worker_counts_that_fit(self) -> list[str]:
        """Values of num_workers like the given one; the batch splits into the accumulation steps."""
        counts, steps = self.worker_counts, self.accumulation_steps
        least, most = counts[0], counts[-1]
        fits = [count for count in range(1, self.batch_size + 1) if self._splits([count], steps)]
        # the widest ranges that share an end with the given one; if there is none, single counts
        down = list(itertools.takewhile(fits.__contains__, counts))
        up = list(itertools.takewhile(fits.__contains__, reversed(counts)))[::-1]
        wide = [f"[{part[0]},{part[-1]}]" for part in (down, up) if len(part) > 1]
        inside = [f"{count}" for count in fits if count in counts]
        return wide or inside or [f"{count}" for count in _nearest(fits, least, most)]

    def _batch_sizes_that_fit(self) -> list[str]:
        """The nearest below and above the given one, if they are not much larger than that."""
        step = self.accumulation_steps
        for count in self.worker_counts:
            step = math.lcm(step, count * self.accumulation_steps)
            if step >= 16 * self.batch_size:
                return []
        lower = self.batch_size // step * step
        return [f"train.batch_size={size} (a multiple of {step})" for size in (lower, lower + step) if size]


def _nearest(numbers: list[int], least: int, most: int) -> list[int]:
    """The nearest number below `least`, and the nearest above `most`."""
    return [number for number in numbers if number < least][-1:] + [
        number for number in numbers if number > most
    ][:1]


class MDSATrainConfig(TrainConfig):
    """MDSA's training: the same settings, with PVDM's values."""

    num_clips: PositiveInt = 1_200_000
    """How long to train, in clips seen."""
    batch_size: PositiveInt = 24
    """Clips per optimizer step, over all workers and accumulation steps."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.5, 0.9)
    """AdamW's two averaging factors."""
    warmup_clips: Count = 0
    """The learning rates grow linearly over this many clips."""
    augment_flip: bool = True
    """Mirror the pictures of a clip left to right, with probability 1/2."""
    augment_turns: bool = False
    """Mirror a clip top to bottom; transpose it if it is square; each with probability 1/2."""
    augment_colour: Probability = 0.0
    """A: contrast uniform in [1 - A, 1 + A], brightness in [-A / 2, A / 2], for pixels in [-1, 1]."""
    augment_pitch: Count = 0
    """Shift the mel frames of each clip by up to this many bins, up or down."""
    augment_gain_db: Annotated[float, Field(ge=0, le=40)] = 0.0
    """Change the loudness of each clip by up to this many dB, up or down, never beyond full scale. The clip's
    mel is then computed anew. 0: as recorded.
    """


class STDiTTrainConfig(TrainConfig):
    """ST-DiT's training: the same settings, at the published comparisons' length (100,000 steps of 64)."""

    num_clips: PositiveInt = 6_400_000
    """How long to train, in clips seen."""


class DistillTrainConfig(TrainConfig):
    """The flow map's training, from ST-DiT's weights. Settings not given here are as in stdit.train, but
    for `own_length`.
    """

    own_length: ClassVar[tuple[str, ...]] = ("num_clips", "max_seconds", "warmup_clips")
    """Settings that are never taken from stdit.train."""

    num_clips: PositiveInt = 1_280_000
    """How long to train, in clips seen. The default is a fifth of ST-DiT's: for 4 steps, 19 % of the
    teacher's clips was enough on the demo, and 11 % was not (docs/experiments.md).
    """
    warmup_clips: Count = 32_000
    """The learning rates grow linearly over this many clips."""
