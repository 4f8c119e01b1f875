"""One modality's way into MDSA and out of it: images to planes of features, and back to images.

Not here: the other modality (`fusion.py`), the order of all parts (`autoencoder.py`), the linear path
(`linear_planes.py`). The form is that of the ancestor PVDM, once per modality (ProAV-DiT, Section 3:
"dual-stream"). Letters: B clips, T frames, C channels, H W rows and columns of patches, M mel bins, S mel
columns, D width. In ToLatents and FromLatents C is the width and D the number of latent channels. In
images_BCTHW, H and W are pixels.
"""

from collections.abc import Mapping

import torch
from einops import rearrange, reduce, repeat
from torch import Tensor, nn

from proav.config import MDSAConfig
from proav.geometry import PLANES, StreamGeometry
from proav.models.layers import Float32Linear, SpaceTimeTransformer, map_flops
from proav.models.mdsa.planes import Projection, broadcast_planes
from proav.models.mdsa.refiner import Refiner
from proav.models.sampled import Sampled


class PatchEmbedding(nn.Module):
    """Images [B, C, T, rows, columns] to a volume [B, T, H, W, D]: one linear map of each frame's patches."""

    def __init__(self, geometry: StreamGeometry, width: int) -> None:
        super().__init__()
        self.patch = geometry.patch
        self.linear = nn.Linear(geometry.channels * self.patch[0] * self.patch[1], width)
        self.sampled = {"linear.weight": Sampled((width, geometry.channels, *self.patch), (2, 3), reads=True)}

    def forward(self, images_BCTHW: Tensor) -> Tensor:
        patches = rearrange(
            images_BCTHW, "b c t (h p) (w q) -> b t h w (c p q)", p=self.patch[0], q=self.patch[1]
        )
        return self.linear(patches.to(self.linear.weight.dtype))


class PatchExpansion(nn.Module):
    """A volume [B, T, H, W, D] to images [B, C, T, rows, columns].

    It is a transposed convolution with kernel = stride = patch, in float32. `closed`: zero-initialized.
    """

    def __init__(self, geometry: StreamGeometry, width: int, *, closed: bool = False) -> None:
        super().__init__()
        self.patch = geometry.patch
        self.linear = Float32Linear(width, geometry.channels * self.patch[0] * self.patch[1], bias=False)
        self.sampled = {"linear.weight": Sampled((geometry.channels, *self.patch, width), (1, 2))}
        if closed:
            nn.init.zeros_(self.linear.weight)
        self.bias = nn.Parameter(torch.zeros(geometry.channels))

    def forward(self, volume_BTHWD: Tensor) -> Tensor:
        images = rearrange(
            self.linear(volume_BTHWD),
            "b t h w (c p q) -> b c t (h p) (w q)",
            p=self.patch[0],
            q=self.patch[1],
        )
        return images + self.bias.float()[:, None, None, None]


class StreamEncoder(nn.Module):
    """Images of one modality to its three planes of C-channel features.

    The steps are patches, space-time transformer, orthogonal decomposition.
    """

    def __init__(self, geometry: StreamGeometry, config: MDSAConfig) -> None:
        super().__init__()
        side = geometry.plane_size
        self.grid = geometry.num_frames, side**2
        self.embed = PatchEmbedding(geometry, config.width)
        self.transformer = SpaceTimeTransformer(
            config.encoder_depth, config.width, config.num_heads, config.head_width, config.mlp_ratio
        )
        collapse = {
            "depth": config.collapse_depth,
            "num_heads": config.collapse_heads,
            "mlp_width": config.collapse_mlp_width,
        }
        self.project = Projection(geometry.num_frames, side, side, config.width, **collapse)

    def forward(self, images_BCTHW: Tensor, *, recompute: bool = False) -> dict[str, Tensor]:
        volume_BTHWD = self.transformer(self.embed(images_BCTHW), recompute=recompute)
        return self.project(volume_BTHWD, recompute=recompute)

    def flops(self) -> int:
        """FLOPs for one clip."""
        frames, cells = self.grid
        volume = map_flops(self.embed, frames * cells) + self.transformer.flops(frames, cells)
        return volume + self.project.flops(frames * cells)


