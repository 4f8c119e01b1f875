"""Interlaced pictures: the comb is removed, and the time is that of the first field."""

from fractions import Fraction

import av
import numpy as np
import pytest

from proav.media.container import read_clip
from proav.media.interlacing import Deinterlacer
from tests.media.flash_and_beep import INTERLACED, FieldMarker, make_film, regular

HEIGHT, WIDTH = 64, 160
SPEED = 6
"""How many columns the edge moves from one field to the next."""


def edge_at(time: Fraction) -> int:
    return 10 + int(SPEED * time * 50)


def fields(time: Fraction, first_row: int) -> np.ndarray:
    """A picture that is white left of the edge. The rows of the second field are 1/50 s later."""
    pixels = np.full((HEIGHT, WIDTH, 3), 20, np.uint8)
    pixels[first_row::2, : edge_at(time)] = 235
    pixels[1 - first_row :: 2, : edge_at(time + Fraction(1, 50))] = 235
    return pixels


def edges(picture: np.ndarray) -> np.ndarray:
    """The edge's column in each row, without the four outermost rows on either side."""
    return (picture.mean(axis=-1) > 128).sum(axis=1)[4:-4]


@pytest.mark.parametrize(("order", "first_row"), [("tff", 0), ("bff", 1)])
@pytest.mark.parametrize(
    ("extension", "video", "audio"), [("ts", "mpeg2video", "mp2"), ("mp4", "libx264", "aac")]
)
def test_a_moving_edge_has_no_comb(tmp_path, extension, video, audio, order, first_row):
    options = {"tff": INTERLACED, "bff": {**INTERLACED, "x264-params": "bff=1:log-level=none"}}[order] | {
        "crf": "5",
        "bf": "0",
    }
    times = regular(25, Fraction(2, 5))
    path = make_film(
        tmp_path / f"film.{extension}", times=times, paint=lambda time: fields(time, first_row),
        size=(HEIGHT, WIDTH), video=video, audio=audio, options=options, bit_rate=8_000_000,
        prepare=FieldMarker(order), sound_to=0.5, pixel_format="yuv420p",
    )  # fmt: skip
    with av.open(path) as container:
        combed = edges(next(container.decode(video=0)).to_ndarray(format="rgb24"))
    assert abs(int(combed[0]) - int(combed[1])) >= SPEED - 1
    clip = read_clip(path, fps=25, sample_rate=16000, height=HEIGHT, width=WIDTH)
    assert len(clip.video) == len(times)
    for index, picture in enumerate(clip.video[1:-1], start=1):
        found = edges(picture)
        assert np.abs(np.diff(found)).max() <= 2
        assert abs(np.median(found) - edge_at(times[index])) <= 2


def frames(count, *, size=(HEIGHT, WIDTH), first=0):
    for index in range(first, first + count):
        frame = av.VideoFrame.from_ndarray(np.full((*size, 3), 100, np.uint8), format="rgb24").reformat(
            format="yuv420p"
        )
        frame.pts, frame.time_base = index, Fraction(1, 25)
        yield frame


def test_whole_pictures_pass_unchanged():
    deinterlacer = Deinterlacer()
    given = list(frames(3))
    assert [deinterlacer.push(frame) for frame in given] == [
        [frame] for frame in given
    ] and not deinterlacer.finish()


def test_none_is_lost_where_interlaced_and_whole_pictures_and_sizes_change():
    deinterlacer, out = Deinterlacer(), []
    large, small = FieldMarker(), FieldMarker()
    given = [
        *frames(2),
        *map(large, frames(3, first=2)),
        *frames(2, first=5),
        *map(small, frames(3, size=(32, 64), first=7)),
        *frames(2, first=10),
    ]
    for frame in given:
        out += deinterlacer.push(frame)
    out += deinterlacer.finish()
    assert [frame.time for frame in out] == [frame.time for frame in given]
    assert not any(frame.interlaced_frame for frame in out)
    assert [(frame.width, frame.height) for frame in out] == [(frame.width, frame.height) for frame in given]


def test_pictures_too_small_to_be_filled_in_are_left():
    deinterlacer, marker = Deinterlacer(), FieldMarker()
    assert (
        len([picture for frame in frames(3, size=(8, 8)) for picture in deinterlacer.push(marker(frame))])
        == 3
    )
