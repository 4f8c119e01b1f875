"""Small networks of fixed random weights, for laptops and tests; not comparable with published numbers.

Features of random convolutions carry enough information to distinguish sets of clips and to order
degradations of the same clips. Fréchet and kernel distances in these features are named sFVD, sKVD,
sFAD, sKAD; diversity and nearest_training keep their names. Letters: B clips, T frames, H W rows and columns,
C colours, L samples of sound.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from proav.metrics.networks.card import NetworkCard
from proav.models.layers import full_precision

DIMENSION = 64
SAMPLE_RATE = 16_000
SEED = 20_251_115
"""The weights' seed. Another seed is another network."""
SIDE = 32
"""Pictures are resized to this many rows and columns."""
CARDS = (
    NetworkCard(
        "surrogate-video",
        "video",
        DIMENSION,
        ("sFVD", "sKVD", "diversity", "nearest_training"),
        "Apache-2.0",
        "",
        min_frames=4,
    ),
    NetworkCard(
        "surrogate-audio", "audio", DIMENSION, ("sFAD", "sKAD"), "Apache-2.0", "", sample_rate=SAMPLE_RATE
    ),
)


class SurrogateVideo(nn.Module):
    """Pictures of 32 x 32 and three random convolutions over time and space -> [B, 1, 64].

    The features are mean and standard deviation of every channel.
    """

    card = CARDS[0]
    weights_sha256 = f"random-{SEED}"

    def __init__(self) -> None:
        super().__init__()
        self.layers = _random_layers(
            [(3, 16, (3, 5, 5), (1, 2, 2)), (16, 32, (3, 3, 3), (1, 2, 2)), (32, 32, (3, 3, 3), (2, 2, 2))],
            nn.Conv3d,
        )

    @torch.inference_mode()
    def forward(self, video_BTHWC: Tensor) -> Tensor:
        pictures = (
            video_BTHWC.to(self.layers[0].weight.device).flatten(0, 1).movedim(-1, 1).float() / 127.5 - 1
        )
        small = F.interpolate(pictures, (SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)
        return _summary(self.layers, small.unflatten(0, video_BTHWC.shape[:2]).movedim(1, 2))


class SurrogateAudio(nn.Module):
    """A log spectrogram of 64 bands, 16 ms apart, and three random convolutions -> [B, 1, 64].

    The features are mean and standard deviation of every channel.
    """

    card = CARDS[1]
    weights_sha256 = f"random-{SEED}"

    def __init__(self) -> None:
        super().__init__()
        self.layers = _random_layers(
            [(1, 16, (5, 5), (2, 2)), (16, 32, (3, 3), (2, 2)), (32, 32, (3, 3), (2, 2))], nn.Conv2d
        )
        self.register_buffer("window", torch.hann_window(512), persistent=False)

    @torch.inference_mode()
    def forward(self, audio_BL: Tensor) -> Tensor:
        spectrum = torch.stft(
            audio_BL.to(self.window.device), 512, 256, window=self.window, return_complex=True
        ).abs()[:, 1:]
        bands = spectrum.unflatten(1, (64, 4)).mean(2)
        return _summary(self.layers, (torch.log10(bands + 1e-3) / 2)[:, None])


def load(name: str, device: str) -> nn.Module:
    return (
        {card.name: network for card, network in zip(CARDS, (SurrogateVideo, SurrogateAudio), strict=True)}[
            name
        ]()
        .to(device)
        .eval()
    )


def _random_layers(shapes: list[tuple], convolution: type) -> nn.ModuleList:
    generator, layers = torch.Generator().manual_seed(SEED), []
    for channels, out, kernel, stride in shapes:
        layer = convolution(
            channels, out, kernel, stride=stride, padding=tuple(size // 2 for size in kernel), bias=False
        )
        with torch.no_grad():
            fan_in = layer.weight[0].numel()
            layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) * (2 / fan_in) ** 0.5)
        layers.append(layer)
    return nn.ModuleList(layers).requires_grad_(False)


def _summary(layers: nn.ModuleList, x: Tensor) -> Tensor:
    with full_precision(x.device):
        for layer in layers:
            x = F.leaky_relu(layer(x), 0.2)
    places = x.flatten(2)
    return torch.cat([places.mean(2), places.std(2, correction=0)], 1)[:, None]
