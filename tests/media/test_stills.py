"""One picture of an image or a video file: exact if the format is lossless, upright, or refused with a
reason. All pictures of a file, whatever its sound."""

import io
import struct
from fractions import Fraction

import av
import numpy as np
import pytest

from proav.errors import MediaError
from proav.media.container import encode_clip, read_clip, read_pictures
from proav.media.stills import read_picture
from tests.media.flash_and_beep import expected_white, make_film, regular, white_frames
from tests.media.hostile_files import wav, with_damaged_sound
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


SMALL = {"fps": 10, "height": 16, "width": 16}
FLASHES = (Fraction(1, 2), Fraction(17, 10))


@pytest.mark.parametrize("ending", ["mp4", "mkv", "ts"])
@pytest.mark.parametrize(
    "sound",
    [{"audio": None}, {"sound_to": 0.5}, {"sound_from": 1.4}, {"sound_from": 5.0, "sound_to": 6.0},
     {"sound_to": 9.0}],
)  # fmt: skip
def test_pictures_are_those_of_the_file_whatever_its_sound(tmp_path, ending, sound):
    times = regular(10, 2)
    sound = sound | ({"audio": "mp2"} if ending == "ts" and "audio" not in sound else {})
    path = make_film(tmp_path / f"film.{ending}", times=times, flashes=FLASHES, **sound)
    video = read_pictures(path, **SMALL)
    assert white_frames(video) == expected_white(times, FLASHES, 10, 20, Fraction(0)) and len(video) == 20
    later = read_pictures(path, **SMALL, start_seconds=1.2, num_frames=8)
    assert np.array_equal(white_frames(later), [5, 6])
    with pytest.raises(MediaError, match="holds 2.00 s with pictures; expected at least 21 frames"):
        read_pictures(path, **SMALL, num_frames=21)


@pytest.mark.parametrize("ending", ["mkv", "mp4", "ts"])
@pytest.mark.parametrize("late", [1, 5, 8, 40])
def test_time_0_is_the_beginning_of_the_pictures_if_sound_comes_first(tmp_path, ending, late):
    film = {"times": regular(10, 2, first=late), "flashes": [late + FLASHES[0]], "sound_to": late + 2.0}
    film |= {"audio": "mp2"} if ending == "ts" else {}
    path = make_film(tmp_path / f"film.{ending}", **film)
    video = read_pictures(path, **SMALL)
    assert white_frames(video) == [5, 6] and len(video) == 20
    later = read_pictures(path, **SMALL, start_seconds=0.3, num_frames=10)
    assert white_frames(later) == [2, 3]
    with open(path, "rb") as file:
        assert np.array_equal(read_pictures(file, **SMALL), video)


@pytest.mark.parametrize("damage", [with_damaged_sound, lambda film: film.replace(b"A_AAC", b"A_XYZ")])
def test_sound_that_cannot_be_decoded_does_not_matter(tmp_path, damage):
    path = make_film(tmp_path / "film.mkv", times=regular(10, 2), flashes=FLASHES)
    with open(path, "rb") as file:
        film = damage(file.read())
    with pytest.raises(MediaError) as caught:
        read_clip(io.BytesIO(film), **SMALL, sample_rate=16_000)
    assert caught.value.reason in ("decode_error", "unsupported_codec")
    assert np.array_equal(read_pictures(io.BytesIO(film), **SMALL), read_pictures(path, **SMALL))


@pytest.mark.parametrize("times", [[*range(20), 80, 500], range(20), [0, 150]])
def test_the_last_still_stays_as_long_as_the_sound_that_is_not_read(tmp_path, times):
    """As with sound: stills were shown before, or the file does not say how long the last picture stays."""
    path = make_film(
        tmp_path / "film.mkv", times=[Fraction(time, 10) for time in times], tick=Fraction(1, 1000),
        sound_to=60.0, paint=lambda time: np.full((64, 80, 3), 20 + 2 * int(time), np.uint8),
    )  # fmt: skip
    video = read_pictures(path, **SMALL)
    assert np.array_equal(video, read_clip(path, **SMALL, sample_rate=16_000).video) and len(video) == 600


def test_a_picture_that_stays_for_longer_than_ten_minutes_is_refused(tmp_path):
    times = [*regular(10, 2), Fraction(700)]
    path = make_film(tmp_path / "film.mkv", times=times, audio=None)
    assert len(read_pictures(path, **SMALL, num_frames=18)) == 18
    with pytest.raises(MediaError, match="one picture for more than 600 s from 1.90 s on; ask for") as caught:
        read_pictures(path, **SMALL)
    assert caught.value.reason == "no_picture"
