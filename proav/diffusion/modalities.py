"""From values per modality to values per plane, and the loss over the planes that are to be denoised.

Not here: which modality is given in a task (`tasks.py`). Letters: B clips, D channels, P=6 planes (3 video,
then 3 audio), N plane side.
"""

import torch
from torch import Tensor

from proav.geometry import PLANES_PER_MODALITY


def spread_to_planes(values_B2: Tensor) -> Tensor:
    """[B, 1, 6, 1, 1]: each plane gets its modality's value; ready to multiply a stack [B, D, 6, N, N]."""
    return values_B2.repeat_interleave(PLANES_PER_MODALITY, dim=1)[:, None, :, None, None]


def mix_given(joint_BDPNN: Tensor, lone_BDPNN: Tensor, given_B2: Tensor) -> Tensor:
    """The clean stack of a task: lone planes for a given modality, jointly encoded planes for the others.

    Joint planes carry a trace of the other modality. A generator must not read the answer from what it is
    given.
    """
    return torch.where(spread_to_planes(given_B2), lone_BDPNN, joint_BDPNN)


def denoising_loss(
    prediction_BDPNN: Tensor, target_BDPNN: Tensor, given_B2: Tensor, own_DP: Tensor | None = None
) -> Tensor:
    """Mean of (prediction - target)^2 over the values of a clip that are to be made; [B], float32 or wider.

    The loss is per clip, so that its mean over a batch does not depend on how workers split the batch.

    prediction_BDPNN, target_BDPNN: the model's output and what it should be.
    given_B2: bool, at most one True a row.
    own_DP: bool, the channels that each plane really has; None: all.
    """
    error_BP, count_P = plane_errors(prediction_BDPNN, target_BDPNN, own_DP)
    made_BP = spread_to_planes(~given_B2)[:, 0, :, 0, 0].to(error_BP) * count_P
    return (error_BP * made_BP).sum(1) / made_BP.sum(1)


def plane_errors(
    prediction_BDPNN: Tensor, target_BDPNN: Tensor, own_DP: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(mean squared error of each plane [B, 6], number of values of each plane [6]).

    Only the channels that a plane really has are counted (own_DP, bool; None: all).
    """
    wide = torch.promote_types(prediction_BDPNN.dtype, torch.float32)
    error_BDP = (prediction_BDPNN.to(wide) - target_BDPNN.to(wide)).square().mean(dim=(3, 4))
    own_DP = torch.ones(error_BDP.shape[1:], dtype=torch.bool) if own_DP is None else own_DP
    weight_DP = own_DP.to(error_BDP)
    return (error_BDP * weight_DP).sum(1) / weight_DP.sum(0), weight_DP.sum(0) * prediction_BDPNN.shape[
        3
    ] * prediction_BDPNN.shape[4]
