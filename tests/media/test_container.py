"""Files to clips and back: picture and sound are on one clock, whatever the file.

Every failure is a MediaError with its reason.
"""

import hashlib
import io
import os
import random
import subprocess
import sys
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest

from proav.errors import MediaError
from proav.media.container import (
    Clip,
    encode_clip,
    probe_seconds,
    read_clip,
    read_pictures,
    read_segments,
    read_sound,
    write_clip,
    write_clips,
)
from tests.media.flash_and_beep import make_film, regular
from tests.media.hostile_files import h264, switching_h264, wav
from tests.synthetic_clips import make_clip

REAL_CLIPS, HOSTILE_FILES = (
    Path(os.environ.get(name, f"no-{name}")) for name in ("PROAV_REAL_CLIPS", "PROAV_HOSTILE_FILES")
)
RATE, FPS = 16000, 10
PICTURES = {"fps": FPS, "height": 32, "width": 32}
SMALL = {**PICTURES, "sample_rate": RATE}
FLASHES, BEEPS = (0.5, 1.7, 3.1), (0.5, 1.7, 3.1)


def film(path, *, seconds=4, rate=30, sound_to=None, **options):
    """A film whose sound ends with its pictures or at `sound_to`.

    path: where it is written.
    seconds: how long its pictures last.
    rate: pictures per second.
    sound_to: when the sound ends, in seconds; None for `seconds`.
    options: passed to `make_film`.
    """
    return make_film(
        path, times=regular(rate, seconds), sound_to=seconds if sound_to is None else sound_to, **options
    )


def test_clip_says_what_is_wrong_with_arrays():
    video, audio = np.zeros((5, 4, 4, 3), np.uint8), np.zeros(8000, np.float32)
    assert Clip(video, audio, 10, RATE).seconds == 0.5
    for bad in (
        (video / 255, audio), (video[..., :1], audio), (video[0], audio), (list(video), audio),
        (video[:0], audio[:0]), (video, audio.astype(np.float64)), (video, audio[None]),
        (video, audio[:-1]), (video, audio + 1.5), (video, audio * np.nan),
    ):  # fmt: skip
        with pytest.raises(MediaError) as caught:
            Clip(*bad, 10, RATE)
        assert caught.value.reason == "bad_clip"


def test_a_written_clip_comes_back_in_step_and_in_colour(tmp_path):
    audio = np.zeros(25600, np.float32)
    starts = [3000, 11111, 20000]
    for start in starts:
        audio[start : start + 16] = np.hanning(16) * 0.9
    video = np.zeros((16, 64, 96, 3), np.uint8)
    video[:, :, :32], video[:, :, 32:64], video[:, :, 64:] = (200, 40, 40), (40, 160, 60), (30, 60, 220)
    video[np.arange(16), :8, np.arange(16) * 4] = 255
    path = str(tmp_path / "made" / "clip.mp4")
    Clip(video, audio, 10, RATE).save(path)
    assert [file.name for file in (tmp_path / "made").iterdir()] == ["clip.mp4"]
    back = read_clip(path, fps=10, sample_rate=RATE, height=64, width=96, num_frames=16)
    for start in starts:
        lags = range(-40, 41)
        template = audio[start - 50 : start + 66]
        scores = [float(template @ back.audio[start - 50 + lag : start + 66 + lag]) for lag in lags]
        assert abs(lags[int(np.argmax(scores))]) <= 2  # samples; a millisecond has 16
    assert np.abs(back.video[:, 16:, [8, 48, 88]].astype(int) - video[:, 16:, [8, 48, 88]]).max() <= 6
    assert np.abs(back.video.astype(int) - video).mean() < 6
    whole = read_clip(path, fps=10, sample_rate=RATE, height=64, width=96)
    assert len(whole.video) == 16 and len(whole.audio) == 25600


def test_written_files_are_the_same_bytes_play_while_loading_and_name_their_colours(tmp_path):
    clip = Clip(
        np.random.default_rng(0).integers(0, 255, (4, 32, 32, 3), dtype=np.uint8),
        np.zeros(6400, np.float32),
        10,
        RATE,
    )
    data = encode_clip(clip)
    assert data == encode_clip(clip)
    assert data.index(b"moov") < data.index(b"mdat")
    with av.open(io.BytesIO(data)) as container:
        frame = next(container.decode(video=0))
        assert (frame.colorspace, frame.format.name, container.streams.audio[0].codec_context.name) == (
            1,
            "yuv420p",
            "aac",
        )


