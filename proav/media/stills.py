"""One picture from an image or a video file, drawn at the size of a model.

Not here: pictures with their times (`container.py`). Letters: H and W rows and columns.
"""

from collections.abc import Callable
from typing import BinaryIO, Literal

import numpy as np

from proav.errors import MediaError
from proav.media.demuxing import Decoder, check_pixels, pixel_aspect
from proav.media.opening import FORMATS, MAX_PIXELS, Watch, opened
from proav.media.pictures import Canvas
from proav.media.tracks import main_track

IMAGE_FORMATS = "png_pipe,jpeg_pipe,webp_pipe,bmp_pipe"
"""Images that are opened here. Data sets are made of recordings, where an image is a mistake."""


def read_picture(
    source: str | BinaryIO,
    *,
    height: int,
    width: int,
    fit: Literal["pad", "crop"] = "pad",
    deadline_seconds: float | None = None,
    on_progress: Callable[[], None] | None = None,
    max_pixels: int = MAX_PIXELS,
) -> np.ndarray:
    """The picture of an image file (PNG, JPEG, WebP, BMP), or the first one of a video: uint8 [H, W, 3].

    source: a path, local or remote, or an open binary file.
    height, width: of the result, pixels.
    fit: "pad" or "crop", as in `pictures.Canvas`.
    deadline_seconds: time that this function may spend.
    on_progress: called at each packet that is read, as a sign of life.
    max_pixels: files with larger pictures are refused (rows x columns).
    Raises StorageUnavailable, and MediaError with reason not_found, empty_file, unreadable, no_video,
    unsupported_codec, too_large, decode_error or timeout.
    """
    watch = Watch(deadline_seconds, on_progress)
    with opened(source, watch, formats=f"{FORMATS},{IMAGE_FORMATS}") as (container, name):
        track = main_track(container, "video", name)
        check_pixels(track, name, max_pixels)
        canvas = Canvas(height=height, width=width, fit=fit, pixel_aspect=pixel_aspect(track))
        for kind, frame in Decoder(container, [track], name, watch, max_pixels).frames():
            if kind == "video":
                return canvas.draw(frame)
    raise MediaError("no_video", f"{name} holds no picture that can be decoded")
