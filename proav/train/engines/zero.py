"""ZeRO 1 to 3 with DeepSpeed: optimizer state, gradients and weights sharded over the workers.

This is the only file with DeepSpeed, which is imported only when it is used. Plain data parallel is in
`data_parallel.py`, shared parts of all engines are in `base.py`.
"""

import contextlib
import logging
import math
import warnings
from itertools import accumulate

import torch
import torch.distributed as dist
from torch import nn

from proav.config import TrainConfig
from proav.errors import UserError
from proav.models.layers import autocast, hidden_matrices
from proav.train.engines.base import (
    LossScale,
    NonFiniteError,
    load_scalars,
    persistent_buffers,
    scalars_of,
)
from proav.train.optimizers import (
    Sliced,
    SlicedMatrices,
    check_moments,
    make_optimizer,
    moments_of,
    product_dtype,
    state_of,
)

WHOLE_BELOW = 100_000
"""ZeRO stage 3 keeps smaller weights whole on every worker, as DeepSpeed does: gathering them costs time."""


class _Autocast(nn.Module):
    """Runs a module under autocast; the names of its parameters stay the same."""

    def __init__(self, module: nn.Module, device: torch.device, precision: str) -> None:
        super().__init__()
        self.inner, self.device_type, self.precision = module, device.type, precision

    def forward(self, *inputs, **named):
        with autocast(self.device_type, self.precision):
            return self.inner(*inputs, **named)


