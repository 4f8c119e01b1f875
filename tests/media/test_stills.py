"""One picture of an image or a video file: exact if the format is lossless, upright, or refused with a
reason."""

import io
import struct
from fractions import Fraction

import av
import numpy as np
import pytest

from proav.errors import MediaError
from proav.media.container import encode_clip, read_clip
from proav.media.stills import read_picture
from tests.media.hostile_files import wav
from tests.synthetic_clips import make_clip

HEIGHT, WIDTH = 48, 64
PICTURE = np.broadcast_to(np.linspace(0, 255, WIDTH).astype(np.uint8)[:, None], (HEIGHT, WIDTH, 3)).copy()
PICTURE[: HEIGHT // 2, :, 0] = 0  # its upper half is not red: rotations and mirror images differ


def image(codec: str, pixel_format: str) -> bytes:
    encoder = av.CodecContext.create(codec, "w")
    encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = (
        WIDTH,
        HEIGHT,
        pixel_format,
        Fraction(1),
    )
    frame = av.VideoFrame.from_ndarray(PICTURE, format="rgb24").reformat(format=pixel_format)
    return b"".join(bytes(packet) for packet in [*encoder.encode(frame), *encoder.encode(None)])


def with_orientation(jpeg: bytes, orientation: int) -> bytes:
    """A JPEG with an Exif segment that has the orientation alone."""
    entry = struct.pack(">HHIHH", 0x0112, 3, 1, orientation, 0)
    exif = b"Exif\0\0" + b"MM\0*" + struct.pack(">IH", 8, 1) + entry + bytes(4)
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:]


@pytest.mark.parametrize(
    ("codec", "pixel_format", "tolerance"),
    [("png", "rgb24", 0), ("bmp", "bgr24", 0), ("mjpeg", "yuvj444p", 6), ("libwebp", "yuv420p", 90)],
)
def test_images_are_read(codec, pixel_format, tolerance):
    picture = read_picture(io.BytesIO(image(codec, pixel_format)), height=HEIGHT, width=WIDTH)
    error = np.abs(picture.astype(int) - PICTURE)
    assert picture.dtype == np.uint8 and error.max() <= tolerance and error.mean() < 3


@pytest.mark.parametrize(
    ("orientation", "turns"),
    [(1, 0), (8, 1), (3, 2), (6, 3)],  # of Exif; quarter turns counterclockwise
)
def test_photographs_are_upright(orientation, turns):
    upright = np.rot90(PICTURE, turns)
    file = io.BytesIO(with_orientation(image("mjpeg", "yuvj444p"), orientation))
    picture = read_picture(file, height=upright.shape[0], width=upright.shape[1])
    assert np.abs(picture.astype(int) - upright).max() <= 6


def test_of_a_video_the_first_picture_is_taken(tmp_path):
    data = encode_clip(make_clip(1, seconds=1.0))
    whole = read_clip(io.BytesIO(data), fps=5, sample_rate=16_000, height=32, width=32)
    assert np.array_equal(read_picture(io.BytesIO(data), height=32, width=32), whole.video[0])
    path = tmp_path / "clip.mp4"
    path.write_bytes(data)
    assert np.array_equal(read_picture(str(path), height=32, width=32), whole.video[0])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty_file"),
        (b"junk" * 100, "unreadable"),
        (b"\x89PNG\r\n\x1a\n" + b"x" * 50, "no_video"),
        (wav(1.0), "no_video"),
        (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "unreadable"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "unreadable"),
    ],
)
def test_files_without_a_picture_are_refused(data, reason):
    with pytest.raises(MediaError) as error:
        read_picture(io.BytesIO(data), height=32, width=32)
    assert error.value.reason == reason


def test_large_pictures_are_refused():
    with pytest.raises(MediaError, match="expected at most 3071 pixels") as error:
        read_picture(io.BytesIO(image("png", "rgb24")), height=32, width=32, max_pixels=HEIGHT * WIDTH - 1)
    assert error.value.reason == "too_large"