class StreamDecoder(nn.Module):
    """Three planes of C-channel features to images.

    The steps are broadcast and sum, space-time transformer, patches, the sum with the linear path, and the
    refiner: x' = refine(linear + patches), with zero-initialized patches. Without a linear path
    x' = refine(2 sigmoid(patches) - 1).
    """

    def __init__(self, geometry: StreamGeometry, config: MDSAConfig, *, sound: bool) -> None:
        super().__init__()
        self.geometry = geometry
        self.transformer = SpaceTimeTransformer(
            config.decoder_depth, config.width, config.num_heads, config.head_width, config.mlp_ratio
        )
        self.expand = PatchExpansion(geometry, config.width, closed=config.linear_planes.enabled)
        self.refine = (
            Refiner(geometry.channels, config.refiner, sound=sound) if config.refiner.enabled else None
        )

    def forward(
        self, planes: dict[str, Tensor], linear_BCTHW: Tensor | None = None, *, recompute: bool = False
    ) -> Tensor:
        """float32 images; in [-1, 1] only without the linear path and the refiner.

        linear_BCTHW: what the linear path makes of the planes.
        """
        images = self.expand(self.transformer(broadcast_planes(planes), recompute=recompute))
        images = 2 * torch.sigmoid(images) - 1 if linear_BCTHW is None else linear_BCTHW + images
        return images if self.refine is None else self.refine(images, recompute=recompute)

    def flops(self) -> int:
        """FLOPs for one clip, without the linear path."""
        frames, cells = self.geometry.num_frames, self.geometry.plane_size**2
        images = self.transformer.flops(frames, cells) + map_flops(self.expand, frames * cells)
        return images + (self.refine.flops(self.geometry.input_shape) if self.refine is not None else 0)


class ToLatents(nn.Module):
    """The bottleneck: per plane a 1x1 convolution C -> D, in float32.

    [B, rows, columns, C] -> [B, D, rows, columns]. Without a linear path it ends in tanh, so that planes lie
    in [-1, 1] (PVDM). With a linear path it is zero-initialized, and its result is added to the path's codes.
    Nothing bounds the sum: a bound cost 1.7 dB before training (docs/experiments.md), and normalization
    follows in any case.
    """

    def __init__(self, width: int, channels: Mapping[str, int], *, closed: bool = False) -> None:
        super().__init__()
        self.convolution = nn.ModuleDict({name: Float32Linear(width, channels[name]) for name in PLANES})
        for layer in self.convolution.values() if closed else ():
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self, features: dict[str, Tensor], linear: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        own = {
            name: rearrange(self.convolution[name](features[name]), "b r s d -> b d r s") for name in PLANES
        }
        return {name: own[name].tanh() if linear is None else linear[name] + own[name] for name in PLANES}


class FromLatents(nn.Module):
    """Behind the bottleneck: per plane a 1x1 convolution D -> C.

    [B, D, rows, columns] -> [B, rows, columns, C].
    """

    def __init__(self, width: int, channels: Mapping[str, int]) -> None:
        super().__init__()
        self.convolution = nn.ModuleDict({name: nn.Linear(channels[name], width) for name in PLANES})

    def forward(self, latents: dict[str, Tensor]) -> dict[str, Tensor]:
        channels_last = {name: rearrange(latents[name], "b d r s -> b r s d") for name in PLANES}
        return {
            name: self.convolution[name](plane.to(self.convolution[name].weight.dtype))
            for name, plane in channels_last.items()
        }


def tile_mel(mel_BTMS: Tensor, geometry: StreamGeometry) -> Tensor:
    """The mel image [B, C, T, rows, columns]: every value is repeated over a block.

    The lowest frequency is the bottom row (Figure 1).
    """
    down, right = geometry.rows // mel_BTMS.shape[2], geometry.columns // mel_BTMS.shape[3]
    return repeat(mel_BTMS.flip(2), "b t m s -> b c t (m p) (s q)", c=geometry.channels, p=down, q=right)


def untile_mel(image_BCTHW: Tensor, bins: int, steps: int) -> Tensor:
    """The mel grid [B, T, M, S] of a mel image: the mean over channels and blocks. Undoes `tile_mel`."""
    return reduce(image_BCTHW, "b c t (m p) (s q) -> b t m s", "mean", m=bins, s=steps).flip(2)
