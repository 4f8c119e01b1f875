"""Engines step the optimizer on one or many workers: plain data parallel in torch, or ZeRO with DeepSpeed.

All keep fp32 weights and fp32 optimizer state. The precision setting is the autocast dtype of the model's
forward pass. The saved state of all engines is the same: whole fp32 tensors by name. It does not depend on
world size, stage or engine.
"""

import torch
from torch import nn

from proav.config import TrainConfig
from proav.train.engines.base import Engine, NonFiniteError, average_gradients
from proav.train.engines.data_parallel import TorchEngine
from proav.train.engines.zero import DeepSpeedEngine

__all__ = ["DeepSpeedEngine", "Engine", "NonFiniteError", "TorchEngine", "average_gradients", "make_engine"]


def make_engine(
    module: nn.Module, train: TrainConfig, *, device: torch.device, micro_batch: int, log=print
) -> Engine:
    """The engine that `train.engine` names.

    ZeRO stage 0 shards nothing, so the plain torch engine is used instead.

    module: the model, with its starting weights; it is moved to `device`.
    train: the training section of the model.
    device: this worker's.
    micro_batch: clips of one forward pass on one worker.
    log: takes lines for people.
    Raises UserError if DeepSpeed is needed but not installed.
    """
    if train.engine == "torch":
        return TorchEngine(module, train, device=device)
    if train.zero_stage == 0:
        log("train.zero_stage=0 shards nothing: the plain torch engine is used")
        return TorchEngine(module, train, device=device)
    return DeepSpeedEngine(module, train, device=device, micro_batch=micro_batch)
