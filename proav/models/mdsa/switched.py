"""Cells that choose their basis: what the linear planes leave is coded by one of a few kinds of blocks.

A still background needs numbers for fine detail, a moving thing for changes in time. A steady tone needs
other numbers than a blow. A single linear code for all cells would waste half of its numbers. So each cell
of a stream's first plane names the basis that codes it best. The number of the basis travels with the
coefficients, in a channel of its own. The classical form is classified transform coding; the bases are fitted
as in a mixture of principal components. Not in the paper: our choice, measured in docs/experiments.md. Not
here: the linear planes, which code the whole clip first and cut the blocks (`linear_planes.py`). Letters: B
images, H W rows and columns of blocks, C channels of a cell, D of a basis, K bases, L blocks, V values of a
block.
"""

import torch
from torch import Tensor, nn

from proav.models.mdsa.blocks import BlockKernels, principal_components, set_blocks

FIT_ROUNDS = 6
"""Rounds of choosing and fitting. Four more changed nothing to 0.01 dB."""


class SwitchedCells(nn.Module):
    """Blocks [B, H, W, V] <-> cells [B, 1 + D, H, W]: the number of the basis, and the coefficients in it.

    A cell's basis is the one that comes nearest to its block. Basis k = 0 .. K - 1 is stored as
    u = (k - (K - 1) / 2) / sqrt((K^2 - 1) / 12), of unit variance if all bases are equally common. A value
    between those of two bases mixes both in proportion. Training moves the bases; the choice itself carries
    no gradient.
    """

    def __init__(self, channels: int, num_bases: int, values: int) -> None:
        """channels: 1 + D. values: V."""
        super().__init__()
        self.analysis = nn.ModuleList(BlockKernels(channels - 1, values) for _ in range(num_bases))
        self.synthesis = nn.ModuleList(BlockKernels(channels - 1, values) for _ in range(num_bases))

    @property
    def num_bases(self) -> int:
        return len(self.analysis)

    @property
    def spacing(self) -> float:
        """Distance between the values of neighbouring bases."""
        return ((self.num_bases**2 - 1) / 12) ** -0.5

    def analyse(self, blocks_BHWV: Tensor) -> Tensor:
        kernels = torch.cat([part() for part in self.analysis])
        coded_BHWKD = (blocks_BHWV @ kernels.T).unflatten(-1, (self.num_bases, -1))
        chosen_BHW1 = self._nearest(blocks_BHWV, coded_BHWKD.detach())
        index = chosen_BHW1[..., None].expand(-1, -1, -1, -1, coded_BHWKD.shape[-1])
        value_BHW1 = self.spacing * (chosen_BHW1 - (self.num_bases - 1) / 2)
        return torch.cat([value_BHW1, coded_BHWKD.gather(3, index)[..., 0, :]], dim=-1).movedim(-1, 1)

    @torch.no_grad()
    def _nearest(self, blocks_BHWV: Tensor, coded_BHWKD: Tensor) -> Tensor:
        """int64 [B, H, W, 1]: for each block the basis of least squared error."""
        errors = [
            (blocks_BHWV - codes_BHWD @ part()).square().sum(-1, keepdim=True)
            for codes_BHWD, part in zip(coded_BHWKD.unbind(3), self.synthesis, strict=True)
        ]
        return torch.stack(errors).argmin(0)

    def synthesize(self, cells: Tensor) -> Tensor:
        cells_BHWC, numbers_K = cells.movedim(1, -1), torch.arange(self.num_bases, device=cells.device)
        place_BHW1 = (cells_BHWC[..., :1] / self.spacing + (self.num_bases - 1) / 2).clamp(
            0, self.num_bases - 1
        )
        share_BHWK = (1 - (place_BHW1 - numbers_K).abs()).clamp(min=0)
        shared = (share_BHWK[..., None] * cells_BHWC[..., None, 1:]).flatten(-2)
        return shared @ torch.cat([part() for part in self.synthesis])

    def flops(self, cells: int) -> int:
        """FLOPs of all bases for `cells` cells, in one direction. Choosing the basis costs the same again."""
        return 2 * cells * sum(part.weight.numel() for part in self.analysis)

    @torch.no_grad()
    def fit(self, blocks_LV: Tensor, motion_L: Tensor, scale: float) -> None:
        """Fills the bases from the images' blocks.

        Two steps alternate: each basis takes the principal components of the blocks that chose it, and each
        block chooses the basis that leaves least of it. At first the 1 / K of the blocks with the least
        motion share a basis, the next 1 / K another, and so on. Codes are divided by `scale`.
        """
        chosen_L = torch.empty_like(motion_L, dtype=torch.long)
        chosen_L[motion_L.argsort()] = (
            torch.arange(len(motion_L), device=motion_L.device) * self.num_bases // len(motion_L)
        )
        channels = len(self.analysis[0].weight)
        bases = [blocks_LV.new_zeros(channels, blocks_LV.shape[1])] * self.num_bases
        for _ in range(FIT_ROUNDS):
            for number in range(self.num_bases):
                if (chosen_L == number).any():  # else it stays as it was
                    bases[number] = principal_components(blocks_LV[chosen_L == number], channels)[0]
            kept_KL = torch.stack([(blocks_LV @ basis_DV.T).square().sum(1) for basis_DV in bases])
            chosen_L = kept_KL.argmax(0)
        for analysis, synthesis, basis_DV in zip(self.analysis, self.synthesis, bases, strict=True):
            set_blocks(analysis, synthesis, basis_DV, scale)
