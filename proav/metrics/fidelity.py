"""How well MDSA reconstructs a clip, compared with trivial pictures and sounds.

The numbers are the peak signal-to-noise ratio of the picture and the mean absolute error of the sound in dB,
for each clip, without a network. SSIM and LPIPS are in `quality.py`. Letters: B clips, C colours, T frames, H
W rows and columns, M mel bins, S mel columns in a frame.
"""

import torch
from torch import Tensor


def psnr_db(video_BCTHW: Tensor, reference_BCTHW: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each clip: 10 log10(2^2 / mean squared error), [B], dB.

    Both are in [-1, 1], so the peak is 2. Equal clips give infinity.
    """
    error = (video_BCTHW.double() - reference_BCTHW.double()).square().flatten(1).mean(1)
    return 10 * torch.log10(4 / error)


def mean_colour(video_BCTHW: Tensor) -> Tensor:
    """The clip's mean colour at every pixel, [B, C, T, H, W]: the simplest picture to beat.

    The mean is taken in float64, so that a clip of one colour equals its mean exactly.
    """
    return video_BCTHW.double().mean((2, 3, 4), keepdim=True).to(video_BCTHW).expand_as(video_BCTHW)


def temporal_mean(video_BCTHW: Tensor) -> Tensor:
    """The clip's mean frame in every frame, [B, C, T, H, W]: the best that a model without motion can do.

    The mean is taken in float64, so that a still clip equals its mean exactly.
    """
    return video_BCTHW.double().mean(2, keepdim=True).to(video_BCTHW).expand_as(video_BCTHW)


def mel_error_db(
    mel_BTMS: Tensor, reference_BTMS: Tensor, *, floor_log10: float, ceiling_log10: float
) -> Tensor:
    """Mean absolute log-mel error of each clip, [B], in dB of magnitude.

    dB are 20 log10, so that [-1, 1] spans 20 (ceiling - floor) dB.

    mel_BTMS, reference_BTMS: mel images in [-1, 1].
    floor_log10, ceiling_log10: log10 of the magnitudes that -1 and 1 stand for.
    """
    span_db = 20 * (ceiling_log10 - floor_log10)
    return (mel_BTMS.double() - reference_BTMS.double()).abs().flatten(1).mean(1) * span_db / 2


def mean_mel(mel_BTMS: Tensor) -> Tensor:
    """The clip's mean spectrum in every column, [B, T, M, S]: a steady sound of the right timbre."""
    return mel_BTMS.mean((1, 3), keepdim=True).expand_as(mel_BTMS)
