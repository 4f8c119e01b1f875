"""The last step of MDSA's decoder: convolutions at the picture's own resolution, across every border.

It is cheap and local. It removes the traces of blocks and patches, and adds detail that follows from
neighbouring pixels. Pictures are refined in space and time; the mel images of a clip are laid end to end and
refined as one picture. Not in the paper: our choice, measured in docs/experiments.md. Not here: the decoder
before it (`streams.py`). Letters: B clips, C image channels, T frames, R S rows and columns of an image.
"""

import math
from collections.abc import Sequence

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from proav.config import RefinerConfig
from proav.models.layers import full_precision, map_flops, run_layer


class ConvolutionBlock(nn.Module):
    """x + f(x) for x [B, C, T, R, S]. f is a 3x3 convolution in each frame and SiLU; with `frames`, one of
    size 3 across frames and SiLU follow.

    Both are 2D convolutions: the first takes frames as a batch, the second takes time as rows and all places
    of a frame as columns. On CPUs this is twice as fast as 3D.
    """

    def __init__(self, width: int, *, frames: bool) -> None:
        super().__init__()
        self.in_frame = nn.Conv2d(width, width, 3, padding=1)
        self.across = nn.Conv2d(width, width, (3, 1), padding=(1, 0)) if frames else None

    def forward(self, x_BCTRS: Tensor) -> Tensor:
        update = F.silu(each_frame(self.in_frame, x_BCTRS))
        if self.across is not None:
            update = F.silu(self.across(update.flatten(3))).view_as(x_BCTRS)
        return x_BCTRS + update


def each_frame(convolution: nn.Module, x_BCTRS: Tensor) -> Tensor:
    """A 2D convolution of each frame of a clip."""
    frames = convolution(rearrange(x_BCTRS, "b c t r s -> (b t) c r s"))
    return rearrange(frames, "(b t) c r s -> b c t r s", b=len(x_BCTRS))


class Refiner(nn.Module):
    """images + net(images): a U-Net whose last layer is zero-initialized: at first images pass bit for bit.

    Pixels are gathered in squares of `patch` before the first layer and laid out again after the last. It has
    `levels` resolutions, and its width doubles at each.
    `sound`: the images are mel images [B, 1, T, M, S], refined as one picture of M rows and T * S columns.
    """

    def __init__(self, channels: int, config: RefinerConfig, *, sound: bool) -> None:
        super().__init__()
        self.patch, self.sound = config.patch, sound
        values = channels * config.patch**2
        widths = [config.width * 2**level for level in range(config.levels)]
        self.enter = nn.Conv2d(values, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(ConvolutionBlock(width, frames=not sound) for width in widths)
        self.down = nn.ModuleList(nn.Conv2d(a, b, 2, stride=2) for a, b in zip(widths, widths[1:]))
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, stride=2) for a, b in zip(widths, widths[1:]))
        self.up_blocks = nn.ModuleList(ConvolutionBlock(width, frames=not sound) for width in widths[:-1])
        self.leave = Float32Convolution(widths[0], values, 3, padding=1)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, images_BCTRS: Tensor, *, recompute: bool = False) -> Tensor:
        """float32 images of the same shape. recompute: keep only each block's input for the backward pass."""
        frames, p = images_BCTRS.shape[2], self.patch
        whole = rearrange(images_BCTRS, "b c t r s -> b c 1 r (t s)") if self.sound else images_BCTRS
        gathered = rearrange(whole, "b c t (r p) (s q) -> b (c p q) t r s", p=p, q=p)
        x = each_frame(self.enter, gathered.to(self.enter.weight.dtype))
        skipped = []
        for block, down in zip(self.down_blocks, self.down):
            skipped.append(run_layer(block, x, recompute=recompute))
            x = each_frame(down, skipped[-1])
        x = run_layer(self.down_blocks[-1], x, recompute=recompute)
        for level in reversed(range(len(self.up))):
            x = run_layer(
                self.up_blocks[level], skipped[level] + each_frame(self.up[level], x), recompute=recompute
            )
        update = rearrange(each_frame(self.leave, x), "b (c p q) t r s -> b c t (r p) (s q)", p=p, q=p)
        refined = whole.float() + update
        return rearrange(refined, "b c 1 r (t s) -> b c t r s", t=frames) if self.sound else refined

    def flops(self, shape: Sequence[int]) -> int:
        """FLOPs for one clip of images of this shape, (C, T, R, S)."""
        places = math.prod(shape[1:]) // self.patch**2
        total = map_flops(self.enter, places) + map_flops(self.leave, places)
        for level, block in enumerate(self.down_blocks):
            total += map_flops(block, places // 4**level)
        for level, (block, down, up) in enumerate(zip(self.up_blocks, self.down, self.up)):
            total += map_flops(block, places // 4**level)
            total += map_flops(down, places // 4 ** (level + 1)) + map_flops(up, places // 4 ** (level + 1))
        return total


class Float32Convolution(nn.Conv2d):
    """A convolution that computes in float32 even under autocast or with bf16 weights.

    It is for values that leave the network.
    """

    def forward(self, x: Tensor) -> Tensor:
        with full_precision(x.device):
            return F.conv2d(x.float(), self.weight.float(), self.bias.float(), padding=self.padding)
