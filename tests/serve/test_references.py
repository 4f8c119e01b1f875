"""Uploaded files as given streams: the right length and size, or a refusal that says why."""

import base64
import io
import wave

import numpy as np
import pytest

from proav.media.container import encode_clip
from proav.serve.references import given_clip, read_data_url, read_given
from proav.serve.requests import ApiError
from tests.synthetic_clips import make_clip
from tests.tiny import tiny_config

CONFIG = tiny_config()  # 4 frames of 32x32 at 5 fps: 0.8 s, 12800 samples


def wav(seconds, *, rate=16_000, channels=1):
    tone = (8000 * np.sin(np.arange(int(seconds * rate)) / 10)).astype("<i2")
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.repeat(tone, channels).tobytes())
    return buffer.getvalue()


@pytest.mark.parametrize("data", [wav(0.8), wav(3.0), wav(1.0, rate=44_100, channels=2), encode_clip(make_clip(1, seconds=1.0))])
def test_sound_of_any_file_is_given_at_the_models_rate(data):
    given = read_given(data, "a2v", CONFIG, deadline_seconds=20)
    assert given.shape == (12_800,) and given.dtype == np.float32 and 0.05 < np.abs(given).max() <= 1


@pytest.mark.parametrize("silent", [False, True])
def test_pictures_of_any_file_are_given_at_the_models_size(silent):
    given = read_given(encode_clip(make_clip(1, seconds=1.0, silent=silent)), "v2a", CONFIG, deadline_seconds=20)
    assert given.shape == (4, 32, 32, 3) and given.dtype == np.uint8


def test_sound_that_ends_a_little_early_is_filled_with_silence():
    given = read_given(wav(0.75), "a2v", CONFIG, deadline_seconds=20)
    assert given.shape == (12_800,) and not given[12_100:].any()


@pytest.mark.parametrize(
    ("data", "task", "said"),
    [
        (b"", "a2v", "empty"),
        (b"junk" * 100, "a2v", "cannot be opened"),
        (b"junk" * 100, "v2a", "cannot be opened"),
        (wav(0.3), "a2v", "holds 0.3 s of sound; expected at least the 0.8 s"),
        (wav(1.0), "v2a", "input_reference"),
        (encode_clip(make_clip(1, seconds=0.4)), "v2a", "expected at least 4 frames"),
        (encode_clip(make_clip(1, seconds=1.0))[:800], "v2a", "input_reference"),
    ],
)
def test_files_that_will_not_do_are_refused(data, task, said):
    with pytest.raises(ApiError) as error:
        read_given(data, task, CONFIG, deadline_seconds=20)
    assert error.value.status == 400 and error.value.param == "input_reference" and said in error.value.message
    assert "<" not in error.value.message and "None" not in error.value.message


def test_data_urls():
    assert read_data_url("data:audio/wav;base64," + base64.b64encode(b"\x00\xff").decode()) == b"\x00\xff"
    assert read_data_url("data:,a%20b") == b"a b"
    for wrong in ("https://example.org/a.wav", "file:///etc/passwd", "data:audio/wav;base64", "data:audio/wav;base64,#", "data:;base64,a"):
        with pytest.raises(ApiError, match="data: URL"):
            read_data_url(wrong)


def test_a_given_stream_becomes_a_clip_with_the_other_empty():
    clip = given_clip(np.ones(12_800, np.float32), CONFIG)
    assert clip.audio.all() and not clip.video.any()
    clip = given_clip(np.full((4, 32, 32, 3), 9, np.uint8), CONFIG)
    assert not clip.audio.any() and clip.video.all()
    assert given_clip(None, CONFIG) is None
