"""The cosine transform on cosines, on data that need few coefficients, and as an orthogonal map."""

import math

import pytest
import torch

from proav.metrics.cosine_transform import CosineTransform, cosine_coefficients, cosine_matrix
from proav.metrics.fidelity import psnr_db


def moving_cosines(phases, size=16, frames=8):
    """Clips [B, 1, T, H, W]: one basis function of the transform, scaled by one number for each clip."""
    t = torch.cos(math.pi * 3 * (2 * torch.arange(frames) + 1) / (2 * frames))
    h = torch.cos(math.pi * 2 * (2 * torch.arange(size) + 1) / (2 * size))
    w = torch.cos(math.pi * 5 * (2 * torch.arange(size) + 1) / (2 * size))
    return phases.view(-1, 1, 1, 1, 1) * (t[:, None, None] * h[:, None] * w)[None, None]


def test_one_moving_cosine_needs_one_coefficient():
    clips = moving_cosines(torch.linspace(-0.9, 0.8, 10))
    code = CosineTransform.fit(lambda: clips.split(3), 1)
    assert code.kept.tolist() == [(3 * 16 + 2) * 16 + 5]
    assert (psnr_db(code(clips), clips) > 110).all()


def test_a_shifted_cosine_needs_the_few_of_its_frequency():
    """A cosine that moves along W is no basis function. Nearly all of it lies near its own frequencies."""
    columns, times = torch.arange(32), torch.arange(8)

    def clip(speed, phase):
        return 0.5 * torch.cos(2 * math.pi * (4 * columns / 32 - speed * times[:, None] / 8) + phase)

    clips = torch.stack([clip(1, phase) for phase in torch.linspace(0, 6, 30)])
    code = CosineTransform.fit(lambda: clips.split(7), 24)
    assert (psnr_db(code(clips)[:, None, :, None], clips[:, None, :, None]) > 25).all()


def test_all_coefficients_are_exact_and_fewer_never_better():
    clips = torch.empty(6, 3, 4, 8, 8).uniform_(-0.6, 0.6, generator=torch.Generator().manual_seed(0))
    errors = [
        CosineTransform.fit(lambda: clips.split(4), count)(clips).sub(clips).square().mean().item()
        for count in (1, 20, 300, 768)
    ]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 1e-12


def test_the_coefficients_are_chosen_by_their_mean_square_over_all_training_clips():
    kept = torch.zeros(2, 4, 4)
    kept[0, 1, 2], kept[1, 3, 0] = 0.5, 0.4  # each in one clip
    clips = cosine_coefficients(kept, inverse=True)
    assert CosineTransform.fit(lambda: clips.split(1), 1).kept.tolist() == [6]
    assert CosineTransform.fit(lambda: clips.split(1), 2).kept.tolist() == [6, 12]
    still = torch.zeros(5, 4, 4)
    assert CosineTransform.fit(lambda: still.split(2), 3).kept.tolist() == [0, 1, 2]  # among equals the first


def test_the_transform_is_orthogonal_and_that_of_the_books():
    matrix = cosine_matrix(16)
    assert torch.allclose(matrix @ matrix.T, torch.eye(16, dtype=torch.float64), atol=1e-12)
    scipy = pytest.importorskip(
        "scipy.fft", reason="no scipy here, whose transform this one is compared with"
    )
    x = torch.randn(2, 3, 4, 6, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = scipy.dctn(x.numpy(), axes=(1, 2, 3, 4), norm="ortho")
    assert torch.allclose(cosine_coefficients(x), torch.from_numpy(expected), atol=1e-12)
    assert torch.allclose(cosine_coefficients(cosine_coefficients(x), inverse=True), x, atol=1e-12)


def test_colours_become_brightness_and_two_differences():
    colour = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64).view(1, 3)
    red, green, blue = colour[0].tolist()
    expected = [(red + green + blue) / 3**0.5, (red - blue) / 2**0.5, (red - 2 * green + blue) / 6**0.5]
    assert cosine_coefficients(colour)[0].tolist() == pytest.approx(expected, abs=1e-12)