class DeepSpeedEngine:
    """ZeRO 1 to 3: optimizer state, gradients and weights sharded over the workers.

    Arguments as in `make_engine`.
    """

    def __init__(
        self, module: nn.Module, train: TrainConfig, *, device: torch.device, micro_batch: int
    ) -> None:
        self._deepspeed = _import_deepspeed()
        self.module, self.train, self.device = module, train, device
        self.loss_scale = LossScale(train.precision)
        self.optimizer_steps = 0
        self._reduced = False  # whether ZeRO holds the gradients of a whole step
        world = dist.get_world_size()
        wrapped = _Autocast(module.to(device), device, train.precision)
        inner, config = make_optimizer(module, train), _deepspeed_config(train, micro_batch, world)
        self.engine, self.optimizer, _, _ = self._deepspeed.initialize(
            model=wrapped, optimizer=inner, config=config, dist_init_required=False
        )
        self._create_optimizer_state()
        if train.optimizer == "muon":
            inner.orthogonalize = SlicedMatrices(self._sliced_matrices(), product_dtype(train))

    def forward(self, *inputs, **named):
        return self.engine(*inputs, **named)

    def autocast(self) -> contextlib.AbstractContextManager:
        return autocast(self.device.type, self.train.precision)

    def backward(self, loss: torch.Tensor) -> None:
        """Adds the gradients of `loss` divided by the accumulation steps; the last pass reduces them."""
        if self.loss_scale.dynamic:
            self.optimizer.override_loss_scale(self.loss_scale.scale)
        self.engine.backward(loss)
        self._reduced = self.engine.is_gradient_accumulation_boundary()
        if not self._reduced:
            self.engine.step()  # counts the pass; the weights stay

    def step(self, rates: dict[str, float]) -> float | None:
        """Clips the gradients and steps; returns their norm, or None if an fp16 overflow skipped the step.

        rates: {name of the setting: learning rate}.
        Raises NonFiniteError, with the weights untouched: if a gradient norm is not finite, ZeRO skips the
        step on all workers.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = rates[group["rate"]]
        self._reduced = False
        self.engine.step()
        overflow = self.optimizer.overflow
        if not self.loss_scale.after_step(overflow) and overflow:
            raise NonFiniteError("the gradient norm is not finite")
        if overflow:
            return None
        self.optimizer_steps += 1
        return float(self.engine.get_global_grad_norm())

    def discard(self) -> None:
        """Drops the gradients; called instead of `step`, or after a `step` that raised NonFiniteError."""
        if not self._reduced:
            return
        if dist.get_rank() == 0:  # its first element belongs to a weight; padding is never overwritten
            next(iter(self.optimizer.averaged_gradients.values()))[0].view(-1)[0] = torch.nan
        self.engine.step()  # ZeRO skips a step with a non-finite norm and clears its gradients
        self._reduced = False

    def shards(self) -> dict[str, torch.Tensor]:
        """This worker's part of the current weights by name: whole tensors up to stage 2, else slices."""
        return {
            name: parameter.ds_tensor.data if self._sharded else parameter.data
            for name, parameter in self.module.named_parameters()
        }

    def assemble(self, shards: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The model's state dict, with persistent buffers, from all shards. Every worker calls it.

        At stage 3 there is one gather per tensor. Worker 0 keeps the result on the CPU; the others get only
        their buffers.
        """
        whole = {}
        for name, parameter in self.module.named_parameters() if self._sharded else ():
            gathered = self._gather(shards[name])
            if dist.get_rank() == 0:
                whole[name] = gathered[: parameter.ds_numel].view(parameter.ds_shape).cpu()
        return (whole if self._sharded else shards) | persistent_buffers(self.module)

    def split(self, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The inverse of `assemble`: this worker's shards of whole tensors."""
        if not self._sharded:
            return {name: weights[name].to(self.device) for name, _ in self.module.named_parameters()}
        return {
            name: self._slice(weights[name], parameter) for name, parameter in self.module.named_parameters()
        }

    def optimizer_state(self) -> tuple[dict[str, torch.Tensor], dict]:
        """({"exp_avg.NAME": whole tensor, ...}, plain values). Every worker calls it.

        Tensors are gathered one by one, and only worker 0 gets them.
        """
        from deepspeed.utils import safe_get_full_optimizer_state

        tensors = {}
        for name, moments in moments_of(self.module, self.train).items() if self.optimizer_steps else ():
            for moment in moments:
                whole = safe_get_full_optimizer_state(self.module.get_parameter(name), moment)
                if dist.get_rank() == 0:
                    tensors[f"{moment}.{name}"] = whole.cpu()
        return tensors, scalars_of(self)

    def load_optimizer_state(self, tensors: dict[str, torch.Tensor], scalars: dict) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        load_scalars(self, scalars)
        if not self.optimizer_steps:
            return
        check_moments(tensors, self.module, self.train)
        for state in self.optimizer.optimizer.state.values():
            if "step" in state:
                state["step"].fill_(self.optimizer_steps)
        for name, moments in moments_of(self.module, self.train).items():
            parameter = self.module.get_parameter(name)
            for moment in moments:
                whole = tensors[f"{moment}.{name}"]
                if self._sharded:
                    safe_set_local_optimizer_state(parameter, self._slice(whole, parameter), moment)
                else:
                    safe_set_full_optimizer_state(parameter, whole.to(self.device), moment)

    @property
    def _sharded(self) -> bool:
        return self.train.zero_stage == 3

    def _create_optimizer_state(self) -> None:
        """Makes moments of zeros; DeepSpeed makes them in its first step, too late for a resumed run.

        Below stage 3, DeepSpeed would also link the state of all groups after the step of the first group,
        when the others have no state yet.
        """
        all_moments = moments_of(self.module, self.train)
        for flat, names in self._flat_weights():
            zeros = {moment: torch.zeros_like(flat, requires_grad=False) for moment in all_moments[names[0]]}
            self.optimizer.optimizer.state[flat] = state_of(zeros, 0)
        if not self._sharded:
            self.optimizer._lazy_init_hp_params_optimizer_state()

    def _flat_weights(self) -> list[tuple[torch.Tensor, list[str]]]:
        """(flat fp32 tensor, names of the weights in it): ZeRO's tensors, which the optimizer steps."""
        zero, names = self.optimizer, {weight: name for name, weight in self.module.named_parameters()}
        flats = zero.fp32_partitioned_groups_flat if self._sharded else zero.single_partition_of_fp32_groups
        groups = zero.fp16_groups if self._sharded else zero.bit16_groups
        return [(flat, [names[weight] for weight in group]) for flat, group in zip(flats, groups)]

    def _sliced_matrices(self) -> dict[torch.Tensor, list[Sliced]]:
        """{flat tensor: the hidden matrices in it}. Every worker calls it."""
        hidden, found = hidden_matrices(self.module), {}
        for flat, names in self._flat_weights():
            if names[0] not in hidden:  # a flat tensor holds one group of the optimizer
                continue
            weights = [self.module.get_parameter(name) for name in names]
            places, everyone = self._places(weights), [None] * dist.get_world_size()
            dist.all_gather_object(everyone, [size for _, size in places])
            shapes = [tuple(weight.ds_shape if self._sharded else weight.shape) for weight in weights]
            found[flat] = [
                Sliced(shape, hidden[name], offset, sizes)
                for shape, name, (offset, _), sizes in zip(shapes, names, places, zip(*everyone), strict=True)
            ]
            assert all(sum(matrix.sizes) == math.prod(matrix.shape) for matrix in found[flat])
        return found

    def _places(self, weights: list[nn.Parameter]) -> list[tuple[int, int]]:
        """(offset, size) of this worker's slice of each weight, in the flat tensor of these weights."""
        if self._sharded:
            sizes, rank = [weight.ds_tensor.numel() for weight in weights], dist.get_rank()
            held = [min(size, max(0, weight.ds_numel - rank * size)) for weight, size in zip(weights, sizes)]
            return list(zip(accumulate(sizes, initial=0), held))  # padding of the last slices is not held
        slices = [weight._hp_mapping and weight._hp_mapping.hp_fragment_address for weight in weights]
        return [(part.start, part.numel) if part else (0, 0) for part in slices]

    def _gather(self, shard: torch.Tensor) -> torch.Tensor:
        world = dist.get_world_size()
        whole = torch.empty(world * shard.numel(), dtype=shard.dtype, device=shard.device)
        dist.all_gather_into_tensor(whole, shard.contiguous())
        return whole

    def _slice(self, whole: torch.Tensor, parameter: nn.Parameter) -> torch.Tensor:
        """This worker's slice of a whole tensor, padded with zeros if the tensor does not split evenly."""
        size = parameter.ds_tensor.numel()
        start = dist.get_rank() * size
        piece = whole.reshape(-1)[start : start + size].to(self.device, torch.float32)
        return nn.functional.pad(piece, (0, size - piece.numel()))


def _import_deepspeed():
    try:
        import deepspeed
    except ImportError as error:
        raise UserError(
            f"train.engine=deepspeed, but DeepSpeed cannot be imported ({error}); "
            "install it, or write train.engine=torch"
        ) from error
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # DeepSpeed uses deprecated names of collectives, and torch would warn at every call.
    warnings.filterwarnings(
        "ignore", message=r"`torch.distributed.\w+` is deprecated", category=FutureWarning
    )
    if deepspeed.get_accelerator().device_name() == "cpu":
        # Without this, every start on a CPU compiles a shared-memory collective.
        # That takes a C++ compiler and half a minute.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def _deepspeed_config(train: TrainConfig, micro_batch: int, world: int) -> dict:
    zero = {"stage": train.zero_stage, "overlap_comm": True, "contiguous_gradients": True}
    zero["stage3_param_persistence_threshold"] = WHOLE_BELOW
    return {
        "train_batch_size": micro_batch * train.accumulation_steps * world,
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": train.accumulation_steps,
        "gradient_clipping": train.gradient_clip,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**12,
    }
