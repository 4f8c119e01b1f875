"""An uploaded file as the stream that a task is given, at the model's own rates and size.

The beginning of the file is used, as in SoundingVideoPipeline. It runs in a thread, because it waits for the
decoding. Not here: the decoding (`upload_process.py`), and which tasks take a file (`requests.py`). Letters:
T frames, H and W rows and columns.
"""

import base64
import binascii
import math
import urllib.parse

import numpy as np

from proav.config import Config
from proav.diffusion.tasks import TASKS
from proav.errors import MediaError
from proav.geometry import ClipGeometry
from proav.media.container import MAX_PIXELS, Clip
from proav.media.cutting import MAX_SOUND_SHORTFALL
from proav.serve.front.api_error import ApiError
from proav.serve.orders.upload_process import decode_upload

BYTES_PER_PIXEL = 8
"""Memory allowed for each pixel of a picture in an uploaded file: a decoder holds several pictures at a time.
A file that needs more fails while it is decoded, and then not every decoder says why."""


def read_data_url(url: str) -> bytes:
    """The bytes of a data: URL, base64 or percent-encoded.

    Raises ApiError 400 for any other address: a server that fetches what clients name is a security hole.
    """
    head, comma, body = url.partition(",")
    if not head.startswith("data:") or not comma:
        said = (
            "input_reference names an address; expected a data: URL, or the file itself in a multipart body"
        )
        raise ApiError(400, said, param="input_reference")
    try:
        return (
            base64.b64decode(body, validate=True)
            if head.endswith(";base64")
            else urllib.parse.unquote_to_bytes(body)
        )
    except (binascii.Error, ValueError) as error:
        raise ApiError(
            400, f"input_reference is no valid data: URL ({error})", param="input_reference"
        ) from error


def read_given(
    data: bytes, task: str, config: Config, *, deadline_seconds: float, max_bytes: int
) -> np.ndarray:
    """The given stream of a task: float32 [samples] for a2v, uint8 [T, H, W, 3] for v2a.

    data: the uploaded file.
    task: a2v or v2a.
    config: that of the run that made the model, which sets rates and sizes.
    deadline_seconds: time that decoding may take.
    max_bytes: memory that decoding may take.
    Raises ApiError 400 if the file does not hold that stream.
    """
    geometry = ClipGeometry.from_config(config)
    if TASKS[task].given == "video":
        call = {
            "read": "pictures",
            "fps": geometry.fps,
            "sample_rate": geometry.sample_rate,
            "height": geometry.height,
            "width": geometry.width,
            "fit": config.data.fit,
            "num_frames": geometry.num_frames,
            "max_pixels": min(MAX_PIXELS, max_bytes // BYTES_PER_PIXEL),
        }
    else:
        call = {"read": "sound", "sample_rate": geometry.sample_rate, "max_seconds": geometry.seconds}
    try:
        given = decode_upload(data, call, deadline_seconds=deadline_seconds, max_bytes=max_bytes)
    except MediaError as error:
        raise ApiError(
            400, f"input_reference: {_plain(error)}", param="input_reference", code=error.reason
        ) from error
    if TASKS[task].given == "video":
        return given
    sound = given
    missing = geometry.num_samples - len(sound)
    if missing > MAX_SOUND_SHORTFALL * geometry.sample_rate:
        held = f"{math.floor(100 * len(sound) / geometry.sample_rate) / 100:g} s"
        said = (
            f"input_reference holds {held} of sound; "
            f"expected at least the {geometry.seconds:g} s of a clip (its beginning is used)"
        )
        raise ApiError(400, said, param="input_reference", code="too_short")
    return np.pad(sound, (0, missing))


def given_clip(given: np.ndarray | None, config: Config) -> Clip | None:
    """The clip for SampleRequest.given: the given stream, with black or silence as the other stream."""
    if given is None:
        return None
    geometry = ClipGeometry.from_config(config)
    black = np.zeros((geometry.num_frames, geometry.height, geometry.width, 3), np.uint8)
    silence = np.zeros(geometry.num_samples, np.float32)
    video, audio = (given, silence) if given.ndim == 4 else (black, given)
    return Clip(video=video, audio=audio, fps=geometry.fps, sample_rate=geometry.sample_rate)


def _plain(error: MediaError) -> str:
    """The message with a name for the file: PyAV has none for a file in memory."""
    return str(error).replace("<none>", "the given file")
