"""Reconstruction metrics against values worked out by hand."""

import math

import pytest
import torch

from proav.metrics.fidelity import mean_colour, mean_mel, mel_error_db, psnr_db, temporal_mean


def test_psnr_of_a_known_error():
    reference = torch.zeros(2, 3, 4, 8, 8)
    shifted = reference + torch.tensor([0.2, 0.02]).view(2, 1, 1, 1, 1)
    assert psnr_db(shifted, reference).tolist() == pytest.approx([20.0, 40.0], abs=1e-4)  # 10 log10(4 / e^2)
    assert math.isinf(psnr_db(reference, reference)[0])


def test_trivial_pictures():
    video = torch.randn(2, 3, 4, 8, 8)
    torch.testing.assert_close(mean_colour(video)[1, 2], video[1, 2].mean().expand(4, 8, 8))
    torch.testing.assert_close(temporal_mean(video)[0, :, 3], video[0].mean(1))
    # The mean minimizes squared error. So the mean picture beats the mean colour, and the clip beats both.
    assert (psnr_db(temporal_mean(video), video) > psnr_db(mean_colour(video), video)).all()


def test_mel_error_in_decibels():
    mel = torch.zeros(1, 4, 8, 2)
    # The window 10^-5 .. 10^1 spans 120 dB over [-1, 1]: 0.1 is 6 dB.
    assert mel_error_db(mel + 0.1, mel, floor_log10=-5, ceiling_log10=1).item() == pytest.approx(
        6.0, abs=1e-5
    )


def test_mean_mel_is_steady_and_keeps_the_spectrum():
    mel = torch.randn(2, 4, 8, 3)
    steady = mean_mel(mel)
    assert torch.equal(steady[:, 0, :, 0], steady[:, 3, :, 2])
    assert torch.allclose(steady[1, 2, 5, 1], mel[1, :, 5].mean())


@pytest.mark.parametrize(("frames", "side"), [(8, 64), (16, 33)])
def test_clips_of_one_colour_are_their_own_mean_to_the_bit(frames, side):
    """For most grey values a mean in float32 is off by a rounding, so the error would not be exactly 0."""
    greys = torch.arange(0, 256, 5).float() / 127.5 - 1
    clips = greys[:, None, None, None, None].expand(-1, 3, frames, side, side)
    assert psnr_db(mean_colour(clips), clips).isinf().all()
    assert psnr_db(temporal_mean(clips), clips).isinf().all()
