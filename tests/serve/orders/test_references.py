"""Uploaded files as given streams: the right length and size, or a refusal that says why."""

import base64
import io
import resource
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from proav.media.container import encode_clip, read_clip
from proav.serve.front.api_error import ApiError
from proav.serve.orders.references import read_data_url, read_given
from tests.media.flash_and_beep import beep_times, make_film, regular
from tests.media.hostile_files import ffv1, h264, switching_h264, wav, with_damaged_sound
from tests.synthetic_clips import make_clip
from tests.tiny import tiny_config

CONFIG = tiny_config()  # 4 frames of 32x32 at 5 fps: 0.8 s, 12800 samples
LIMITS = {"deadline_seconds": 20, "max_bytes": 512 * 2**20}


@pytest.mark.parametrize(
    "data", [wav(0.8), wav(3.0), wav(1.0, rate=44_100, channels=2), encode_clip(make_clip(1, seconds=1.0))]
)
def test_sound_of_any_file_is_given_at_the_models_rate(data):
    given = read_given(data, "a2v", CONFIG, **LIMITS)["audio"]
    assert given.shape == (12_800,) and given.dtype == np.float32 and 0.05 < np.abs(given).max() <= 1


@pytest.mark.parametrize("silent", [False, True])
def test_pictures_of_any_file_are_given_at_the_models_size(silent):
    data = encode_clip(make_clip(1, seconds=1.0, silent=silent))
    streams = read_given(data, "v2a", CONFIG, **LIMITS)
    given = streams.pop("video")
    assert not streams and given.shape == (4, 32, 32, 3) and given.dtype == np.uint8


@pytest.mark.parametrize(
    "sound",
    [{"sound_to": 0.5}, {"sound_from": 1.5}, {"sound_from": 5.0, "sound_to": 6.0}, {"sound_to": 9.0}],
)
@pytest.mark.parametrize("damage", [bytes, with_damaged_sound])
def test_pictures_are_given_whole_whatever_sound_the_file_had(tmp_path, sound, damage):
    film = {"times": regular(10, 2), "flashes": (Fraction(3, 2),)}
    mute = make_film(tmp_path / "mute.mkv", **film, audio=None)
    path = make_film(tmp_path / "film.mkv", **film, **sound)
    for frames in (None, 10):
        expected, found = (
            read_given(data, "v2a", CONFIG, **LIMITS, num_frames=frames)["video"]
            for data in (Path(mute).read_bytes(), damage(Path(path).read_bytes()))
        )
        assert np.array_equal(found, expected) and len(found) == (frames or 4)


@pytest.mark.parametrize("times", [[Fraction(0), Fraction(1, 10)], regular(10, 2, first=7)])
def test_sound_is_given_whole_whatever_pictures_the_file_had(tmp_path, times):
    path = make_film(tmp_path / "film.mkv", times=times, beeps=(3.0,), sound_to=9.0)
    given = read_given(Path(path).read_bytes(), "a2v", CONFIG, **LIMITS, num_frames=45)["audio"]
    assert len(given) == 9 * 16_000 and beep_times(given, 16_000, 1) == [pytest.approx(3.0, abs=0.01)]


def test_sound_that_ends_a_little_early_is_filled_with_silence():
    given = read_given(wav(0.75), "a2v", CONFIG, **LIMITS)["audio"]
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
        read_given(data, task, CONFIG, **LIMITS)
    assert (
        error.value.status == 400 and error.value.param == "input_reference" and said in error.value.message
    )
    assert "<" not in error.value.message and "None" not in error.value.message


def test_data_urls():
    assert read_data_url("data:audio/wav;base64," + base64.b64encode(b"\x00\xff").decode()) == b"\x00\xff"
    assert read_data_url("data:,a%20b") == b"a b"
    for wrong in (
        "https://example.org/a.wav",
        "file:///etc/passwd",
        "data:audio/wav;base64",
        "data:audio/wav;base64,#",
        "data:;base64,a",
    ):
        with pytest.raises(ApiError, match="data: URL"):
            read_data_url(wrong)


def test_masked_tasks_are_given_what_they_read():
    data = encode_clip(make_clip(1, seconds=1.6))  # 8 frames
    whole = read_clip(io.BytesIO(data), fps=5, sample_rate=16_000, height=32, width=32, fit="crop")
    picture = read_given(data, "i2av", CONFIG, **LIMITS)
    assert picture.keys() == {"video"} and np.array_equal(picture["video"], whole.video[:1])
    clip = read_given(data, "inpaint", CONFIG, **LIMITS)
    assert np.array_equal(clip["video"], whole.video[:4]) and len(clip["audio"]) == 12_800
    clip = read_given(data, "continue", CONFIG, **LIMITS, max_windows=2)
    assert np.array_equal(clip["video"], whole.video) and np.array_equal(clip["audio"], whole.audio)


