"""The last step of MDSA's decoder: convolutions at the picture's own resolution, which see across every border of patches and frames.

Cheap and local: it mends what windows and patches leave, and adds the detail that neighbouring pixels tell of each other. Pictures are refined
in space and time; the mel images of a clip, laid end to end, as one picture. Not in the paper: our choice, measured in docs/experiments.md.
B clips, C image channels, T frames, R S rows and columns of an image.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from proav.config import RefinerConfig
from proav.models.layers import full_precision, run_layer

IN_FRAME, ACROSS = (1, 3, 3), (3, 1, 1)


class ConvolutionBlock(nn.Module):
    """x + f(x), f: 3x3 in each frame, SiLU, 3 across frames, SiLU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_frame = nn.Conv3d(width, width, IN_FRAME, padding=(0, 1, 1))
        self.across = nn.Conv3d(width, width, ACROSS, padding=(1, 0, 0))

    def forward(self, x_BCTRS: Tensor) -> Tensor:
        return x_BCTRS + F.silu(self.across(F.silu(self.in_frame(x_BCTRS))))


class Refiner(nn.Module):
    """images + net(images): a U-Net of `levels` resolutions whose last layer starts at zero, so that at first images pass to the bit.

    Pixels are gathered in squares of `patch` before the first layer and laid out again after the last; the width doubles a level.
    `sound`: the images are mel images [B, 1, T, M, S], refined as one picture of M rows and T * S columns.
    """

    def __init__(self, channels: int, config: RefinerConfig, *, sound: bool) -> None:
        super().__init__()
        self.patch, self.sound = config.patch, sound
        values, widths = channels * config.patch**2, [config.width * 2**level for level in range(config.levels)]
        self.enter = nn.Conv3d(values, widths[0], IN_FRAME, padding=(0, 1, 1))
        self.down_blocks = nn.ModuleList(ConvolutionBlock(width) for width in widths)
        self.down = nn.ModuleList(nn.Conv3d(a, b, (1, 2, 2), stride=(1, 2, 2)) for a, b in zip(widths, widths[1:]))
        self.up = nn.ModuleList(nn.ConvTranspose3d(b, a, (1, 2, 2), stride=(1, 2, 2)) for a, b in zip(widths, widths[1:]))
        self.up_blocks = nn.ModuleList(ConvolutionBlock(width) for width in widths[:-1])
        self.leave = nn.Conv3d(widths[0], values, IN_FRAME, padding=(0, 1, 1))
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, images_BCTRS: Tensor, *, recompute: bool = False) -> Tensor:
        """float32 images of the same shape. recompute: keep only each block's input for the backward pass."""
        frames, p = images_BCTRS.shape[2], self.patch
        whole = rearrange(images_BCTRS, "b c t r s -> b c 1 r (t s)") if self.sound else images_BCTRS
        x = self.enter(rearrange(whole, "b c t (r p) (s q) -> b (c p q) t r s", p=p, q=p).to(self.enter.weight.dtype))
        skipped = []
        for block, down in zip(self.down_blocks, self.down):
            skipped.append(run_layer(block, x, recompute=recompute))
            x = down(skipped[-1])
        x = run_layer(self.down_blocks[-1], x, recompute=recompute)
        for level in reversed(range(len(self.up))):
            x = run_layer(self.up_blocks[level], skipped[level] + self.up[level](x), recompute=recompute)
        with full_precision(x.device):  # what leaves the network leaves it in float32
            update = F.conv3d(x.float(), self.leave.weight.float(), self.leave.bias.float(), padding=self.leave.padding)
        refined = whole.float() + rearrange(update, "b (c p q) t r s -> b c t (r p) (s q)", p=p, q=p)
        return rearrange(refined, "b c 1 r (t s) -> b c t r s", t=frames) if self.sound else refined
