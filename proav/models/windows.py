"""Windows: the strided convolutions of a linear code of images, and the components they begin with.

Not here: which windows a plane has (`linear_planes.py`, `switched.py`).
D codes of a cell, V values of a window or block, L blocks.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from proav.models.lapping import extension, folded, mirrored

FIT_POWERS = 4
"""Power iterations of the randomized decomposition: three times as many gained less than 0.01 dB."""


class WindowKernels(nn.Module):
    """The kernels gain * weight of a plane's windows, [D, channels of the images, rows, columns], float32.

    The weight [D, V], V values of a window, has orthonormal rows after the fit. It is a hidden matrix: Muon
    needs half of AdamW's clips, or fewer.
    """

    def __init__(
        self, shape: tuple[int, int, int, int], stride: tuple[int, int], margin: tuple[int, int]
    ) -> None:
        super().__init__()
        self.shape, self.stride, self.margin = shape, stride, margin
        self.weight = nn.Parameter(torch.zeros(shape[0], math.prod(shape[1:])))
        self.gain = nn.Parameter(torch.ones(1))
        self.hidden_parts = 1

    @property
    def kernels(self) -> Tensor:
        return (self.gain.float() * self.weight.float()).view(self.shape)

    def forward(self) -> Tensor:
        return self.kernels


class WindowAnalysis(WindowKernels):
    """Cells of a plane, each the inner products of D kernels with a window of the images.

    A strided convolution in float32.
    """

    def forward(self, images: Tensor) -> Tensor:
        return analysed(images, self.kernels, self.stride, self.margin)


class WindowSynthesis(WindowKernels):
    """Images as the sum of overlapping windows, each a combination of D kernels.

    The transposed convolution, in float32.
    """

    def forward(self, cells: Tensor) -> Tensor:
        return synthesized(cells, self.kernels, self.stride, self.margin)


def analysed(images: Tensor, kernels: Tensor, stride: tuple[int, int], margin: tuple[int, int]) -> Tensor:
    """Inner products of kernels with all windows of the images, which go on mirrored beyond their edges."""
    return F.conv2d(mirrored(images, margin), kernels, stride=stride)


def synthesized(cells: Tensor, kernels: Tensor, stride: tuple[int, int], margin: tuple[int, int]) -> Tensor:
    """The adjoint of `analysed`."""
    return folded(F.conv_transpose2d(cells, kernels, stride=stride), margin)


def set_windows(analysis: WindowKernels, synthesis: WindowKernels, blocks_DCPQ: Tensor, scale: float) -> None:
    """Orthonormal blocks of lapped images as windows: codes are inner products with them over `scale`."""
    rows, columns = (
        extension(side, margin).to(blocks_DCPQ)
        for side, margin in zip(analysis.stride, analysis.margin, strict=True)
    )
    weight_DV = (rows @ blocks_DCPQ @ columns.T).flatten(1)
    for part, gain in ((analysis, 1 / scale), (synthesis, scale)):
        part.weight.copy_(weight_DV)
        part.gain.fill_(gain)


def principal_components(cells_LV: Tensor, channels: int) -> tuple[Tensor, float]:
    """Principal directions [D, V], strongest first, zero beyond what sizes allow; their codes' deviation.

    By a randomized decomposition (Halko, Martinsson, Tropp, 2011) with twice as many trial directions as are
    kept. Its random numbers are the same each time and leave the stream outside as it was.
    """
    trials = min(2 * channels + 8, *cells_LV.shape)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        _, strengths_K, directions_VK = torch.svd_lowrank(cells_LV, q=trials, niter=FIT_POWERS)
    strongest_DV = directions_VK[:, :channels].T
    largest_D1 = strongest_DV.gather(1, strongest_DV.abs().argmax(1, keepdim=True))
    signed_DV = strongest_DV * torch.where(largest_D1 < 0, -1.0, 1.0)  # else arbitrary
    deviation = float(strengths_K[:channels].double().square().sum() / (len(cells_LV) * channels)) ** 0.5
    return F.pad(signed_DV, (0, 0, 0, channels - len(signed_DV))), deviation