def test_a_stream_is_given_for_all_of_a_clip():
    data = encode_clip(make_clip(1, seconds=1.6))
    for frames in (2, 8):
        assert len(read_given(data, "v2a", CONFIG, **LIMITS, num_frames=frames)["video"]) == frames
        assert len(read_given(data, "a2v", CONFIG, **LIMITS, num_frames=frames)["audio"]) == 3200 * frames
    with pytest.raises(ApiError, match="expected at least 9 frames"):
        read_given(data, "v2a", CONFIG, **LIMITS, num_frames=9)
    with pytest.raises(ApiError, match="holds 1.6 s of sound; expected at least the 1.8 s of the clip"):
        read_given(data, "a2v", CONFIG, **LIMITS, num_frames=9)
    assert len(read_given(data, "i2av", CONFIG, **LIMITS, num_frames=9)["video"]) == 1


@pytest.mark.parametrize(
    ("data", "task", "code", "said"),
    [
        (encode_clip(make_clip(1, seconds=1.8)), "continue", "too_long", "longer than 1.6 s"),
        (encode_clip(make_clip(1, seconds=0.2)), "continue", "too_short", "expected at least 2 frames"),
        (encode_clip(make_clip(1, seconds=0.4)), "inpaint", "too_short", "expected at least 4 frames"),
        (h264(num_frames=30, width=64, height=64), "inpaint", "no_audio", "no sound"),
        (wav(1.0), "i2av", "no_video", "no pictures"),
    ],
)
def test_clips_that_will_not_do_are_refused(data, task, code, said):
    with pytest.raises(ApiError) as error:
        read_given(data, task, CONFIG, **LIMITS, max_windows=2)
    assert (error.value.status, error.value.code) == (400, code) and said in error.value.message


@pytest.mark.parametrize(
    ("data", "task", "code", "said"),
    [
        (wav(0.6, stated_rate=1), "a2v", "bad_rate", "a rate of 1 Hz; expected 1000 to 768000 Hz"),
        (wav(0.6, stated_rate=999), "a2v", "bad_rate", "a rate of 999 Hz"),
        (wav(0.6, stated_rate=2**31 - 1), "a2v", "bad_rate", "a rate of 2147483647 Hz"),
        (switching_h264(width=16_000, height=8_000), "v2a", "too_large", "of 16000x8000; expected at most"),
        (switching_h264(width=16_000, height=8_000, num_before=0), "v2a", "too_large", "of 16000x8000"),
        (switching_h264(width=8_192, height=8_192), "v2a", "too_large", "expected at most 33554432 pixels"),
    ],
)
def test_files_that_would_cost_far_more_than_they_weigh_are_refused(data, task, code, said):
    """The process that decodes may take 256 MiB. This process, which starts it, hardly grows."""
    assert len(data) < 20_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ApiError) as error:
        read_given(data, task, CONFIG, deadline_seconds=20, max_bytes=256 * 2**20)
    assert (error.value.status, error.value.code) == (400, code) and said in error.value.message
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 * 1024  # KiB on Linux


def test_memory_that_runs_out_while_a_file_is_decoded_is_reported():
    """Pictures of three planes of 16 bits take 96 MiB each, and the decoder holds more than two."""
    data = ffv1(num_frames=4, width=4_096, height=4_096, pixel_format="gbrp16le")
    with pytest.raises(ApiError) as error:
        read_given(data, "v2a", CONFIG, deadline_seconds=20, max_bytes=256 * 2**20)
    assert (error.value.status, error.value.code) == (400, "too_large") and "memory" in error.value.message


def test_a_large_picture_is_taken_where_its_memory_allows():
    given = read_given(h264(num_frames=6, width=1920, height=1088), "v2a", CONFIG, **LIMITS)["video"]
    assert given.shape == (4, 32, 32, 3)


def test_a_decoder_that_takes_too_long_is_reported():
    with pytest.raises(ApiError, match="longer than 0.001 s") as error:
        data = encode_clip(make_clip(1, seconds=1.0))
        read_given(data, "v2a", CONFIG, deadline_seconds=0.001, max_bytes=2**30)
    assert error.value.code == "timeout"
