"""Fits the sound, pictures or clips that a user gives to the rates and the size of a model.

Not here: files and uploads (`proav/media`, `proav/serve/orders`), encoding (`coder.py`). Letters: T frames, H
W rows and columns.
"""

import math
import numbers
from collections.abc import Sequence

import av
import numpy as np
import torch
from torch import Tensor

from proav.config import Config
from proav.diffusion.masks import AUDIO, VIDEO
from proav.diffusion.tasks import TASKS, fixed_mask
from proav.errors import UserError
from proav.geometry import MODALITIES, ClipGeometry
from proav.media.container import Clip
from proav.media.pictures import Canvas
from proav.media.torchaudio import resample

STREAMS = {"video": [VIDEO], "audio": [AUDIO], "both": [VIDEO, AUDIO]}
"""What can be made anew in a span, and the rows of a mask that it means."""
SAME_TIME = 1e-6
"""Seconds. Times that differ by less count as equal: the difference is rounding."""


def fit_given(
    config: Config,
    task: str,
    *,
    audio: np.ndarray | Tensor | None = None,
    sample_rate: int | None = None,
    video: np.ndarray | Tensor | None = None,
    image: np.ndarray | Tensor | None = None,
    clip: Clip | None = None,
    num_frames: int | None = None,
) -> Clip | None:
    """What a task is given, as a clip at the model's rates and size; None if it is given nothing.

    It has the length of a window, or of `num_frames`. A clip that is to be continued keeps its own length.
    Streams and frames that the task does not read are black or silent.

    config: of the model.
    task: a name of TASKS.
    audio: samples in [-1, 1], mono or [channels, samples]; its beginning is used.
    sample_rate: of `audio`, in Hz.
    video: uint8 [T, H, W, 3] at the model's frame rate; its beginning is used.
    image: uint8 [H, W, 3], instead of `video` for a task that reads one frame.
    clip: instead of the others; its frames are chosen by time.
    num_frames: for a2v and v2a, the frames of the given stream; None: those of a window.
    Raises UserError if something is missing, not expected, too short or of another kind.
    """
    needed = frames_needed(config, task)
    streams = {"audio": audio, "video": video, "image": image, "clip": clip}
    named = [name for name, value in streams.items() if value is not None]
    if not any(needed.values()):
        if named:
            raise UserError(
                f"{named[0]}=... was given, but task={task!r} takes none; write task='a2v' or task='v2a'"
            )
        return None
    _check_named(task, needed, named)
    geometry, frame_rate = ClipGeometry.from_config(config), None
    frames = geometry.num_frames
    if TASKS[task].given and num_frames is not None:
        frames = num_frames
        needed = {modality: frames if count else 0 for modality, count in needed.items()}
    if image is not None:
        video = image[None]
    if clip is not None:
        audio, sample_rate, video, frame_rate = clip.audio, clip.sample_rate, clip.video, clip.fps
    pictures = np.zeros((0, geometry.height, geometry.width, 3), np.uint8)
    most = None if TASKS[task].extends else frames
    if needed["video"]:
        canvas = Canvas(height=geometry.height, width=geometry.width, fit=config.data.fit)
        pictures = fit_video(video, frame_rate, geometry, canvas, least=needed["video"], most=most)
    sound = np.zeros(0, np.float32)
    if needed["audio"]:
        sound = fit_audio(audio, sample_rate, geometry, least=needed["audio"], most=most)
    if TASKS[task].extends:
        frames = min(len(pictures), len(sound) // geometry.samples_per_frame)
    samples = frames * geometry.samples_per_frame
    pictures, sound = pictures[:frames], sound[:samples]
    return Clip(
        video=np.pad(pictures, ((0, frames - len(pictures)), (0, 0), (0, 0), (0, 0))),
        audio=np.pad(sound, (0, samples - len(sound))),
        fps=geometry.fps,
        sample_rate=geometry.sample_rate,
    )


def frames_needed(config: Config, task: str) -> dict[str, int]:
    """{"video": n, "audio": n}: how many frames of each stream a task reads from what is given; 0: none."""
    row, frames = TASKS[task], config.clip.num_frames
    if row.mask is None:
        return {modality: frames if row.given == modality else 0 for modality in MODALITIES}
    if row.asks_span:
        return dict.fromkeys(MODALITIES, frames)
    known_2T = fixed_mask(task, config)
    return {
        modality: int(known_T.nonzero().max()) + 1 if known_T.any() else 0
        for modality, known_T in zip(MODALITIES, known_2T, strict=True)
    }


def frames_around(
    geometry: ClipGeometry, task: str, span: Sequence[float] | None, stream: str = "both"
) -> np.ndarray | None:
    """The frames outside of a span, bool [2, T], for a task that asks for one; None for other tasks.

    geometry: of the model's clips.
    task: a name of TASKS.
    span: begin and end in seconds. The frames that it touches are to be made.
    stream: "video", "audio" or "both": what is to be made there.
    Raises UserError if a span or stream is missing, not expected or unknown. Also if the span is outside of
    the clip, touches no frame, or leaves nothing given of what is made.
    """
    if stream not in STREAMS:
        raise UserError(f"stream={stream!r}: expected one of {', '.join(map(repr, STREAMS))}")
    if not TASKS[task].asks_span:
        for name, value, is_given in (("span", span, span is not None), ("stream", stream, stream != "both")):
            if is_given:
                said = f"{name}={value!r} was given, but task={task!r} takes none"
                raise UserError(f"{said}; leave it out, or write task='inpaint'")
        return None
    expected = (
        f"begin and end in seconds within the {geometry.seconds:g} s of a clip, such as span=(0.4, 0.8)"
    )
    if span is None:
        raise UserError(f"task={task!r} needs span=...: {expected}")
    try:
        begin, end = span
        within = 0 <= begin < end <= geometry.seconds + SAME_TIME
    except (TypeError, ValueError):  # not two, or no numbers
        within = False
    said = f"span={tuple(span) if isinstance(span, Sequence) else span!r}"
    if not within:
        raise UserError(f"{said}: expected {expected}")
    first, last = int(begin * geometry.fps + SAME_TIME), math.ceil(end * geometry.fps - SAME_TIME)
    if first >= last:
        raise UserError(
            f"{said} touches no frame: frames last {1 / geometry.fps:g} s; expected a longer span, {expected}"
        )
    known_2T = np.ones((2, geometry.num_frames), bool)
    known_2T[STREAMS[stream], first:last] = False
    if not known_2T[STREAMS[stream]].any():
        kept = {"both": "the clip", "video": "the picture", "audio": "the sound"}[stream]
        whole = {"both": "joint", "video": "a2v", "audio": "v2a"}[stream]
        raise UserError(f"{said} leaves nothing of {kept}; write a shorter one, or task={whole!r}")
    return known_2T


def _check_named(task: str, needed: dict[str, int], named: list[str]) -> None:
    wanted = [modality for modality, count in needed.items() if count]
    allowed = [["clip"], sorted(wanted)] + ([["image"]] if needed == {"video": 1, "audio": 0} else [])
    if sorted(named) not in allowed:
        told = [" with ".join(f"{name}=..." for name in names) for names in reversed(allowed)]
        raise UserError(
            f"task={task!r} takes {', '.join(told[:-1])} or {told[-1]}, and nothing else; "
            f"given: {', '.join(named) or 'nothing'}"
        )


def fit_audio(
    audio: np.ndarray | Tensor,
    sample_rate: int | None,
    geometry: ClipGeometry,
    *,
    least: int,
    most: int | None,
) -> np.ndarray:
    """float32 [samples of whole frames]: mixed to mono, resampled, cut.

    audio: samples in [-1, 1], mono or [channels, samples].
    sample_rate: of `audio`, in Hz.
    geometry: the model's clip.
    least: frames that are needed.
    most: most frames that are used; None: all.
    """
    if sample_rate is None:
        raise UserError("audio=... needs its sample_rate=... in Hz, such as sample_rate=16000")
    if not (isinstance(sample_rate, numbers.Integral) and sample_rate > 0):
        raise UserError(
            f"sample_rate={sample_rate!r}: expected a whole number of Hz, such as sample_rate=16000"
        )
    try:
        array = audio if isinstance(audio, Tensor) else np.array(audio, np.float32)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"audio of type {type(audio).__name__} is no array of numbers ({error}); "
            "expected samples [samples] or [channels, samples]"
        ) from None
    waveform = torch.as_tensor(array, dtype=torch.float32).detach().cpu()
    if waveform.ndim not in (1, 2) or 0 in waveform.shape[:-1] or not torch.isfinite(waveform).all():
        raise UserError(
            f"audio of shape {list(waveform.shape)}: expected finite samples [samples] or [channels, samples]"
        )
    if waveform.ndim == 2 and len(waveform) > max(1, waveform.shape[1]):
        raise UserError(
            f"audio of shape {list(waveform.shape)} has more channels than samples; "
            "expected [channels, samples]: write audio=waveform.T"
        )
    waveform = waveform.mean(0) if waveform.ndim == 2 else waveform
    peak = float(waveform.abs().max()) if waveform.numel() else 0.0
    if peak > 1:
        raise UserError(
            f"audio reaches {peak:g}: expected samples in [-1, 1]; divide it by its largest magnitude"
        )
    waveform = resample(waveform[None], int(sample_rate), geometry.sample_rate)[0]
    frames = waveform.numel() // geometry.samples_per_frame
    if frames < least:
        seconds = waveform.numel() / geometry.sample_rate
        raise UserError(
            f"audio of {seconds:.2f} s: expected at least the {least / geometry.fps:g} s "
            f"{'of a clip (its beginning is used)' if least == most else 'that the task reads'}"
        )
    used = (frames if most is None else min(frames, most)) * geometry.samples_per_frame
    return waveform[:used].clamp(-1, 1).numpy()  # resampling overshoots loud edges


