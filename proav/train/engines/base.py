"""The interface of an engine, and what all engines share: loss scale, averaged gradients.

The engines are in `data_parallel.py` and `zero.py`.
"""

import contextlib
from collections.abc import Iterable
from typing import Protocol

import torch
import torch.distributed as dist
from torch import nn

from proav.config import TrainConfig
from proav.errors import UserError

BUCKET_BYTES = 32 * 2**20
"""Gradients are summed over workers in flat pieces of about this size: few calls, little extra memory."""


class NonFiniteError(UserError):
    """A loss or gradient norm that is not finite; it is raised on every worker before the optimizer steps."""


class Engine(Protocol):
    """What the loop needs to train a module; `make_engine` chooses an engine."""

    module: nn.Module
    """The model without wrappers; its weights may be sharded."""
    device: torch.device
    train: TrainConfig

    def forward(self, *inputs, **named): ...
    def autocast(self) -> contextlib.AbstractContextManager: ...
    def backward(self, loss: torch.Tensor) -> None: ...
    def step(self, rates: dict[str, float]) -> float | None: ...
    def discard(self) -> None: ...
    def shards(self) -> dict[str, torch.Tensor]: ...
    def assemble(self, shards: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]: ...
    def split(self, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]: ...
    def optimizer_state(self) -> tuple[dict[str, torch.Tensor], dict]: ...
    def load_optimizer_state(self, tensors: dict[str, torch.Tensor], scalars: dict) -> None: ...


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Averages the gradients over all workers, in flat buckets; a missing gradient counts as zero."""
    parameters = list(parameters)
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return
    world, bucket, size = dist.get_world_size(), [], 0
    for index, parameter in enumerate(parameters):
        bucket.append(parameter.grad)
        size += parameter.grad.numel() * parameter.grad.element_size()
        if size >= BUCKET_BYTES or index == len(parameters) - 1:
            flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
            dist.all_reduce(flat)
            flat.div_(world)
            for gradient, part in zip(
                bucket, flat.split([gradient.numel() for gradient in bucket]), strict=True
            ):
                gradient.copy_(part.view_as(gradient))
            bucket, size = [], 0


class LossScale:
    """The dynamic loss scale of fp16; it is 1 in other precisions.

    It is halved if a gradient overflows, and doubled after a number of steps without overflow. It starts at
    2**16 and is doubled every 2,000 steps, as usual since Micikevicius et al., 2018.
    """

    GROWTH_STEPS = 2000

    def __init__(self, precision: str) -> None:
        self.dynamic = precision == "fp16"
        self.scale, self.calm_steps = (2.0**16 if self.dynamic else 1.0), 0

    def after_step(self, overflow: bool) -> bool:
        """Updates the scale; returns whether a step that overflowed may be skipped.

        False means that a non-finite gradient must stop the run.
        """
        if not self.dynamic:
            return False
        if overflow:
            self.scale, self.calm_steps = self.scale / 2, 0
            return self.scale >= 1.0
        self.calm_steps += 1
        if self.calm_steps == self.GROWTH_STEPS:
            self.scale, self.calm_steps = self.scale * 2, 0
        return True


def persistent_buffers(module: nn.Module) -> dict[str, torch.Tensor]:
    parameters = dict(module.named_parameters())
    return {name: tensor for name, tensor in module.state_dict().items() if name not in parameters}


def scalars_of(engine) -> dict:
    return {
        "optimizer_steps": engine.optimizer_steps,
        "loss_scale": engine.loss_scale.scale,
        "calm_steps": engine.loss_scale.calm_steps,
    }


def load_scalars(engine, scalars: dict) -> None:
    engine.optimizer_steps = scalars["optimizer_steps"]
    if engine.loss_scale.dynamic:
        engine.loss_scale.scale, engine.loss_scale.calm_steps = scalars["loss_scale"], scalars["calm_steps"]
