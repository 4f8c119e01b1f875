"""A baseline: a cosine transform that keeps only the coefficients that are largest on average.

It stores as many numbers as MDSA, the same coefficients for every clip. It is not in the paper. Letters: B
clips, b clips of a chunk, K coefficients. There may be any further axes: colours, frames, rows and columns of
pictures, mel bins and columns of sound.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from proav.metrics.plane_components import Chunks


@dataclass(frozen=True, eq=False)
class CosineTransform:
    """Calling it keeps the fitted coefficients of an array [B, ...] and clamps the result to [-1, 1]."""

    kept: Tensor
    """int64 [K]: places of the kept coefficients in the flattened array, in order."""

    @classmethod
    @torch.inference_mode()
    def fit(cls, chunks: Chunks, count: int) -> "CosineTransform":
        """The `count` coefficients of largest mean square over the training data; ties go to the first.

        With the mean square instead of the variance, no mean has to be stored, and the result is no worse on
        unseen clips.
        """
        energy = 0.0
        for x in chunks():
            energy = energy + cosine_coefficients(x).square().sum(0, dtype=torch.float64)
        return cls(energy.flatten().argsort(descending=True, stable=True)[:count].sort().values)

    @torch.inference_mode()
    def __call__(self, x: Tensor) -> Tensor:
        coefficients = cosine_coefficients(x)
        left = torch.zeros_like(coefficients).flatten(1)
        left[:, self.kept] = coefficients.flatten(1)[:, self.kept]
        return cosine_coefficients(left.view(x.shape), inverse=True).clamp(-1, 1)


def cosine_coefficients(x: Tensor, *, inverse: bool = False) -> Tensor:
    """Orthonormal DCT-II over all axes but the first, of the same shape; inverse: DCT-III, which undoes it.

    Along an axis of n values: X_k = s_k sum_i x_i cos(pi (2i + 1) k / 2n), s_0 = sqrt(1/n), else sqrt(2/n).
    Over the three colours these are (R + G + B) / sqrt(3), (R - B) / sqrt(2) and (R - 2G + B) / sqrt(6).
    """
    for axis in range(1, x.ndim):
        matrix = cosine_matrix(x.shape[axis]).to(x.dtype)
        x = torch.tensordot(x, matrix, dims=([axis], [0 if inverse else 1])).movedim(-1, axis)
    return x.contiguous()


def cosine_matrix(size: int) -> Tensor:
    """[k, i]: the DCT-II as an orthogonal matrix, float64."""
    k, i = torch.arange(size, dtype=torch.float64)[:, None], torch.arange(size, dtype=torch.float64)
    matrix = math.sqrt(2 / size) * torch.cos(math.pi * (2 * i + 1) * k / (2 * size))
    matrix[0] = math.sqrt(1 / size)
    return matrix
