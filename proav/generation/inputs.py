"""What a user gives, a sound or a picture, fitted to the rates and the size of a model.

Not here: files and uploads (`proav/media`, `proav/serve/orders`), encoding (`coder.py`). Letters: T frames, H
W rows and columns.
"""

import numbers

import av
import numpy as np
import torch
from torch import Tensor

from proav.config import Config
from proav.diffusion.tasks import TASKS
from proav.errors import UserError
from proav.geometry import ClipGeometry
from proav.media.container import Clip
from proav.media.pictures import Canvas
from proav.media.torchaudio import resample


def fit_given(
    config: Config,
    task: str,
    *,
    audio: np.ndarray | Tensor | None = None,
    sample_rate: int | None = None,
    video: np.ndarray | Tensor | None = None,
    clip: Clip | None = None,
) -> Clip | None:
    """What a task is given, as a clip whose other stream is silence or black; None if it is given nothing.

    config: of the model.
    task: a name of TASKS.
    audio: samples in [-1, 1], mono or [channels, samples]; its beginning is used.
    sample_rate: of `audio`, in Hz.
    video: uint8 [T, H, W, 3] at the model's frame rate; its beginning is used.
    clip: instead of `audio` or `video`; its frames are chosen by time.
    Raises UserError if something is missing, not expected, too short or of another kind.
    """
    given = TASKS[task].given
    pairs = (("audio", audio), ("video", video), ("clip", clip))
    named = [name for name, value in pairs if value is not None]
    if given is None:
        if named:
            raise UserError(
                f"{named[0]}=... was given, but task={task!r} takes none; write task='a2v' or task='v2a'"
            )
        return None
    if len(named) != 1 or named[0] not in (given, "clip"):
        raise UserError(
            f"task={task!r} takes {given}=... or clip=..., and nothing else; "
            f"given: {', '.join(named) or 'nothing'}"
        )
    geometry, frame_rate = ClipGeometry.from_config(config), None
    if clip is not None:
        audio, sample_rate, video, frame_rate = clip.audio, clip.sample_rate, clip.video, clip.fps
    rates = {"fps": geometry.fps, "sample_rate": geometry.sample_rate}
    if given == "audio":
        black = np.zeros((geometry.num_frames, geometry.height, geometry.width, 3), np.uint8)
        return Clip(video=black, audio=fit_audio(audio, sample_rate, geometry), **rates)
    silence = np.zeros(geometry.num_samples, np.float32)
    canvas = Canvas(height=geometry.height, width=geometry.width, fit=config.data.fit)
    return Clip(video=fit_video(video, frame_rate, geometry, canvas), audio=silence, **rates)


def fit_audio(audio: np.ndarray | Tensor, sample_rate: int | None, geometry: ClipGeometry) -> np.ndarray:
    """float32 [samples of a clip]: mixed to mono, resampled, cut. sample_rate: of `audio`, in Hz."""
    if sample_rate is None:
        raise UserError("audio=... needs its sample_rate=... in Hz, such as sample_rate=16000")
    if not (isinstance(sample_rate, numbers.Integral) and sample_rate > 0):
        raise UserError(
            f"sample_rate={sample_rate!r}: expected a whole number of Hz, such as sample_rate=16000"
        )
    array = audio if isinstance(audio, Tensor) else np.array(audio, np.float32)
    waveform = torch.as_tensor(array, dtype=torch.float32).detach().cpu()
    if waveform.ndim not in (1, 2) or not torch.isfinite(waveform).all():
        raise UserError(
            f"audio of shape {list(waveform.shape)}: expected finite samples [samples] or [channels, samples]"
        )
    waveform = waveform.mean(0) if waveform.ndim == 2 else waveform
    peak = float(waveform.abs().max()) if waveform.numel() else 0.0
    if peak > 1:
        raise UserError(
            f"audio reaches {peak:g}: expected samples in [-1, 1]; divide it by its largest magnitude"
        )
    waveform = resample(waveform[None], int(sample_rate), geometry.sample_rate)[0]
    wanted = geometry.num_samples
    if waveform.numel() < wanted:
        seconds = waveform.numel() / geometry.sample_rate
        raise UserError(
            f"audio of {seconds:.2f} s: expected at least the {geometry.seconds:g} s of a clip "
            "(its beginning is used)"
        )
    return waveform[:wanted].clamp(-1, 1).numpy()  # resampling overshoots loud edges


def fit_video(
    video: np.ndarray | Tensor, frame_rate: int | None, geometry: ClipGeometry, canvas: Canvas
) -> np.ndarray:
    """uint8 [T, H, W, 3]: frames are chosen, then drawn as training pictures are.

    video: uint8 [frames, rows, columns, 3].
    frame_rate: of a clip, whose frames are chosen by time; None: `video` has the model's rate.
    geometry: the model's clip.
    canvas: how pictures of another size are fitted.
    """
    pictures = np.asarray(video.detach().cpu() if isinstance(video, Tensor) else video)
    if pictures.ndim != 4 or pictures.shape[-1] != 3 or pictures.dtype != np.uint8:
        raise UserError(
            f"video of shape {list(pictures.shape)} and type {pictures.dtype}: expected uint8 [T, H, W, 3]"
        )
    if frame_rate is not None:  # frame k is the picture shown at k / fps
        count = len(pictures) * geometry.fps // frame_rate
        pictures = pictures[np.arange(count) * frame_rate // geometry.fps]
    if len(pictures) < geometry.num_frames:
        raise UserError(
            f"video of {len(pictures)} frames: expected at least {geometry.num_frames} at {geometry.fps} fps "
            "(its beginning is used)"
        )
    pictures = pictures[: geometry.num_frames]
    if pictures.shape[1:3] == (geometry.height, geometry.width):
        return pictures
    frames = [np.ascontiguousarray(picture) for picture in pictures]
    return np.stack([canvas.draw(av.VideoFrame.from_ndarray(frame, format="rgb24")) for frame in frames])
