"""Cells that choose their basis: what the linear planes leave, coded by one of a few kinds of windows.

Still ground wants its numbers spent on detail, moving things on time, a steady tone otherwise than a blow:
one linear code for all spends half of its numbers badly. So each cell of a stream's first plane names the
basis that codes it best, and the number of the basis travels with the coefficients, in a channel of its own.
The classical form is classified transform coding; the bases are fitted as in a mixture of principal
components. Not in the paper: our choice, measured in docs/experiments.md. Not here: the linear planes, which
code the whole clip first (`linear_planes.py`). B clips, C channels of the images that a plane is cut from, R
S their rows and columns, H W rows and columns of cells, D channels of a basis, K bases, L blocks, V values of
a block.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from proav.models.lapping import Lapping
from proav.models.windows import WindowKernels, analysed, principal_components, set_windows, synthesized

FIT_ROUNDS = 6
"""Rounds of choosing and fitting: four more changed nothing to 0.01 dB."""


class SwitchedCells(nn.Module):
    """images [B, C, R, S] <-> cells [B, 1 + D, H, W]: the number of the basis, and the coefficients in it.

    A cell's basis is the one whose windows, laid over the whole image, come nearest in that cell. It is told
    by u = (k - (K - 1) / 2) / sqrt((K^2 - 1) / 12), k = 0 .. K - 1, of unit variance where all bases are
    equally common. Between the values of two bases both share in proportion. Training moves the bases; the
    choice itself carries no gradient.
    """

    def __init__(
        self,
        channels: int,
        num_bases: int,
        window: tuple[int, int, int],
        stride: tuple[int, int],
        margin: tuple[int, int],
    ) -> None:
        """window: channels, rows and columns of what a cell is cut from, `margin` beyond it included."""
        super().__init__()
        self.stride, self.margin, shape = stride, margin, (channels - 1, *window)
        self.lapping = Lapping(stride, margin)
        self.analysis = nn.ModuleList(WindowKernels(shape, stride, margin) for _ in range(num_bases))
        self.synthesis = nn.ModuleList(WindowKernels(shape, stride, margin) for _ in range(num_bases))

    @property
    def num_bases(self) -> int:
        return len(self.analysis)

    @property
    def spacing(self) -> float:
        """Between the values of neighbouring bases."""
        return ((self.num_bases**2 - 1) / 12) ** -0.5

    def analyse(self, images: Tensor) -> Tensor:
        kernels = torch.cat([part() for part in self.analysis])  # one convolution is a third faster than K
        coded = analysed(images, kernels, self.stride, self.margin)
        coded_BKDHW = coded.unflatten(1, (self.num_bases, -1))
        chosen_B1HW = self._nearest(images, coded_BKDHW.detach())
        index = chosen_B1HW[:, None].expand(-1, -1, coded_BKDHW.shape[2], -1, -1)
        value_B1HW = self.spacing * (chosen_B1HW - (self.num_bases - 1) / 2)
        return torch.cat([value_B1HW, coded_BKDHW.gather(1, index)[:, 0]], dim=1)

    @torch.no_grad()
    def _nearest(self, images: Tensor, coded_BKDHW: Tensor) -> Tensor:
        """int64 [B, 1, H, W]: in each cell the basis of least squared error, counted in lapped images.

        There a cell's block is its own: what its neighbours choose does not matter to it, as the fit has it.
        """
        errors = []
        for cells, part in zip(coded_BKDHW.unbind(1), self.synthesis, strict=True):
            made = synthesized(cells, part(), self.stride, self.margin)
            error = self.lapping(images - made).square().sum(1, keepdim=True)
            errors.append(F.avg_pool2d(error, self.stride))
        return torch.stack(errors).argmin(0)

    def synthesize(self, cells: Tensor) -> Tensor:
        numbers_K = torch.arange(self.num_bases, device=cells.device)
        place_B1HW = (cells[:, :1] / self.spacing + (self.num_bases - 1) / 2).clamp(0, self.num_bases - 1)
        share_BKHW = (1 - (place_B1HW - numbers_K[:, None, None]).abs()).clamp(min=0)
        shared = (share_BKHW[:, :, None] * cells[:, None, 1:]).flatten(1, 2)
        kernels = torch.cat([part() for part in self.synthesis])
        return synthesized(shared, kernels, self.stride, self.margin)

    @torch.no_grad()
    def fit(self, blocks_LV: Tensor, motion_L: Tensor, scale: float) -> None:
        """Fills the bases from the blocks of lapped images.

        By turns each basis takes the principal components of the blocks that chose it, and each block the
        basis that leaves least of it. At first the 1 / K of the blocks with the least motion share a basis,
        and so on. Codes are divided by `scale`.
        """
        chosen_L = torch.empty_like(motion_L, dtype=torch.long)
        chosen_L[motion_L.argsort()] = (
            torch.arange(len(motion_L), device=motion_L.device) * self.num_bases // len(motion_L)
        )
        channels, depth = self.analysis[0].shape[:2]
        bases = [blocks_LV.new_zeros(channels, blocks_LV.shape[1])] * self.num_bases
        for _ in range(FIT_ROUNDS):
            for number in range(self.num_bases):
                if (chosen_L == number).any():  # else it stays as it was
                    bases[number] = principal_components(blocks_LV[chosen_L == number], channels)[0]
            kept_KL = torch.stack([(blocks_LV @ basis_DV.T).square().sum(1) for basis_DV in bases])
            chosen_L = kept_KL.argmax(0)
        rows, columns = self.stride
        for analysis, synthesis, basis_DV in zip(self.analysis, self.synthesis, bases, strict=True):
            set_windows(analysis, synthesis, basis_DV.view(-1, depth, rows, columns), scale)