def test_the_same_clip_gives_the_same_bytes_whatever_was_in_memory():
    script = (
        "import hashlib; from proav.media.container import encode_clip; "
        "from tests.synthetic_clips import make_clip; "
        "print([hashlib.sha256(encode_clip(make_clip(number, seconds=1.6, height=64, width=64))).hexdigest() "
        "for number in range(4)])"
    )
    root = Path(__file__).parents[2]
    runs = [
        subprocess.run(
            [sys.executable, "-c", script],
            cwd=root,
            env={**os.environ, "MALLOC_PERTURB_": fill},  # glibc fills memory that is not set with this byte
            capture_output=True,
            text=True,
            check=True,
        )
        for fill in ("0", "77")
    ]
    assert runs[0].stdout == runs[1].stdout


def test_the_same_small_clip_gives_the_same_bytes_whatever_ran_before_it():
    """With AVX-512, x264's macroblock tree gave other bytes about once in 60 clips of this size."""
    clip, draw = make_clip(3, seconds=2.6, height=32, width=32), random.Random(0)
    made = set()
    for _ in range(150):
        rubbish = [np.frombuffer(draw.randbytes(20_000), np.uint8).copy() for _ in range(draw.randrange(30))]
        del rubbish
        made.add(hashlib.sha256(encode_clip(clip)).hexdigest())
    assert len(made) == 1


@pytest.mark.parametrize(("fps", "cuts"), [(10, [1, 2, 3, 9]), (25, [4, 5, 30])])
def test_the_file_is_the_same_however_the_time_is_cut(tmp_path, fps, cuts):
    """Also where a frame's sound is shorter than a packet, and where a cut goes through a packet."""
    frames, samples = 31, RATE // fps
    draw = np.random.default_rng(0)
    video = draw.integers(0, 255, (frames, 32, 32, 3), dtype=np.uint8)
    audio = draw.uniform(-0.5, 0.5, frames * samples).astype(np.float32)
    pieces = [
        Clip(video[first:end], audio[first * samples : end * samples], fps, RATE)
        for first, end in pairwise([0, *cuts, frames])
    ]
    whole = encode_clip(Clip(video, audio, fps, RATE))
    write_clips(tmp_path / "cut.mp4", iter(pieces))
    assert (tmp_path / "cut.mp4").read_bytes() == whole


def test_clips_of_unlike_sizes_do_not_make_one_file(tmp_path):
    small, large = (
        Clip(np.zeros((2, n, n, 3), np.uint8), np.zeros(3200, np.float32), 10, RATE) for n in (16, 32)
    )
    with pytest.raises(MediaError, match="'height': 32.* behind one with .*'height': 16"):
        write_clips(tmp_path / "x.mp4", [small, large])
    assert not list(tmp_path.iterdir())


