"""Still pictures of a finished clip: its middle frame, a sheet of its frames, the spectrogram of its sound.

They are made from the mp4 alone, so that they show what was delivered. The functions block; the server calls
them in threads (`queue/service.py`). Letters: T frames, H and W rows and columns, C channels, M mel bins, S
mel steps within a frame, L = T S mel steps of the clip.
"""

import io
import math

import av
import matplotlib
import numpy as np
import torch
from PIL import Image

from proav.config import Config
from proav.geometry import ClipGeometry
from proav.media.container import Clip, read_clip
from proav.media.melframes import MelFrames

SHEET_PIXELS = 1024
"""Largest width of a sheet."""
MEDIA_TYPES = {
    "video": "video/mp4",
    "thumbnail": "image/jpeg",
    "spritesheet": "image/jpeg",
    "spectrogram": "image/png",
}


def preview(mp4: bytes, variant: str, config: Config) -> bytes:
    """The bytes of one preview of a clip.

    mp4: the clip; it may be of an earlier model, with another size and other rates.
    variant: one of MEDIA_TYPES except video.
    config: of the present model, on whose mel grid the spectrogram is drawn.
    """
    geometry = ClipGeometry.from_config(config)
    size = {"height": geometry.height, "width": geometry.width, "fps": geometry.fps}
    if variant != "spectrogram":
        with av.open(io.BytesIO(mp4)) as container:
            stream = container.streams.video[0]
            size = {"height": stream.height, "width": stream.width, "fps": round(stream.average_rate)}
    clip = read_clip(io.BytesIO(mp4), sample_rate=geometry.sample_rate, **size)
    if variant == "thumbnail":
        return _jpeg(Image.fromarray(clip.video[len(clip.video) // 2]))
    if variant == "spritesheet":
        return _jpeg(_sheet(clip.video))
    assert variant == "spectrogram", variant
    return _spectrogram(clip, config)


def _sheet(video_THWC: np.ndarray) -> Image.Image:
    """All frames in reading order, in about as many columns as rows, shrunk to SHEET_PIXELS if wider."""
    num_frames, height, width, _ = video_THWC.shape
    columns = math.ceil(math.sqrt(num_frames))
    rows = math.ceil(num_frames / columns)
    sheet = Image.new("RGB", (columns * width, rows * height))
    for index, frame in enumerate(video_THWC):
        sheet.paste(Image.fromarray(frame), (index % columns * width, index // columns * height))
    if sheet.width > SHEET_PIXELS:
        sheet = sheet.resize(
            (SHEET_PIXELS, max(1, round(sheet.height * SHEET_PIXELS / sheet.width))), Image.Resampling.LANCZOS
        )
    return sheet


def _spectrogram(clip: Clip, config: Config) -> bytes:
    """The log-mel image that the model works on, with low bands at the bottom.

    It has one pixel for each band and mel step, so that its whole width is the time of the clip.
    """
    mel_TMS = MelFrames(config).encode(torch.from_numpy(clip.audio[None]))[0].numpy()
    image_ML = mel_TMS.transpose(1, 0, 2).reshape(mel_TMS.shape[1], -1)[::-1]
    colours = matplotlib.colormaps["magma"]((image_ML.clip(-1, 1) + 1) / 2, bytes=True)[..., :3]
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(colours)).save(buffer, "png", optimize=True)
    return buffer.getvalue()


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "jpeg", quality=92)
    return buffer.getvalue()
