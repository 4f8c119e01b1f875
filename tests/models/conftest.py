"""Small models for the tests of this folder: T=8 frames of 32x32, 16 mel bins x 8 columns, planes 8x8."""

import pytest
import torch

from proav.config import Config
from proav.models.layers import ClosedLinear
from proav.models.mdsa import MDSA

CLIP = {"num_frames": 8, "fps": 5, "height": 32, "width": 32, "sample_rate": 4000}
MEL = {"num_bins": 16, "n_fft": 256, "hop": 100, "max_hz": 2000.0}
SMALL_MDSA = {
    "plane_size": 8,
    "latent_channels": 4,
    "width": 32,
    "encoder_depth": 1,
    "decoder_depth": 1,
    "num_heads": 2,
    "head_width": 16,
    "collapse_depth": 2,
    "collapse_mlp_width": 32,
    "multi_scale": {"num_heads": 2},
    "spatial": {"num_heads": 2},
    "group_cross": {"num_heads": 2},
    "bi_block": {"num_heads": 2},
}


def _merge(base: dict, changes: dict) -> dict:
    return {
        **base,
        **{
            key: _merge(base.get(key, {}), value) if isinstance(value, dict) else value
            for key, value in changes.items()
        },
    }


@pytest.fixture
def make_config():
    def make(**changes) -> Config:
        return Config(clip=CLIP, mel=MEL, mdsa=_merge(SMALL_MDSA, changes))

    return make


@pytest.fixture
def make_mdsa(make_config):
    def make(seed: int = 0, **changes) -> MDSA:
        torch.manual_seed(seed)
        return MDSA(make_config(**changes))

    return make


@pytest.fixture
def open_gates():
    """Gives random values to every weight matrix that starts at zero, so that each part has an effect.

    These matrices are the output gates of the fusion modules, the last layers of the networks beside the
    linear path, and the kernels of the linear path.
    """

    def open_all(module: torch.nn.Module) -> torch.nn.Module:
        generator = torch.Generator().manual_seed(7)
        for part in module.modules():
            weight = getattr(part, "kernel", getattr(part, "weight", None))
            if weight is not None and not weight.any():
                deviation = 0.3 if isinstance(part, ClosedLinear) else 0.3 * weight[0].numel() ** -0.5
                weight.data.normal_(0, deviation, generator=generator)
        return module

    return open_all


@pytest.fixture
def clips():
    """(video_BCTHW, mel_BTMS) of three clips."""
    generator = torch.Generator().manual_seed(1)
    return torch.rand(3, 3, 8, 32, 32, generator=generator) * 2 - 1, torch.rand(
        3, 8, 16, 8, generator=generator
    ) * 2 - 1