def fit_video(
    video: np.ndarray | Tensor,
    frame_rate: int | None,
    geometry: ClipGeometry,
    canvas: Canvas,
    *,
    least: int,
    most: int | None,
) -> np.ndarray:
    """uint8 [T, H, W, 3]: frames are chosen by time, then scaled as those of the training data are.

    video: uint8 [frames, rows, columns, 3].
    frame_rate: of `video`; None: the model's rate.
    geometry: the model's clip.
    canvas: how pictures of another size are fitted.
    least: frames that are needed.
    most: most frames that are used; None: all.
    """
    pictures = np.asarray(video.detach().cpu() if isinstance(video, Tensor) else video)
    if pictures.ndim != 4 or pictures.shape[-1] != 3 or pictures.dtype != np.uint8:
        raise UserError(
            f"video of shape {list(pictures.shape)} and type {pictures.dtype}: expected uint8 [T, H, W, 3]"
        )
    if frame_rate is not None:  # frame k is the picture shown at k / fps
        count = len(pictures) * geometry.fps // frame_rate
        pictures = pictures[np.arange(count) * frame_rate // geometry.fps]
    if len(pictures) < least:
        raise UserError(
            f"video of {len(pictures)} frames: expected at least {least} at {geometry.fps} fps"
            + (" (its beginning is used)" if least == most else "")
        )
    pictures = pictures[:most]
    if pictures.shape[1:3] == (geometry.height, geometry.width):
        return pictures
    frames = [np.ascontiguousarray(picture) for picture in pictures]
    return np.stack([canvas.draw(av.VideoFrame.from_ndarray(frame, format="rgb24")) for frame in frames])
