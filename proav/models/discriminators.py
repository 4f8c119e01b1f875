"""PatchGAN discriminators and adversarial losses for MDSA.

Pictures are judged frame by frame and as a clip, sound as one long spectrogram. Not here: weights and
schedule (`proav/train/autoencoder_step.py`). The losses and the pair of 2D and 3D discriminators are those of
the ancestor PVDM. Group norm instead of its synchronized batch norm is our choice: it works on a CPU and does
not depend on the number of workers. Letters: B clips, T frames, C channels, H W rows and columns, M mel bins,
S mel columns in a frame.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from proav.config import Config
from proav.geometry import ClipGeometry
from proav.models.layers import map_flops

SMALLEST_STRIDED_SIDE = 8
"""An axis is halved only if it has at least so many cells: small clips keep a map of patches to judge."""
LARGEST_WIDTH_FACTOR = 8
"""Channels double with each layer, up to this many times the first layer's."""


class GroupNorm(nn.GroupNorm):
    """Group norm with statistics in float32. The result has the input's precision."""

    def forward(self, x: Tensor) -> Tensor:
        return F.group_norm(x.float(), self.num_groups, self.weight.float(), self.bias.float(), self.eps).to(
            x.dtype
        )


class PatchDiscriminator(nn.Module):
    """A convolutional discriminator of patches: logits of each patch, and the feature maps on the way there.

    It has as many dimensions as `sides`. num_layers layers halve every axis that is long enough (kernel 4,
    stride 2; other axes kernel 3, stride 1). One more layer and the logits keep the size. Leaky ReLU 0.2,
    group norm in all but the first layer (pix2pix, Isola et al., 2017).
    """

    def __init__(self, in_channels: int, sides: Sequence[int], *, width: int, num_layers: int) -> None:
        """in_channels: of the input.

        sides: cells of the input along each axis, (rows, columns) or (frames, rows, columns).
        width: channels of the first layer.
        num_layers: layers that halve.
        """
        super().__init__()
        self.sides = tuple(sides)
        convolution = {2: nn.Conv2d, 3: nn.Conv3d}[len(sides)]
        layers, channels, sides = [], in_channels, list(sides)
        for index in range(num_layers + 1):
            out_channels = width * min(2**index, LARGEST_WIDTH_FACTOR)
            halve = [index < num_layers and side >= SMALLEST_STRIDED_SIDE for side in sides]
            kernel, stride = [4 if half else 3 for half in halve], [2 if half else 1 for half in halve]
            norm = [GroupNorm(math.gcd(32, out_channels), out_channels)] if index else []
            layers.append(
                nn.Sequential(
                    convolution(channels, out_channels, kernel, stride=stride, padding=1),
                    *norm,
                    nn.LeakyReLU(0.2),
                )
            )
            sides = [side // 2 if half else side for side, half in zip(sides, halve)]
            channels = out_channels
        self.layers = nn.ModuleList(layers)
        self.to_logits = convolution(channels, 1, 3, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        features = []
        x = x.to(self.to_logits.weight.dtype)
        for layer in self.layers:
            x = layer(x)
            features.append(x)
        return self.to_logits(x), features

    def flops(self) -> int:
        """FLOPs of judging one input."""
        sides, total = self.sides, 0
        for convolution, *_ in self.layers:
            sides = [side // stride for side, stride in zip(sides, convolution.stride, strict=True)]
            total += map_flops(convolution, math.prod(sides))
        return total + map_flops(self.to_logits, math.prod(sides))


class VideoDiscriminators(nn.Module):
    """A 2D discriminator of one frame of each clip, and a 3D discriminator of whole clips."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        clip, loss = config.clip, config.mdsa.loss
        settings = {"width": loss.discriminator_width, "num_layers": loss.discriminator_layers}
        self.frame = PatchDiscriminator(3, (clip.height, clip.width), **settings)
        self.clip = PatchDiscriminator(3, (clip.num_frames, clip.height, clip.width), **settings)

    def forward(self, video_BCTHW: Tensor, frames_B: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """([frame logits, clip logits], all feature maps).

        frames_B: for each clip the index, 0 to T - 1, of the frame that is judged alone.
        """
        frame_logits, frame_features = self.frame(pick_frames(video_BCTHW, frames_B))
        clip_logits, clip_features = self.clip(video_BCTHW)
        return [frame_logits, clip_logits], frame_features + clip_features

    def flops(self) -> int:
        """FLOPs of judging one clip's picture."""
        return self.frame.flops() + self.clip.flops()


class AudioDiscriminator(nn.Module):
    """A 2D discriminator of the clip's whole spectrogram, M bins x (T S) columns."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        clip, loss = ClipGeometry.from_config(config), config.mdsa.loss
        sides = (clip.mel_bins, clip.num_frames * clip.mel_steps)
        self.spectrogram = PatchDiscriminator(
            1, sides, width=loss.discriminator_width, num_layers=loss.discriminator_layers
        )

    def forward(self, mel_BTMS: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """([logits], all feature maps)."""
        logits, features = self.spectrogram(rearrange(mel_BTMS, "b t m s -> b 1 m (t s)"))
        return [logits], features

    def flops(self) -> int:
        """FLOPs of judging one clip's sound."""
        return self.spectrogram.flops()


def pick_frames(video_BCTHW: Tensor, frames_B: Tensor) -> Tensor:
    """Frame frames_B[b] of clip b: [B, C, H, W]."""
    return video_BCTHW[
        torch.arange(len(video_BCTHW), device=video_BCTHW.device), :, frames_B.to(video_BCTHW.device)
    ]


def hinge_discriminator_loss(real_logits: Sequence[Tensor], fake_logits: Sequence[Tensor]) -> Tensor:
    """Sum over discriminators of (mean max(0, 1 - real) + mean max(0, 1 + fake)) / 2, in float32."""
    return sum(
        (F.relu(1 - real.float()).mean() + F.relu(1 + fake.float()).mean()) / 2
        for real, fake in zip(real_logits, fake_logits, strict=True)
    )


def hinge_generator_loss(fake_logits: Sequence[Tensor]) -> Tensor:
    """Sum over discriminators of - mean(fake), in float32."""
    return sum(-fake.float().mean() for fake in fake_logits)


def feature_matching_loss(real_features: Sequence[Tensor], fake_features: Sequence[Tensor]) -> Tensor:
    """Mean over feature maps of mean |real - fake|, in float32. No gradient flows to the real side."""
    distances = [
        F.l1_loss(fake.float(), real.detach().float())
        for real, fake in zip(real_features, fake_features, strict=True)
    ]
    return sum(distances) / len(distances)
