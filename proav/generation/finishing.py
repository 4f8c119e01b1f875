"""From made pictures and mel images to clips: makes the sound, and puts in what was given. It needs no model.

Not here: how pictures and mel images are made (`pipeline.py`), the formulas of joins (`joining.py`). Letters:
B clips, T frames, H W rows and columns, M mel bins, S mel columns in a frame, J = T * S columns.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from proav.config import Config
from proav.diffusion.noise import uniforms_for
from proav.diffusion.tasks import TASKS
from proav.generation.coder import to_clips
from proav.generation.joining import (
    CARRY_SECONDS,
    HALF_TRUST_DB,
    HOLD_SECONDS,
    carry_over,
    hold_given,
    with_given_frames,
)
from proav.generation.requests import SampleRequest, known_frames
from proav.media.container import Clip
from proav.media.melframes import MelFrames


@torch.inference_mode()
def finish_clips(
    config: Config,
    mel_frames: MelFrames,
    requests: Sequence[SampleRequest],
    video_BTHWC: Tensor,
    mel_BTMS: Tensor,
) -> list[Clip]:
    """The clips of made windows, each with its sound. Given frames and sound are copied into them unchanged.

    config: of the model.
    mel_frames: its mel transform.
    requests: for one window each (`window_of`).
    video_BTHWC, mel_BTMS: what `SoundingVideoPipeline.sample_streams` returned for them.
    """
    masked = [place for place, one in enumerate(requests) if TASKS[one.settings.task].mask is not None]
    if masked:
        video_BTHWC, mel_BTMS = video_BTHWC.clone(), mel_BTMS.clone()
    for place in masked:
        made = video_BTHWC[place], mel_BTMS[place]
        video_BTHWC[place], mel_BTMS[place] = _carried(config, mel_frames, requests[place], *made)
    seeds = [phase_seed(request.seed, request.index) for request in requests]
    clips = to_clips(mel_frames, video_BTHWC, mel_BTMS, seeds=seeds)
    return [_with_given(config, clip, request) for clip, request in zip(clips, requests, strict=True)]


def given_streams(mel_frames: MelFrames, requests: Sequence[SampleRequest]) -> tuple[Tensor, Tensor]:
    """Pictures and mel images of what requests are given. mel_frames: of the model.

    They are copied into torch's own memory. NumPy's may be aligned otherwise, and kernels then may round
    differently.
    """
    video = torch.from_numpy(np.stack([request.given.video for request in requests])).clone()
    audio = torch.from_numpy(np.stack([request.given.audio for request in requests])).clone()
    return video, mel_frames.encode(audio)


def phase_seed(seed: int, index: int) -> int:
    """The seed of Griffin-Lim's first phases for sample `index`."""
    return int(uniforms_for(seed, index, 1, purpose="phase").item() * 2**53)


def _carried(
    config: Config, mel_frames: MelFrames, request: SampleRequest, video_THWC: Tensor, mel_TMS: Tensor
) -> tuple[Tensor, Tensor]:
    """Made pictures and mel images of a masked task, without a step at the borders to given frames.

    For the sound, the difference at a border is taken at the given mel column beside it. The mean over a
    whole given frame would be wrong: if the sound fades within that frame, the made sound after it would
    become too loud. Then the given sound is held for a moment, see `hold_given`.

    config: of the model.
    mel_frames: its mel transform.
    request: for one window.
    video_THWC: the made pictures, uint8.
    mel_TMS: the made mel images, in [-1, 1].
    """
    streams = given_streams(mel_frames, [request])
    given_video, given_mel = (given[0].to(video_THWC.device) for given in streams)
    picture_known_T, sound_known_T = torch.from_numpy(known_frames(config, request))
    frames, (_, _, steps) = max(1, int(CARRY_SECONDS * config.clip.fps)), mel_TMS.shape
    pictures = carry_over(video_THWC.float(), given_video.float(), picture_known_T, frames, hold_mean=True)
    made_JM, given_JM = (rearrange(mel, "t m s -> (t s) m") for mel in (mel_TMS, given_mel))
    known_J = sound_known_T.repeat_interleave(steps)
    sound_JM = carry_over(made_JM, given_JM, known_J, frames * steps)
    held = round(HOLD_SECONDS * config.clip.fps * steps)
    half_trust = HALF_TRUST_DB / (10 * (config.mel.ceiling_log10 - config.mel.floor_log10))  # dB to [-1, 1]
    sound_JM = hold_given(sound_JM, made_JM, given_JM, known_J, held, half_trust)
    pictures = pictures.round().clamp(0, 255).to(torch.uint8)
    return pictures, rearrange(sound_JM.clamp(-1, 1), "(t s) m -> t m s", s=steps)


def _with_given(config: Config, clip: Clip, request: SampleRequest) -> Clip:
    """`clip` with what is given, which is copied and does not pass through the autoencoder."""
    task = TASKS[request.settings.task]
    if task.mask is not None:
        return with_given_frames(clip, request.given, known_frames(config, request))
    match task.given:
        case "audio":
            return dataclasses.replace(clip, audio=request.given.audio)
        case "video":
            return dataclasses.replace(clip, video=request.given.video)
        case _:
            return clip
