"""Weights that belong to single rows, columns or frames of a clip, and the same weights for other sizes.

A kernel over the eight rows of a block becomes one over sixteen: what it draws is drawn larger. A model can
so start from one that was trained on clips of another size (`proav/train/start.py`).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from proav.models.layers import linear_resize_matrix


@dataclass(frozen=True)
class Sampled:
    """Which axes of a weight run along rows, columns or frames of a clip.

    Modules name such weights in their attribute `sampled`, {name of the weight: Sampled}.
    """

    shape: tuple[int, ...]
    """The weight's shape with all these axes apart."""
    axes: tuple[int, ...]
    """Indices of these axes in `shape`."""
    reads: bool = False
    """Whether the clip's values are multiplied with the weight and summed; else the weight draws values."""
    extra: int = 0
    """Last rows of the weight that belong to no sample; `shape` does not count them."""


def sampled_weights(model: nn.Module) -> dict[str, Sampled]:
    """{name in the state dict: Sampled} of all of a model's weights that depend on the clip's size."""
    return {
        f"{prefix}.{name}".lstrip("."): own
        for prefix, module in model.named_modules()
        for name, own in getattr(module, "sampled", {}).items()
    }


def resize_matrix(num_from: int, num_to: int) -> Tensor:
    """U [num_to, num_from], float64: linear interpolation; if it shrinks, the least-squares inverse of that.

    So what is enlarged and shrunk again has not changed.
    """
    if num_to >= num_from:
        return linear_resize_matrix(num_from, num_to)
    return torch.linalg.pinv(linear_resize_matrix(num_to, num_from))


def resized(weight: Tensor, theirs: Sampled, ours: Sampled) -> Tensor:
    """A weight of one size for another size, float32, with its axes apart as in `ours.shape`.

    With U the matrix that resizes a clip along an axis, a weight that draws, S, becomes U S, and one that
    reads, A, becomes A U^+. So A U^+ (U x) = A x: in an enlarged clip the model finds what it found in the
    clip itself (the rule of FlexiViT, Beyer et al., 2023, for patch embeddings).

    weight: of the trained model.
    theirs, ours: its axes in the trained model and in the one that starts.
    """
    rows = len(weight) - theirs.extra
    values = weight[:rows].double().reshape(theirs.shape)
    for axis in ours.axes:
        before, after = theirs.shape[axis], ours.shape[axis]
        matrix = resize_matrix(after, before).T if ours.reads else resize_matrix(before, after)
        if before != after:
            values = torch.tensordot(values, matrix, dims=([axis], [1])).movedim(-1, axis)
    return torch.cat([values.float(), weight[rows:].float()]) if ours.extra else values.float()


def resized_weights(
    weights: Mapping[str, Tensor], theirs: nn.Module, ours: nn.Module
) -> tuple[dict[str, Tensor], list[str]]:
    """(weights of a trained model for one of another size, names of those that were resized).

    The rows of a resized block kernel keep their mean square, because Muon's steps have one size. The
    kernel's gain takes the factor.

    weights: of the trained model.
    theirs: a model of the trained one's size; its weights are not read.
    ours: the model that starts.
    """
    before, after = sampled_weights(theirs), sampled_weights(ours)
    found, changed, shapes = dict(weights), [], ours.state_dict()
    for name in after:
        if name not in weights or before[name] == after[name]:
            continue
        made = resized(weights[name], before[name], after[name]).reshape(shapes[name].shape)
        gain, powers = name.removesuffix("weight") + "gain", (_row_power(weights[name]), _row_power(made))
        if gain in weights and all(powers):  # else the kernel is zero
            factor = (powers[0] / powers[1]).sqrt()
            made, found[gain] = factor * made, weights[gain] / factor
        found[name] = made
        changed.append(name)
    return found, changed


def _row_power(matrix: Tensor) -> Tensor:
    """Mean squared length of the rows."""
    return matrix.float().square().sum(1).mean()
