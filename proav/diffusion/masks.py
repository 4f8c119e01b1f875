"""Masks of clips: which frames of which modality a task is given, and what replaces the others.

A mask known_B2T is true for the frames that are given; row 0 is the picture, row 1 the sound. The masked clip
is encoded and enters ST-DiT beside the noisy planes, with its mask: `masked_condition` in
`proav/models/mdsa/planes.py`. `tasks.py` says which task has which mask. All of this is our choice; the paper
evaluates joint generation. Letters: B clips, T frames, H W rows and columns, C channels, M mel bins, S mel
columns in a frame.
"""

import torch
from torch import Tensor

from proav.config import Config

VIDEO, AUDIO = 0, 1
SILENCE = -1.0
"""The mel value of silence."""


def first_picture(config: Config, uniforms: Tensor) -> Tensor:
    """The first frame of the picture, and no sound."""
    known_2T = _nothing(config)
    known_2T[VIDEO, 0] = True
    return known_2T


def beginning(config: Config, uniforms: Tensor) -> Tensor:
    """The first frames of picture and sound, see `continue_frames`."""
    known_2T = _nothing(config)
    known_2T[:, : continue_frames(config)] = True
    return known_2T


def around_a_span(config: Config, uniforms: Tensor) -> Tensor:
    """All frames except a span.

    The span is in both modalities for half of the clips, in the picture alone for a quarter, and in the sound
    alone for a quarter. Its lengths, 1 to T - 1 frames, are equally likely, and so are its places. uniforms:
    three numbers in (0, 1).
    """
    stream, of_length, of_start = uniforms[:3].tolist()
    frames = config.clip.num_frames
    length = 1 + int(of_length * (frames - 1))
    start = int(of_start * (frames - length + 1))
    known_2T = ~_nothing(config)
    rows = slice(None) if stream < 0.5 else VIDEO if stream < 0.75 else AUDIO
    known_2T[rows, start : start + length] = False
    return known_2T


def continue_frames(config: Config) -> int:
    """Frames given to the task `continue`: `diffusion.continue_frames`, or half a clip if that is None."""
    return config.diffusion.continue_frames or config.clip.num_frames // 2


def fill_unknown(video_BTHWC: Tensor, mel_BTMS: Tensor, known_B2T: Tensor) -> tuple[Tensor, Tensor]:
    """The masked clip: unknown pictures are the nearest known one, unknown sound is silence.

    Of two equally near pictures the earlier is taken. An autoencoder has seen still pictures and silence in
    its training, but not single grey frames between others. If no picture is known, all are black.
    """
    known_BT = known_B2T[:, VIDEO].to(video_BTHWC.device)
    frames = torch.arange(known_BT.shape[1], device=video_BTHWC.device)
    distance_BTT = (frames[:, None] - frames).abs().expand(len(known_BT), -1, -1)
    nearest_BT = distance_BTT.masked_fill(~known_BT[:, None], len(frames)).argmin(2)  # the first of equals
    clips = torch.arange(len(known_BT), device=video_BTHWC.device)
    video_BTHWC = video_BTHWC[clips[:, None], nearest_BT]
    video_BTHWC = video_BTHWC * known_BT.any(1)[:, None, None, None, None]
    heard_BT11 = known_B2T[:, AUDIO, :, None, None].to(mel_BTMS.device)
    return video_BTHWC, mel_BTMS.masked_fill(~heard_BT11, SILENCE)


def _nothing(config: Config) -> Tensor:
    return torch.zeros(2, config.clip.num_frames, dtype=torch.bool)
