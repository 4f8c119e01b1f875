"""SSIM and LPIPS of clips with known answers, and SSIM against scikit-image."""

import numpy as np
import pytest
import torch

from proav.metrics.quality import lpips, ssim


def draw(seed, shape=(2, 24, 32, 3)):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_ssim_equals_scikit_images():
    """SSIM equals that of scikit-image 0.26.

    It is structural_similarity(..., channel_axis=-1, gaussian_weights=True, sigma=1.5,
    use_sample_covariance=False, data_range=255).
    """
    generator = np.random.default_rng(0)
    video = generator.integers(0, 256, (2, 24, 32, 3), dtype=np.uint8)
    noisy = np.clip(video.astype(int) + generator.integers(-40, 41, video.shape), 0, 255).astype(np.uint8)
    expected = (0.9532267952344435, 0.954210982005448)
    assert [ssim(video[t : t + 1], noisy[t : t + 1]) for t in range(2)] == pytest.approx(expected, abs=1e-9)
    assert ssim(video, noisy) == pytest.approx(np.mean(expected), abs=1e-9)


def test_ssim_of_equal_and_of_flat_pictures():
    video = draw(1)
    assert ssim(video, video) == pytest.approx(1, abs=1e-12)
    black, white = np.zeros_like(video), np.full_like(video, 255)
    c1 = (0.01 * 255) ** 2
    assert ssim(black, white) == pytest.approx(c1 / (255**2 + c1), rel=1e-9)
    assert abs(ssim(draw(2), draw(3))) < 0.1


class SquaredError(torch.nn.Module):
    """Takes the place of LPIPS. Its distance can be worked out by hand."""

    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.tensor(1.0))

    def forward(self, first_BCHW, second_BCHW):
        return ((first_BCHW - second_BCHW) ** 2).mean((1, 2, 3)) * self.scale


def test_lpips_is_the_mean_over_frames_of_pictures_in_minus_one_to_one():
    video = np.zeros((11, 16, 16, 3), np.uint8)
    other = video.copy()
    other[0] = 255
    assert lpips(SquaredError(), video, other) == pytest.approx(4 / 11)
    assert lpips(SquaredError(), other, other) == 0
