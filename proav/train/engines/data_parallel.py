"""Plain data parallel in torch. ZeRO is in `zero.py`, shared parts of all engines are in `base.py`."""

import contextlib

import torch
import torch.distributed as dist
from torch import nn

from proav.config import TrainConfig
from proav.models.layers import autocast
from proav.train.engines.base import (
    LossScale,
    NonFiniteError,
    average_gradients,
    load_scalars,
    persistent_buffers,
    scalars_of,
)
from proav.train.optimizers import check_moments, make_optimizer, moments_of, state_of


class TorchEngine:
    """Every worker holds everything; gradients are averaged once per optimizer step."""

    def __init__(self, module: nn.Module, train: TrainConfig, *, device: torch.device) -> None:
        self.module, self.train, self.device = module.to(device), train, device
        self.loss_scale = LossScale(train.precision)
        self.optimizer = make_optimizer(self.module, train)
        self.optimizer_steps = 0
        if dist.is_initialized():
            for tensor in (*self.module.parameters(), *self.module.buffers()):
                dist.broadcast(tensor.data, 0)

    def forward(self, *inputs, **named):
        with self.autocast():
            return self.module(*inputs, **named)

    def autocast(self) -> contextlib.AbstractContextManager:
        return autocast(self.device.type, self.train.precision)

    def backward(self, loss: torch.Tensor) -> None:
        """Adds the gradients of `loss` divided by the accumulation steps."""
        (loss * (self.loss_scale.scale / self.train.accumulation_steps)).backward()

    def step(self, rates: dict[str, float]) -> float | None:
        """Averages the gradients, clips them and steps; returns their norm.

        rates: {name of the setting: learning rate}.
        Returns None if an fp16 overflow skipped the step. Raises NonFiniteError, with the weights untouched.
        """
        parameters = [parameter for parameter in self.module.parameters() if parameter.requires_grad]
        average_gradients(parameters)
        if self.loss_scale.dynamic:
            torch._foreach_div_([parameter.grad for parameter in parameters], self.loss_scale.scale)
        norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters])
        value = norm.item()
        finite = _is_finite(value)
        if not self.loss_scale.after_step(not finite) and not finite:
            raise NonFiniteError(f"the gradient norm is {value}")
        if finite:
            nn.utils.clip_grads_with_norm_(parameters, self.train.gradient_clip, norm)
            for group in self.optimizer.param_groups:
                group["lr"] = rates[group["rate"]]
            self.optimizer.step()
            self.optimizer_steps += 1
        self.optimizer.zero_grad(set_to_none=True)
        return value if finite else None

    def discard(self) -> None:
        """Drops the gradients; it is called instead of `step`."""
        self.optimizer.zero_grad(set_to_none=True)

    def shards(self) -> dict[str, torch.Tensor]:
        """This worker's part of the current weights by name: here all of them."""
        return {name: parameter.data for name, parameter in self.module.named_parameters()}

    def assemble(self, shards: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The model's state dict, with persistent buffers, from all shards. Every worker calls it."""
        return shards | persistent_buffers(self.module)

    def split(self, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The inverse of `assemble`: this worker's shards of whole tensors."""
        return {name: weights[name].to(self.device) for name, _ in self.module.named_parameters()}

    def optimizer_state(self) -> tuple[dict[str, torch.Tensor], dict]:
        """({"exp_avg.NAME": whole tensor, ...}, plain values). Every worker calls it."""
        tensors = {}
        for name, moments in moments_of(self.module, self.train).items() if self.optimizer_steps else ():
            state = self.optimizer.state[self.module.get_parameter(name)]
            tensors |= {f"{moment}.{name}": state[moment] for moment in moments}
        return tensors, scalars_of(self)

    def load_optimizer_state(self, tensors: dict[str, torch.Tensor], scalars: dict) -> None:
        load_scalars(self, scalars)
        if not self.optimizer_steps:
            return
        check_moments(tensors, self.module, self.train)
        for name, moments in moments_of(self.module, self.train).items():
            state = {moment: tensors[f"{moment}.{name}"].to(self.device) for moment in moments}
            self.optimizer.state[self.module.get_parameter(name)] = state_of(state, self.optimizer_steps)


def _is_finite(value: float) -> bool:
    return value == value and abs(value) != float("inf")
