"""How alike two clips look, frame by frame: SSIM, and LPIPS by a network that the user gives.

PSNR and the log-mel error are in `fidelity.py`, the LPIPS network is in `proav/models/perceptual.py`.
Letters: T frames, H W rows and columns, C colours.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

WINDOW, SIGMA = 11, 1.5
"""Wang et al. 2004: an 11 x 11 Gaussian of standard deviation 1.5."""
K1, K2 = 0.01, 0.03
LPIPS_FRAMES = 8
"""Frames that LPIPS processes at a time."""


def ssim(video_THWC: np.ndarray, reference_THWC: np.ndarray) -> float:
    """Structural similarity of two clips, mean over frames, colour channels and places.

    (2 m1 m2 + c1)(2 s12 + c2) / ((m1^2 + m2^2 + c1)(s1^2 + s2^2 + c2)), c1 = (0.01 * 255)^2,
    c2 = (0.03 * 255)^2. The moments are Gaussian-weighted (divided by the sum of weights, not N - 1), over
    windows that lie wholly in the frame. The value is 1 for equal clips and can be negative. The formula is
    that of Wang et al. 2004, who use grey pictures. Here all colour channels have equal weight, as in
    scikit-image with gaussian_weights and channel_axis.

    video_THWC, reference_THWC: uint8 [T, H, W, 3] of at least 11 x 11 pixels.
    """
    assert video_THWC.shape == reference_THWC.shape and min(video_THWC.shape[1:3]) >= WINDOW, (
        video_THWC.shape,
        reference_THWC.shape,
    )
    places = torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2
    weights = torch.exp(-(places**2) / (2 * SIGMA**2))
    kernel = weights / weights.sum()
    first, second = (
        torch.from_numpy(np.ascontiguousarray(video)).double().movedim(-1, 1).flatten(0, 1)[:, None]
        for video in (video_THWC, reference_THWC)
    )

    def mean(x: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(x, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1))

    m1, m2 = mean(first), mean(second)
    v1, v2, v12 = (
        mean(first * first) - m1 * m1,
        mean(second * second) - m2 * m2,
        mean(first * second) - m1 * m2,
    )
    c1, c2 = (K1 * 255) ** 2, (K2 * 255) ** 2
    return float(((2 * m1 * m2 + c1) * (2 * v12 + c2) / ((m1 * m1 + m2 * m2 + c1) * (v1 + v2 + c2))).mean())


@torch.inference_mode()
def lpips(network: nn.Module, video_THWC: np.ndarray, reference_THWC: np.ndarray) -> float:
    """Mean LPIPS of corresponding frames, uint8 [T, H, W, 3]; 0 for equal clips.

    network: `proav.models.perceptual.LPIPS`.
    """
    device = next(network.buffers()).device
    first, second = (
        torch.from_numpy(np.ascontiguousarray(video)).movedim(-1, 1).float() / 127.5 - 1
        for video in (video_THWC, reference_THWC)
    )
    distances = [
        network(a.to(device), b.to(device)).double().cpu()
        for a, b in zip(first.split(LPIPS_FRAMES), second.split(LPIPS_FRAMES), strict=True)
    ]
    return float(torch.cat(distances).mean())