def test_what_the_format_cannot_hold_is_refused(tmp_path):
    for shape, rate, word in (((4, 33, 32, 3), RATE, "even"), ((4, 32, 32, 3), 10000, "AAC")):
        with pytest.raises(MediaError, match=word) as caught:
            write_clip(
                tmp_path / "x.mp4",
                Clip(np.zeros(shape, np.uint8), np.zeros(4 * rate // 10, np.float32), 10, rate),
            )
        assert caught.value.reason == "not_writable"
    assert not list(tmp_path.iterdir())


def test_segments_are_the_whole_in_pieces(tmp_path):
    path = film(tmp_path / "clip.mp4", flashes=FLASHES, beeps=BEEPS)
    whole = read_clip(path, **SMALL)
    segments = list(read_segments(path, **SMALL, segment_seconds=1.6, min_frames=5))
    assert [(start, len(clip.video)) for start, clip in segments] == [(0.0, 16), (1.6, 16), (3.2, 8)]
    assert np.array_equal(np.concatenate([clip.video for _, clip in segments]), whole.video)
    assert np.array_equal(np.concatenate([clip.audio for _, clip in segments]), whole.audio)
    assert len(list(read_segments(path, **SMALL, segment_seconds=1.6, min_frames=10))) == 2


def test_a_span_read_by_seeking_is_the_span_of_the_whole(tmp_path):
    path = film(
        tmp_path / "clip.mp4", flashes=FLASHES, beeps=BEEPS, sample_rate=RATE
    )  # resampling may begin anywhere between two samples
    whole = read_clip(path, **SMALL)
    ((start, part),) = read_segments(path, **SMALL, segment_seconds=10, start_seconds=1.5, end_seconds=3.5)
    assert start == 1.5 and np.array_equal(part.video, whole.video[15:35])
    assert np.abs(part.audio - whole.audio[24000:56000]).max() < 0.02
    with pytest.raises(MediaError) as caught:
        list(read_segments(path, **SMALL, segment_seconds=10, start_seconds=99))
    assert caught.value.reason == "too_short"


def test_progress_is_reported_while_reading(tmp_path):
    path = film(tmp_path / "clip.mp4", rate=25)
    signs = []
    segments = read_segments(path, **SMALL, segment_seconds=1, on_progress=lambda: signs.append(1))
    counts = [len(signs) for _ in segments]
    assert (
        counts[0] >= 25 and len(signs) >= 100 and counts == sorted(counts)
    )  # at least one for each picture's packet


def test_the_clip_ends_with_the_shorter_stream(tmp_path):
    short_sound = film(tmp_path / "a.mkv", rate=25, sound_to=2.0)
    short_pictures = film(tmp_path / "b.mkv", rate=25, seconds=2, sound_to=4.0)
    assert [len(read_clip(path, **SMALL).video) for path in (short_sound, short_pictures)] == [20, 20]


@pytest.mark.parametrize("fit", ["pad", "crop"])
@pytest.mark.parametrize("size", [(64, 128), (128, 64), (51, 97)])
def test_fit(tmp_path, fit, size):
    height, width = size
    pixels = np.full((height, width, 3), 230, np.uint8)
    path = film(
        tmp_path / "clip.mkv",
        rate=10,
        seconds=1,
        size=size,
        paint=lambda time: pixels,
        pixel_format="yuv444p",
    )
    picture = read_clip(path, **SMALL, fit=fit).video[3].mean(axis=-1)
    if fit == "crop":
        assert picture.min() > 200
    else:
        rows, columns = (picture > 100).any(axis=1).sum(), (picture > 100).any(axis=0).sum()
        assert (rows, columns) == (round(32 * min(1, height / width)), round(32 * min(1, width / height)))
        assert picture[16, 16] > 200


def test_pixels_that_are_not_square(tmp_path):
    pixels = np.full((64, 64, 3), 230, np.uint8)
    path = film(
        tmp_path / "clip.mkv",
        rate=10,
        seconds=1,
        size=(64, 64),
        paint=lambda _: pixels,
        sample_aspect=Fraction(2),
    )
    picture = read_clip(path, **SMALL).video[0].mean(axis=-1)
    assert (picture > 100).any(axis=1).sum() == 16 and (picture > 100).any(axis=0).sum() == 32


@pytest.mark.parametrize(("degrees", "corner"), [(0, (0, 0)), (90, (1, 0)), (180, (1, 1)), (-90, (0, 1))])
def test_pictures_are_turned_upright(tmp_path, degrees, corner):
    """A mark is stored in the top left corner, and the display turns it counterclockwise."""
    pixels = np.full((64, 64, 3), 20, np.uint8)
    pixels[:24, :24] = 250
    path = film(
        tmp_path / "clip.mp4", rate=10, seconds=1, size=(64, 64), paint=lambda _: pixels, rotation=degrees
    )
    picture = read_clip(path, **SMALL).video[0].mean(axis=-1)
    corners = np.array([[picture[4, 4], picture[4, 27]], [picture[27, 4], picture[27, 27]]])
    assert np.unravel_index(corners.argmax(), (2, 2)) == corner


def test_sources_are_paths_or_open_files(tmp_path):
    path = film(tmp_path / "50%d: a, b.mp4", rate=10, flashes=FLASHES, beeps=BEEPS)
    from_path = read_clip(path, **SMALL)
    from_bytes = read_clip(io.BytesIO(Path(path).read_bytes()), **SMALL)
    with open(path, "rb") as file:
        from_file = read_clip(file, **SMALL)
    assert np.array_equal(from_path.video, from_bytes.video) and np.array_equal(
        from_path.audio, from_file.audio
    )
    write_clip("memory://clips/a.mp4", from_path)
    assert len(read_clip("memory://clips/a.mp4", **SMALL).video) == 40
    assert np.allclose(read_sound(path, sample_rate=RATE)[: len(from_path.audio)], from_path.audio)


def test_every_failure_has_its_reason(tmp_path):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "words.mp4").write_text("not a film")
    (tmp_path / "list.m3u8").write_text("#EXTM3U\n#EXTINF:1,\n/etc/passwd\n")
    silent = film(tmp_path / "silent.mp4", rate=10, seconds=1, audio=None)
    good = film(tmp_path / "good.mp4", rate=10, seconds=1)
    cases = {"gone.mp4": "not_found", "empty.mp4": "empty_file", "silent.mp4": "no_audio"}
    for name, reason in (cases | dict.fromkeys(["words.mp4", "list.m3u8", "."], "unreadable")).items():
        with pytest.raises(MediaError) as caught:
            read_clip(str(tmp_path / name), **SMALL)
        assert caught.value.reason == reason, name
    wrong_spans = [({"start_seconds": -1.0}, "bad_span"), ({"start_seconds": float("nan")}, "bad_span")]
    for options, reason in (
        ({"num_frames": 11}, "too_short"),
        ({"deadline_seconds": 0.0}, "timeout"),
        *wrong_spans,
    ):
        with pytest.raises(MediaError) as caught:
            read_clip(good, **SMALL, **options)
        assert caught.value.reason == reason
    with pytest.raises(MediaError) as caught:
        read_clip(io.BytesIO(b""), **SMALL)
    assert caught.value.reason == "empty_file"
    assert len(read_pictures(silent, **PICTURES)) == 10


HOSTILE = {
    "d_audio_51.mp4": 25, "d_audio_longer.mp4": 12, "d_audio_nan_inf.mkv": 10, "d_audio_starts_late.mp4": 25,
    "d_bit_rot.mp4": "decode_error", "d_fps_1.mp4": 30, "d_gap_in_video.mp4": 30, "d_gray.mkv": 10,
    "d_no_audio.mp4": "no_audio", "d_no_video.mp4": "no_video", "d_odd_size_444.mp4": 25,
    "d_one_frame.mp4": "too_short", "d_random_bytes.mp4": "unreadable", "d_tall_16x1024.mp4": 25,
    "d_ten_bit.mp4": 25, "d_truncated_index_first.mp4": 10, "d_truncated_no_index.mp4": "unreadable",
    "d_vfr.mp4": 29, "d_video_longer.mp4": 4, "d_video_starts_late.mp4": 30, "d_whole.mp4": 25,
    "d_zero_length.mp4": "empty_file", "d_zeroed_middle.mp4": "decode_error",
    "missing_sound_description.mp4": "unsupported_codec", "no_streams.mov": "no_video",
    "audio_declared_absent.ts": "no_audio", "mkv_truncated_claims_1132s.mkv": 16,
    "empty_chunk_table.mp4": "decode_error",
}  # fmt: skip


@pytest.mark.skipif(
    not HOSTILE_FILES.is_dir(), reason="PROAV_HOSTILE_FILES names no folder of odd and broken files"
)
def test_odd_and_broken_files():
    for path in sorted(HOSTILE_FILES.iterdir()):
        if path.stat().st_size > 400_000 and path.name not in HOSTILE:
            continue  # long films take long, and they are odd only in name, size or rotation
        try:
            outcome = len(read_clip(str(path), **SMALL, deadline_seconds=30).video)
        except MediaError as error:
            outcome = error.reason
        assert outcome == HOSTILE.get(path.name, outcome), path.name
    with pytest.raises(MediaError) as caught:
        read_clip(str(HOSTILE_FILES / "d_fifteen_frames.mp4"), **{**SMALL, "fps": 30}, num_frames=16)
    assert caught.value.reason == "too_short"


@pytest.mark.skipif(
    not REAL_CLIPS.is_dir(), reason="PROAV_REAL_CLIPS names no folder of real clips with their MANIFEST.csv"
)
def test_real_clips_have_the_length_that_their_listing_says():
    import csv

    with open(REAL_CLIPS / "MANIFEST.csv", newline="") as file:
        rows = list(csv.DictReader(file))[::25]
    for row in rows:
        clip = read_clip(str(REAL_CLIPS / row["file"]), **SMALL)
        assert abs(clip.seconds - min(float(row["duration_s"]), float(row["audio_s"]) + 0.1)) < 0.25, row[
            "file"
        ]


@pytest.mark.parametrize("rate", [1, 999, 768_001, 2**31 - 1])
def test_sound_of_an_impossible_rate_is_refused_before_it_is_resampled(rate):
    data = wav(0.5, stated_rate=rate)
    with pytest.raises(MediaError, match=f"a rate of {rate} Hz; expected 1000 to 768000 Hz") as caught:
        read_sound(io.BytesIO(data), sample_rate=RATE)
    assert caught.value.reason == "bad_rate"


@pytest.mark.parametrize("ending", ["wav", "mp4", "mkv"])
def test_sound_that_was_cut_off_is_reported_where_it_is_needed(tmp_path, ending):
    whole = {
        "wav": lambda: wav(4.0),
        "mp4": lambda: encode_clip(make_clip(1, seconds=4.0)),
        "mkv": lambda: Path(film(tmp_path / "film.mkv")).read_bytes(),
    }[ending]()
    assert len(read_sound(io.BytesIO(whole), sample_rate=RATE)) == pytest.approx(4 * RATE, abs=0.1 * RATE)
    half = whole[: len(whole) // 2]
    with pytest.raises(MediaError, match=r"of sound, but ends after") as caught:
        read_sound(io.BytesIO(half), sample_rate=RATE)
    assert caught.value.reason == "truncated"
    assert len(read_sound(io.BytesIO(half), sample_rate=RATE, max_seconds=0.5)) == RATE // 2


@pytest.mark.parametrize("stated", [0, 0x7FFFF000, 0xFFFFFFFF])
def test_a_wav_file_from_a_pipe_states_no_length(stated):
    data = bytearray(wav(2.0))
    data[4:8] = stated.to_bytes(4, "little")
    assert len(read_sound(io.BytesIO(bytes(data)), sample_rate=RATE)) == 2 * RATE


def test_damaged_sound_does_not_become_silence(tmp_path):
    path = film(tmp_path / "film.mp4")
    data = bytearray(Path(path).read_bytes())
    with av.open(path) as container:
        packets = [packet for packet in container.demux(audio=0) if packet.size]
    for packet in packets[len(packets) // 4 : 3 * len(packets) // 4]:
        data[packet.pos : packet.pos + packet.size] = b"\xff" * packet.size
    with pytest.raises(MediaError, match="audio packets in a row cannot be decoded") as caught:
        read_sound(io.BytesIO(bytes(data)), sample_rate=RATE)
    assert caught.value.reason == "decode_error"


@pytest.mark.parametrize("ending", ["mp4", "mkv", "wmv"])
def test_sound_that_starts_long_after_the_pictures_or_ends_long_before_them_is_read(tmp_path, ending):
    for first, end in ((3.0, 5.0), (0.0, 2.0), (0.0, 4.0)):
        path = film(tmp_path / f"{first}-{end}.{ending}", seconds=5, rate=10, sound_from=first, sound_to=end)
        sound = read_sound(path, sample_rate=RATE)
        assert len(sound) / RATE == pytest.approx(end - first, abs=0.1)


@pytest.mark.parametrize(
    ("ending", "shift", "options"),
    [
        ("mp4", 0, {}),
        ("mkv", 0, {}),
        ("mkv", 100, {}),
        ("mkv", 100, {"live": "1"}),  # states no length
        ("nut", 100, {}),
        ("wmv", 100, {}),
    ],
)
def test_the_length_of_the_pictures_is_known_whatever_the_clock_of_the_file(tmp_path, ending, shift, options):
    path = film(
        tmp_path / f"film.{ending}", rate=10, sound_to=3, shift=Fraction(shift), container_options=options
    )
    assert probe_seconds(path) == pytest.approx(4, abs=0.1)


@pytest.mark.parametrize("num_before", [0, 1, 3])
def test_pictures_that_grow_beyond_the_limit_midway_are_refused(num_before):
    data = switching_h264(width=16_000, height=8_000, num_before=num_before)
    with pytest.raises(MediaError, match="pictures of 16000x8000; expected at most") as caught:
        read_pictures(io.BytesIO(data), **PICTURES)
    assert caught.value.reason == "too_large"


def test_pictures_that_grow_within_the_limit_are_taken():
    data = h264(num_frames=4) + h264(num_frames=4, width=320, height=160)
    video = read_pictures(io.BytesIO(data), **PICTURES)
    assert not video[-1, :4].any() and video[-1, 16].any()  # twice as wide as high, so black above and below
