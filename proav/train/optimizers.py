"""AdamW, or Muon for the hidden matrices and AdamW for all other weights; one optimizer object in both cases.

Learning rates are in `schedule.py`, gradients and their clipping in `engines/`. The models say which weights
are hidden matrices (hidden_map in `proav/models/layers.py`). Letters: N matrices, R rows, C columns.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from proav.config import TrainConfig
from proav.errors import CheckpointError
from proav.models.layers import hidden_matrices

MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's state of a weight."""
MUON_MOMENTS = ("momentum_buffer",)
"""Muon's state of a hidden matrix."""

QUINTIC, NUM_ITERATIONS, SMALLEST_NORM = (3.4445, -4.7750, 2.0315), 5, 1e-7
"""The Newton-Schulz iteration of Muon (Keller Jordan and others, 2024)."""


def newton_schulz(matrices_NRC: Tensor, dtype: torch.dtype) -> Tensor:
    """Brings each matrix G = U S V' near U V'.

        X <- G / |G|_F, then five times X <- a X + (b A + c A A) X with A = X X',   (a, b, c) = QUINTIC

    Singular values above about |G|_F / 100 are brought to between 0.68 and 1.14. From Jordan and others,
    2024, https://kellerjordan.github.io/posts/muon.

    dtype: of the matrix products; bf16 suffices.
    """
    a, b, c = QUINTIC
    tall = matrices_NRC.shape[1] > matrices_NRC.shape[2]
    x = (matrices_NRC.mT if tall else matrices_NRC).to(dtype)
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=SMALLEST_NORM)
    for _ in range(NUM_ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def orthogonalized(direction_RC: Tensor, parts: int, dtype: torch.dtype) -> Tensor:
    """Muon's update [R, C] of a weight. Its `parts` matrices, stacked along the rows, are treated separately.

    newton_schulz(part) * sqrt(max(1, r / C)), r = R / parts. The factor is Jordan's.
    """
    rows, columns = direction_RC.shape
    update_NRC = newton_schulz(direction_RC.reshape(parts, rows // parts, columns), dtype)
    return update_NRC.reshape(rows, columns).float() * math.sqrt(max(1, rows / parts / columns))


class Orthogonalizer(Protocol):
    """Orthogonalizes the matrices in an optimizer's tensors; a class for each layout of the tensors."""

    def __call__(self, parameters: list[Tensor], directions: list[Tensor]) -> None:
        """Overwrites `directions` with the updates. Every worker calls it.

        directions: laid out as `parameters`.
        """


class WholeMatrices:
    """For whole matrices on every worker: each worker orthogonalizes a share and sends it to the others.

    parts: {weight: number of matrices stacked in it}.
    """

    def __init__(self, parts: dict[Tensor, int], dtype: torch.dtype) -> None:
        self.parts, self.dtype = parts, dtype
        self.rank, self.world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)

    def __call__(self, parameters: list[Tensor], directions: list[Tensor]) -> None:
        moving = torch.stack(
            torch._foreach_norm(directions)
        ).tolist()  # a weight without a gradient has nothing to update
        matrices = [pair for pair, norm in zip(zip(parameters, directions, strict=True), moving) if norm]
        matrices.sort(key=lambda pair: -pair[1].numel())
        for start in range(0, len(matrices), self.world):  # a round: matrices of similar size, one per worker
            together = matrices[start : start + self.world]
            if self.rank < len(together):
                weight, mine = together[self.rank]
                mine.copy_(orthogonalized(mine, self.parts[weight], self.dtype))
            for owner, (_, update) in enumerate(together if self.world > 1 else ()):
                dist.broadcast(update, owner)


@dataclass(frozen=True)
class Sliced:
    """A matrix in slices on the workers, in order of rank; each slice is inside a flat tensor."""

    shape: tuple[int, int]
    parts: int
    """Matrices stacked in it."""
    offset: int
    """Where this worker's slice begins in its flat tensor."""
    sizes: tuple[int, ...]
    """Elements of the matrix on each worker."""

    @property
    def work(self) -> int:
        """Number of multiplications of its orthogonalization, up to a constant factor."""
        rows, columns = self.shape
        return rows * columns * min(rows // self.parts, columns)


class SlicedMatrices:
    """For slices of matrices in flat tensors, as in ZeRO: each worker orthogonalizes a share of the matrices.

    In a round each worker gathers one matrix from the workers that hold slices of it, and sends the updates
    back. If a matrix is whole on one worker, it stays there. The slicing does not change results.

    matrices: {flat tensor: its matrices}, with the same matrices in the same order on all workers.
    """

    def __init__(self, matrices: dict[Tensor, list[Sliced]], dtype: torch.dtype) -> None:
        self.dtype, self.rank = dtype, dist.get_rank()
        self.rounds = {flat: share_out(sliced, dist.get_world_size()) for flat, sliced in matrices.items()}

    def __call__(self, parameters: list[Tensor], directions: list[Tensor]) -> None:
        for flat, direction in zip(parameters, directions, strict=True):
            for matrices in self.rounds[flat]:
                self._round(direction, matrices)

    def _round(self, direction: Tensor, matrices: tuple[Sliced | None, ...]) -> None:
        """Orthogonalizes one matrix per worker; matrices: one for each worker, or None."""
        mine = matrices[self.rank]
        held = [matrix.sizes[self.rank] if matrix else 0 for matrix in matrices]
        slices = [direction.narrow(0, matrix.offset, size) for matrix, size in zip(matrices, held) if matrix]
        wanted = mine.sizes if mine else (0,) * len(matrices)
        apart = any(matrix and matrix.sizes[rank] < sum(matrix.sizes) for rank, matrix in enumerate(matrices))
        whole = _exchange(torch.cat(slices), held, wanted) if apart else torch.cat(slices)
        if mine:
            whole = orthogonalized(whole.view(mine.shape), mine.parts, self.dtype).flatten()
        updates = _exchange(whole, wanted, held) if apart else whole
        for part, update in zip(slices, updates.split([len(part) for part in slices]), strict=True):
            part.copy_(update)


def share_out(matrices: list[Sliced], world: int) -> list[tuple[Sliced | None, ...]]:
    """Rounds of at most one matrix per worker; each matrix goes to the worker with the least work so far.

    A worker gets a matrix only if no other worker holds more than twice as much of it.

    world: number of workers.
    """
    owned, load = [[] for _ in range(world)], [0] * world
    for matrix in sorted(matrices, key=lambda matrix: -matrix.work):  # stable: equal on all workers
        near = [rank for rank, size in enumerate(matrix.sizes) if 2 * size >= max(matrix.sizes)]
        owner = min(near, key=load.__getitem__)
        owned[owner].append(matrix)
        load[owner] += matrix.work
    return list(zip_longest(*owned))


def _exchange(sent: Tensor, given: Sequence[int], wanted: Sequence[int]) -> Tensor:
    """Cuts `sent` into given[rank] elements for each worker.

    Returns wanted[rank] elements from each, joined.
    """
    received = sent.new_empty(sum(wanted))
    dist.all_to_all_single(received, sent, list(wanted), list(given))
    return received


class MuonAdamW(torch.optim.AdamW):
    """Muon for the groups of hidden matrices (those with a `momentum`), AdamW for the others.

        M <- m M + (1 - m) G                                                    m = momentum
        W <- (1 - lr weight_decay) W - lr orthogonalized(m M + (1 - m) G)       Nesterov's form

    It is one object because ZeRO takes one optimizer, and replaces the weights by its own flat slices.
    """

    def __init__(self, groups: list[dict], orthogonalize: Orthogonalizer, **settings) -> None:
        super().__init__(groups, **settings)
        self.orthogonalize = orthogonalize

    @torch.no_grad()
    def step(self, closure=None) -> None:
        assert closure is None
        for group in self.param_groups:
            if "momentum" in group:
                self._step_matrices(group)
        super().step()  # skips weights without a gradient; the hidden matrices have none any more

    def _step_matrices(self, group: dict) -> None:
        """One step of Muon; it also clears the gradients."""
        parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
        directions = []
        for parameter in parameters:
            gradient, parameter.grad = parameter.grad, None
            state = self.state[parameter]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(parameter)
            state["momentum_buffer"].lerp_(gradient, 1 - group["momentum"])
            directions.append(gradient.lerp_(state["momentum_buffer"], group["momentum"]))
        if parameters:
            self.orthogonalize(parameters, directions)
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(parameters, directions, alpha=-group["lr"])


def make_optimizer(module: nn.Module, train: TrainConfig) -> torch.optim.AdamW:
    """The optimizer that `train.optimizer` names, for the trained weights; each group names its rate."""
    trained = {name: weight for name, weight in module.named_parameters() if weight.requires_grad}
    settings = {"lr": train.learning_rate, "betas": train.betas, "weight_decay": train.weight_decay}
    if train.optimizer == "adamw":
        return torch.optim.AdamW([{"params": list(trained.values()), "rate": "learning_rate"}], **settings)
    parts = {trained[name]: parts for name, parts in hidden_matrices(module).items() if name in trained}
    assert parts, f"{type(module).__name__} has no hidden matrices for Muon to train"
    others = [weight for weight in trained.values() if weight not in parts]
    muon = {"momentum": train.muon_momentum, "weight_decay": train.muon_weight_decay}
    groups = [
        {"params": others, "rate": "learning_rate"},
        {"params": list(parts), "rate": "muon_learning_rate", **muon},
    ]
    return MuonAdamW(groups, WholeMatrices(parts, product_dtype(train)), **settings)


def product_dtype(train: TrainConfig) -> torch.dtype:
    """The dtype of Newton-Schulz: float32 if the forward pass is float32, else bfloat16.

    The range of float16 is too small.
    """
    return torch.float32 if train.precision == "fp32" else torch.bfloat16


def state_of(moments: dict[str, Tensor], steps: int) -> dict[str, Tensor]:
    """The optimizer's state of a weight with these moments after `steps` steps; AdamW's has the steps too."""
    return moments | ({"step": torch.tensor(float(steps))} if MOMENTS[0] in moments else {})


def moments_of(module: nn.Module, train: TrainConfig) -> dict[str, tuple[str, ...]]:
    """{name of a trained weight: names of its optimizer state}; a checkpoint keeps them as "MOMENT.NAME"."""
    hidden = hidden_matrices(module) if train.optimizer == "muon" else {}
    trained = (name for name, weight in module.named_parameters() if weight.requires_grad)
    return {name: MUON_MOMENTS if name in hidden else MOMENTS for name in trained}


def check_moments(tensors: dict[str, Tensor], module: nn.Module, train: TrainConfig) -> None:
    """Raises CheckpointError if saved tensors lack optimizer state that `module` needs."""
    wanted = [f"{moment}.{name}" for name, moments in moments_of(module, train).items() for moment in moments]
    missing = [name for name in wanted if name not in tensors]
    if missing:
        raise CheckpointError(
            f"the checkpoint lacks {len(missing)} of {len(wanted)} optimizer tensors, such as {missing[0]}: "
            f"train.optimizer={train.optimizer} cannot resume; choose another run_dir=DIR to start anew"
        )
