"""An uploaded file as the streams that a task is given, at the model's own rates and size.

The beginning of the file is used, as in SoundingVideoPipeline; a clip that is to be continued is used whole.
Call these functions in a thread, since they wait for the decoding. Not here: the decoding
(`upload_process.py`), and which tasks take a file (`requests.py`). Letters: T frames, H and W rows and
columns.
"""

import base64
import binascii
import math
import urllib.parse

import numpy as np

from proav.config import Config
from proav.diffusion.tasks import TASKS
from proav.errors import MediaError
from proav.generation.inputs import frames_needed
from proav.geometry import ClipGeometry
from proav.media.container import MAX_PIXELS
from proav.media.cutting import MAX_SOUND_SHORTFALL
from proav.serve.front.api_error import ApiError
from proav.serve.orders.upload_process import decode_upload

BYTES_PER_PIXEL = 8
"""Memory counted for each pixel of a picture in an uploaded file: a decoder holds several pictures at a time.
So a picture that is too large is refused before it is decoded: some decoders do not report that memory ran
out."""


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
    data: bytes,
    task: str,
    config: Config,
    *,
    deadline_seconds: float,
    max_bytes: int,
    max_windows: int = 1,
    num_frames: int | None = None,
) -> dict[str, np.ndarray]:
    """The streams that a task reads: "audio", float32 [samples]; "video", uint8 [T, H, W, 3]; or both.

    data: the uploaded file.
    task: a name of TASKS that takes a file.
    config: of the model's run; it sets rates and sizes.
    deadline_seconds: time that decoding may take.
    max_bytes: memory that decoding may take.
    max_windows: a clip that is to be continued may be this many times as long as the model's clips.
    num_frames: frames of the clip to make; None: those of the model's clips.
    Raises ApiError 400 if the file does not hold these streams.
    """
    geometry, needed = ClipGeometry.from_config(config), frames_needed(config, task)
    least, most = max(needed.values()), geometry.num_frames
    if TASKS[task].given and num_frames is not None:
        least = most = num_frames
    if TASKS[task].extends:
        most = max_windows * geometry.num_frames
    size = {"height": geometry.height, "width": geometry.width, "fit": config.data.fit}
    size["max_pixels"] = min(MAX_PIXELS, max_bytes // BYTES_PER_PIXEL)
    rates = {"fps": geometry.fps, "sample_rate": geometry.sample_rate}
    if not needed["video"]:
        call = {"read": "sound", "sample_rate": geometry.sample_rate, "max_seconds": least / geometry.fps}
    elif least == 1 and not needed["audio"]:
        call = {"read": "picture", **size}
    elif TASKS[task].extends:  # one frame more shows that a file is too long
        call = {"read": "clip", **rates, **size, "num_frames": most + 1, "min_frames": least}
    elif needed["audio"]:
        call = {"read": "clip", **rates, **size, "num_frames": least}
    else:
        call = {"read": "pictures", "fps": geometry.fps, **size, "num_frames": least}
    try:
        streams = decode_upload(data, call, deadline_seconds=deadline_seconds, max_bytes=max_bytes)
    except MediaError as error:
        raise _refused(f"input_reference: {_plain(error)}", error.reason) from error
    if len(streams.get("video", ())) > most:
        raise _refused(
            f"input_reference is longer than {most / geometry.fps:g} s; expected at most that: give its end",
            "too_long",
        )
    if not needed["video"]:
        streams["audio"] = _filled(streams["audio"], geometry, least)
    return streams


def _filled(sound: np.ndarray, geometry: ClipGeometry, frames: int) -> np.ndarray:
    """Sound as long as `frames` frames. If it ends a little early, silence follows. Raises ApiError 400."""
    missing = frames * geometry.samples_per_frame - len(sound)
    if missing > MAX_SOUND_SHORTFALL * geometry.sample_rate:
        held = f"{math.floor(100 * len(sound) / geometry.sample_rate) / 100:g} s"
        raise _refused(
            f"input_reference holds {held} of sound; "
            f"expected at least the {frames / geometry.fps:g} s of the clip (its beginning is used)",
            "too_short",
        )
    return np.pad(sound, (0, missing))


def _refused(said: str, code: str) -> ApiError:
    return ApiError(400, said, param="input_reference", code=code)


def _plain(error: MediaError) -> str:
    """The message with a name for the file: PyAV has none for a file in memory."""
    return str(error).replace("<none>", "the given file")
