import numpy as np
import pytest

from proav.data.store.frames import decode_frames, encode_frames

SHAPE = (9, 32, 48, 3)


@pytest.fixture(scope="module")
def video():
    ramp = np.linspace(0, 4, np.prod(SHAPE)).reshape(SHAPE)
    return (127 + 100 * np.sin(ramp + np.arange(SHAPE[0])[:, None, None, None])).astype(np.uint8)


def test_raw_is_exact(video):
    data, offsets = encode_frames(video, codec="raw", quality=90)
    assert offsets == [frame * 32 * 48 * 3 for frame in range(10)]
    assert np.array_equal(decode_frames(data, offsets, codec="raw", shape=SHAPE), video)


def test_jpeg_is_near_and_smaller(video):
    data, offsets = encode_frames(video, codec="jpeg", quality=92)
    decoded = decode_frames(data, offsets, codec="jpeg", shape=SHAPE)
    assert np.abs(decoded.astype(int) - video).mean() < 2 and len(data) < video.nbytes / 3


@pytest.mark.parametrize("codec", ["raw", "jpeg"])
def test_window_equals_full_decode_and_reads_no_other_frame(video, codec):
    data, offsets = encode_frames(video, codec=codec, quality=92)
    full = decode_frames(data, offsets, codec=codec, shape=SHAPE)
    damaged = bytearray(len(data))
    damaged[offsets[3] : offsets[7]] = data[offsets[3] : offsets[7]]
    assert np.array_equal(
        decode_frames(bytes(damaged), offsets, codec=codec, shape=SHAPE, start=3, count=4), full[3:7]
    )


def test_same_frames_same_bytes(video):
    assert encode_frames(video, codec="jpeg", quality=92) == encode_frames(
        video.copy(), codec="jpeg", quality=92
    )


@pytest.mark.parametrize(("height", "width"), [(0xFFFF, 0xFFFF), (1, 48), (32, 47), (64, 96)])
def test_a_damaged_size_is_an_error_of_the_stored_bytes(video, height, width):
    """A picture of one row would fit any shape, and Pillow refuses huge ones with an error of its own."""
    data, offsets = encode_frames(video, codec="jpeg", quality=92)
    place = data.index(b"\xff\xc0") + 5  # the start of a frame: length, depth, height, width
    assert data[place : place + 4] == bytes([0, 32, 0, 48])
    damaged = data[:place] + height.to_bytes(2, "big") + width.to_bytes(2, "big") + data[place + 4 :]
    with pytest.raises(ValueError, match="a stored frame has .* pixels; expected 48x32"):
        decode_frames(damaged, offsets, codec="jpeg", shape=SHAPE)
