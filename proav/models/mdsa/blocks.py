"""Blocks: the maps of a linear code between blocks and cells, and their first components.

Not here: how blocks are cut (`linear_planes.py`) and overlap (`lapping.py`). Letters: B images, H W rows and
columns of blocks, D codes of a cell, V values of a block, L blocks.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FIT_POWERS = 4
"""Power iterations of the randomized decomposition. Three times as many gained less than 0.01 dB."""


class BlockKernels(nn.Module):
    """The kernels gain * weight of a plane's blocks, [D, V], float32.

    The weight has orthonormal rows after the fit. It is a hidden matrix: with Muon it needs half of AdamW's
    clips, or fewer.
    """

    def __init__(self, codes: int, values: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(codes, values))
        self.gain = nn.Parameter(torch.ones(1))
        self.hidden_parts = 1

    @property
    def kernels(self) -> Tensor:
        return self.gain.float() * self.weight.float()

    def forward(self) -> Tensor:
        return self.kernels


class BlockAnalysis(BlockKernels):
    """Blocks [B, H, W, V] to cells [B, D, H, W]: their inner products with the kernels, in float32."""

    def forward(self, blocks_BHWV: Tensor) -> Tensor:
        return (blocks_BHWV @ self.kernels.T).movedim(-1, 1)


class BlockSynthesis(BlockKernels):
    """Cells [B, D, H, W] to blocks [B, H, W, V]: combinations of the kernels, in float32."""

    def forward(self, cells: Tensor) -> Tensor:
        return cells.movedim(1, -1) @ self.kernels


def set_blocks(analysis: BlockKernels, synthesis: BlockKernels, blocks_DV: Tensor, scale: float) -> None:
    """Sets orthonormal blocks as the kernels: codes are inner products with them, divided by `scale`.

    analysis, synthesis: set in place. blocks_DV: orthonormal rows. scale: of the codes.
    """
    for part, gain in ((analysis, 1 / scale), (synthesis, scale)):
        part.weight.copy_(blocks_DV)
        part.gain.fill_(gain)


def principal_components(cells_LV: Tensor, channels: int) -> tuple[Tensor, float]:
    """(principal directions [D, V], root mean square of their codes).

    The strongest direction is first. Rows beyond what the sizes allow are zero. A randomized decomposition
    (Halko, Martinsson, Tropp, 2011) tries twice as many directions as are kept. Its random numbers are the
    same each time, and the stream outside stays as it was.
    """
    trials = min(2 * channels + 8, *cells_LV.shape)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        _, strengths_K, directions_VK = torch.svd_lowrank(cells_LV, q=trials, niter=FIT_POWERS)
    strongest_DV = directions_VK[:, :channels].T
    largest_D1 = strongest_DV.gather(1, strongest_DV.abs().argmax(1, keepdim=True))
    signed_DV = strongest_DV * torch.where(largest_D1 < 0, -1.0, 1.0)  # the sign would be arbitrary
    deviation = float(strengths_K[:channels].double().square().sum() / (len(cells_LV) * channels)) ** 0.5
    return F.pad(signed_DV, (0, 0, 0, channels - len(signed_DV))), deviation
