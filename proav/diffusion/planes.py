"""From values per modality to values per plane, and the loss over the planes that are to be denoised.

Not here: which modality is given in a task (`tasks.py`). Letters: B clips, D channels, P=6 planes (3 video, then 3 audio), N plane side.
"""

import torch
from torch import Tensor

from proav.geometry import PLANES_PER_MODALITY


def spread_to_planes(values_B2: Tensor) -> Tensor:
    """[B, 1, 6, 1, 1]: each plane gets its modality's value; ready to multiply a stack [B, D, 6, N, N]."""
    return values_B2.repeat_interleave(PLANES_PER_MODALITY, dim=1)[:, None, :, None, None]


def mix_given(joint_BDPNN: Tensor, lone_BDPNN: Tensor, given_B2: Tensor) -> Tensor:
    """The clean stack of a task: a given modality enters as its lone planes, the others are the jointly encoded targets.

    Joint planes carry a trace of the other modality, and a generator must not read the answer from what it is given.
    """
    return torch.where(spread_to_planes(given_B2), lone_BDPNN, joint_BDPNN)


def denoising_loss(prediction_BDPNN: Tensor, target_BDPNN: Tensor, given_B2: Tensor) -> Tensor:
    """loss_b = mean of (prediction - target)^2 over the planes of clip b that are not given; [B], float32 at least.

    Per clip, so that the mean over a batch does not depend on how the batch is split over workers. given_B2: bool, at most one True a row.
    """
    wide = torch.promote_types(prediction_BDPNN.dtype, torch.float32)
    error_BP = (prediction_BDPNN.to(wide) - target_BDPNN.to(wide)).square().mean(dim=(1, 3, 4))
    noised_BP = spread_to_planes(~given_B2)[:, 0, :, 0, 0].to(wide)
    return (error_BP * noised_BP).sum(1) / noised_BP.sum(1)
