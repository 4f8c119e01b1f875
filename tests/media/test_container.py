"""Files to clips and back: picture and sound on one clock, whatever the file; every failure a MediaError with its reason."""

import io
import random
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from proav.errors import MediaError
from proav.media.container import Clip, encode_clip, read_clip, read_segments, read_sound, write_clip

SHARED = Path(__file__).parents[3] / "shared" / "data"
RATE, FPS = 16000, 10
SMALL = {"fps": FPS, "sample_rate": RATE, "height": 32, "width": 32}


def write_source(
    path, *, times, flashes=(), clicks=(), seconds=4.0, audio_from=0.0, audio_to=None, sound_rate=48000, size=(64, 96), tick=90000, codec="libx264",
    pixel_format="yuv420p", holes=(), audio=None, channels="stereo", paint=None, sample_aspect=None,
):  # fmt: skip
    """A file whose pictures at `times` are white from each flash time on for 0.2 s, and whose sound clicks at `clicks`."""
    height, width = size
    sound_codec = "pcm_s16le" if str(path).endswith((".mkv", ".avi", ".mov")) else "aac"
    with av.open(str(path), "w") as container:
        video = container.add_stream(codec, rate=Fraction(30) if codec == "mpeg4" else None, options={"g": "12"})
        video.width, video.height, video.pix_fmt = width, height, pixel_format
        if codec != "mpeg4":
            video.codec_context.time_base = Fraction(1, tick)
        if sample_aspect:
            video.codec_context.sample_aspect_ratio = sample_aspect
        samples = np.zeros(round((audio_to or seconds) * sound_rate), np.float32)
        for click in clicks:
            samples[round(click * sound_rate) : round((click + 0.001) * sound_rate)] = 0.9
        if audio is not None:
            samples = audio
        sound = container.add_stream(sound_codec, rate=sound_rate, layout=channels) if len(samples) else None
        packets = []
        for time in times:
            white = any(flash <= time + 1e-6 < flash + 0.2 for flash in flashes)
            pixels = np.full((height, width, 3), 255 if white else 20, np.uint8) if paint is None else paint(time)
            picture = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            picture.time_base = Fraction(1, 30) if codec == "mpeg4" else Fraction(1, tick)
            picture.pts = round(Fraction(time).limit_denominator(100000) / picture.time_base)
            packets += video.encode(picture)
        packets += video.encode(None)
        for start in range(round(audio_from * sound_rate), len(samples), 1024) if sound else ():
            if any(begin <= start / sound_rate < end for begin, end in holes):
                continue
            piece = samples[start : start + 1024]
            planes = np.stack([piece] * (2 if channels == "stereo" else 1))
            if sound_codec == "aac":
                block = av.AudioFrame.from_ndarray(planes, "fltp", channels)
            else:
                block = av.AudioFrame.from_ndarray((planes.T.reshape(1, -1) * 32767).astype(np.int16), "s16", channels)
            block.sample_rate, block.pts, block.time_base = sound_rate, start, Fraction(1, sound_rate)
            packets += sound.encode(block)
        packets += sound.encode(None) if sound else []
        for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
            container.mux(packet)
    return str(path)


def regular(fps, seconds=4.0):
    return [Fraction(index) / Fraction(fps) for index in range(int(seconds * fps))]


def irregular(seconds=4.0):
    generator, times = random.Random(3), [Fraction(0)]
    while times[-1] < seconds:
        times.append(times[-1] + Fraction(generator.choice([1500, 3000, 4500, 12000]), 90000))
    return times[:-1]


def flash_frames(clip):
    """Frames that turn white."""
    white = clip.video[:, 12:20, 12:20].mean(axis=(1, 2, 3)) > 128
    return [index for index in range(len(white)) if white[index] and (index == 0 or not white[index - 1])]


def click_times(clip):
    loud = np.flatnonzero(np.abs(clip.audio) > 0.4)
    return [float(loud[index]) / clip.sample_rate for index in range(len(loud)) if index == 0 or loud[index] - loud[index - 1] > 800]


def shown_flashes(times, flashes):
    """The truth: the first frame k at which the picture shown at k / FPS is a white one."""
    answer = []
    for flash in flashes:
        first = min(time for time in times if time >= flash - 1e-6)
        answer.append(next(k for k in range(1000) if Fraction(k, FPS) >= first - Fraction(1, 10000)))
    return answer


def test_clip_says_what_is_wrong_with_arrays():
    video, audio = np.zeros((5, 4, 4, 3), np.uint8), np.zeros(8000, np.float32)
    assert Clip(video, audio, 10, RATE).seconds == 0.5
    for bad in (
        (video / 255, audio), (video[..., :1], audio), (video[0], audio), (list(video), audio), (video[:0], audio[:0]),
        (video, audio.astype(np.float64)), (video, audio[None]), (video, audio[:-1]), (video, audio + 1.5), (video, audio * np.nan),
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
        assert abs(lags[int(np.argmax(scores))]) <= 2  # of 16 samples in a millisecond
    assert np.abs(back.video[:, 16:, [8, 48, 88]].astype(int) - video[:, 16:, [8, 48, 88]]).max() <= 6
    assert np.abs(back.video.astype(int) - video).mean() < 6
    whole = read_clip(path, fps=10, sample_rate=RATE, height=64, width=96)
    assert len(whole.video) == 16 and len(whole.audio) == 25600


def test_written_files_are_the_same_bytes_play_while_loading_and_name_their_colours(tmp_path):
    clip = Clip(np.random.default_rng(0).integers(0, 255, (4, 32, 32, 3), dtype=np.uint8), np.zeros(6400, np.float32), 10, RATE)
    data = encode_clip(clip)
    assert data == encode_clip(clip)
    assert data.index(b"moov") < data.index(b"mdat")
    with av.open(io.BytesIO(data)) as container:
        frame = next(container.decode(video=0))
        assert (frame.colorspace, frame.format.name, container.streams.audio[0].codec_context.name) == (1, "yuv420p", "aac")


def test_what_the_format_cannot_hold_is_refused(tmp_path):
    for shape, rate, word in (((4, 33, 32, 3), RATE, "even"), ((4, 32, 32, 3), 10000, "AAC")):
        with pytest.raises(MediaError, match=word) as caught:
            write_clip(tmp_path / "x.mp4", Clip(np.zeros(shape, np.uint8), np.zeros(4 * rate // 10, np.float32), 10, rate))
        assert caught.value.reason == "not_writable"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("extension", ["mp4", "mkv"])
@pytest.mark.parametrize("rate", [24, 25, "30000/1001", 30, 60, "vfr"])
def test_flashes_and_clicks_come_out_where_they_are(tmp_path, rate, extension):
    events = [0.5, 1.37, 2.8]
    times = irregular() if rate == "vfr" else regular(Fraction(rate))
    path = write_source(tmp_path / f"clip.{extension}", times=times, flashes=events, clicks=events)
    clip = read_clip(path, **SMALL)
    assert flash_frames(clip) == shown_flashes(times, events)
    assert np.abs(np.array(click_times(clip)) - events).max() < 0.001
    assert len(clip.audio) == len(clip.video) * RATE // FPS


@pytest.mark.parametrize("first", [1.0, -0.5])
def test_streams_that_start_apart_stay_on_one_clock(tmp_path, first):
    """Positive: pictures start late. Negative: sound does."""
    late_video, late_audio = max(first, 0), max(-first, 0)
    times = [time + Fraction(late_video) for time in regular(25, 3.0)]
    path = write_source(tmp_path / "clip.mkv", times=times, flashes=[2.0], clicks=[2.0], seconds=3 + late_video, audio_from=late_audio)
    clip = read_clip(path, **SMALL)
    assert flash_frames(clip) == [20] and abs(click_times(clip)[0] - 2.0) < 0.001
    assert len(clip.video) == round((3 + late_video) * FPS)
    if late_audio:
        assert not clip.audio[: int(0.49 * RATE)].any()


def test_a_file_whose_clock_does_not_start_at_zero(tmp_path):
    path = write_source(tmp_path / "clip.ts", times=regular(25), flashes=[1.0], clicks=[1.0], seconds=4.0)
    clip = read_clip(path, **SMALL)
    assert abs(flash_frames(clip)[0] - 10) <= 1 and abs(click_times(clip)[0] - 1.0) < 0.025
    assert abs(click_times(clip)[0] * FPS - flash_frames(clip)[0]) <= 1


def test_a_hole_in_the_sound_becomes_silence(tmp_path):
    path = write_source(tmp_path / "clip.mkv", times=regular(25), flashes=[3.0], clicks=[0.5, 3.0], holes=[(1.0, 2.0)])
    clip = read_clip(path, **SMALL)
    assert np.abs(np.array(click_times(clip)) - [0.5, 3.0]).max() < 0.001 and flash_frames(clip) == [30]


def test_a_hole_in_the_pictures_is_held(tmp_path):
    times = [time for time in regular(25) if not 1 < time < 3]
    clip = read_clip(write_source(tmp_path / "clip.mp4", times=times, flashes=[3.0], clicks=[3.0]), **SMALL)
    assert flash_frames(clip) == [30] and abs(click_times(clip)[0] - 3.0) < 0.001 and len(clip.video) == 40


def test_segments_are_the_whole_in_pieces(tmp_path):
    path = write_source(tmp_path / "clip.mp4", times=regular(30), flashes=[0.5, 1.7, 3.1], clicks=[0.5, 1.7, 3.1])
    whole = read_clip(path, **SMALL)
    segments = list(read_segments(path, **SMALL, segment_seconds=1.6, min_frames=5))
    assert [(start, len(clip.video)) for start, clip in segments] == [(0.0, 16), (1.6, 16), (3.2, 8)]
    assert np.array_equal(np.concatenate([clip.video for _, clip in segments]), whole.video)
    assert np.array_equal(np.concatenate([clip.audio for _, clip in segments]), whole.audio)
    assert len(list(read_segments(path, **SMALL, segment_seconds=1.6, min_frames=10))) == 2


def test_a_span_read_by_seeking_is_the_span_of_the_whole(tmp_path):
    path = write_source(tmp_path / "clip.mp4", times=regular(30), flashes=[0.5, 1.7, 3.1], clicks=[0.5, 1.7, 3.1])
    whole = read_clip(path, **SMALL)
    ((start, part),) = read_segments(path, **SMALL, segment_seconds=10, start_seconds=1.5, end_seconds=3.5)
    assert start == 1.5 and np.array_equal(part.video, whole.video[15:35])
    assert np.abs(part.audio - whole.audio[24000:56000]).max() < 0.02
    with pytest.raises(MediaError) as caught:
        list(read_segments(path, **SMALL, segment_seconds=10, start_seconds=99))
    assert caught.value.reason == "too_short"


def test_the_clip_ends_with_the_shorter_stream(tmp_path):
    short_sound = write_source(tmp_path / "a.mkv", times=regular(25), audio_to=2.0)
    short_pictures = write_source(tmp_path / "b.mkv", times=regular(25, 2.0), seconds=4.0)
    assert [len(read_clip(path, **SMALL).video) for path in (short_sound, short_pictures)] == [20, 20]


@pytest.mark.parametrize("fit", ["pad", "crop"])
@pytest.mark.parametrize("size", [(64, 128), (128, 64), (51, 97)])
def test_fit(tmp_path, fit, size):
    height, width = size
    pixels = np.full((height, width, 3), 230, np.uint8)
    even = {"codec": "libx264", "pixel_format": "yuv444p"}
    path = write_source(tmp_path / "clip.mkv", times=regular(10, 1.0), size=size, paint=lambda time: pixels, **even)
    picture = read_clip(path, **SMALL, fit=fit).video[3].mean(axis=-1)
    if fit == "crop":
        assert picture.min() > 200
    else:
        rows, columns = (picture > 100).any(axis=1).sum(), (picture > 100).any(axis=0).sum()
        assert (rows, columns) == (round(32 * min(1, height / width)), round(32 * min(1, width / height)))
        assert picture[16, 16] > 200


def test_pixels_that_are_not_square(tmp_path):
    pixels = np.full((64, 64, 3), 230, np.uint8)
    path = write_source(tmp_path / "clip.mkv", times=regular(10, 1.0), size=(64, 64), paint=lambda _: pixels, sample_aspect=Fraction(2))
    picture = read_clip(path, **SMALL).video[0].mean(axis=-1)
    assert (picture > 100).any(axis=1).sum() == 16 and (picture > 100).any(axis=0).sum() == 32


@pytest.mark.parametrize(("degrees", "corner"), [(0, (0, 0)), (90, (1, 0)), (180, (1, 1)), (-90, (0, 1))])
def test_pictures_are_turned_upright(tmp_path, degrees, corner):
    """A mark in the stored top left corner; the display turns it counterclockwise."""
    pixels = np.full((64, 64, 3), 20, np.uint8)
    pixels[:24, :24] = 250
    with av.open(str(tmp_path / "clip.mp4"), "w") as container:
        stream, sound = container.add_stream("libx264", rate=10), container.add_stream("aac", rate=RATE, layout="mono")
        stream.width = stream.height = 64
        stream.set_display_rotation(degrees)
        for index in range(10):
            picture = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            picture.pts, picture.time_base = index, Fraction(1, 10)
            container.mux(stream.encode(picture))
        block = av.AudioFrame.from_ndarray(np.zeros((1, RATE), np.float32), "fltp", "mono")
        block.sample_rate, block.pts, block.time_base = RATE, 0, Fraction(1, RATE)
        container.mux([*sound.encode(block), *sound.encode(None), *stream.encode(None)])
    picture = read_clip(str(tmp_path / "clip.mp4"), **SMALL).video[0].mean(axis=-1)
    corners = np.array([[picture[4, 4], picture[4, 27]], [picture[27, 4], picture[27, 27]]])
    assert np.unravel_index(corners.argmax(), (2, 2)) == corner


def test_channels_are_averaged_without_clipping(tmp_path):
    path = write_source(tmp_path / "clip.mkv", times=regular(10, 1.0), audio=np.full(48000, 0.8, np.float32))
    assert abs(float(np.median(read_clip(path, **SMALL).audio)) - 0.8) < 0.01


def test_sources_are_paths_or_open_files(tmp_path):
    path = write_source(tmp_path / "50%d: a, b.mp4", times=regular(10), flashes=[1.0], clicks=[1.0])
    from_path = read_clip(path, **SMALL)
    from_bytes = read_clip(io.BytesIO(Path(path).read_bytes()), **SMALL)
    with open(path, "rb") as file:
        from_file = read_clip(file, **SMALL)
    assert np.array_equal(from_path.video, from_bytes.video) and np.array_equal(from_path.audio, from_file.audio)
    write_clip("memory://clips/a.mp4", from_path)
    assert len(read_clip("memory://clips/a.mp4", **SMALL).video) == 40
    assert np.allclose(read_sound(path, sample_rate=RATE)[: len(from_path.audio)], from_path.audio)


def test_every_failure_has_its_reason(tmp_path):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "words.mp4").write_text("not a film")
    (tmp_path / "list.m3u8").write_text("#EXTM3U\n#EXTINF:1,\n/etc/passwd\n")
    silent = write_source(tmp_path / "silent.mp4", times=regular(10, 1.0), audio=np.zeros(0, np.float32))
    good = write_source(tmp_path / "good.mp4", times=regular(10, 1.0), seconds=1.0)
    cases = {"gone.mp4": "not_found", "empty.mp4": "empty_file", "silent.mp4": "no_audio"}
    for name, reason in (cases | dict.fromkeys(["words.mp4", "list.m3u8", "."], "unreadable")).items():
        with pytest.raises(MediaError) as caught:
            read_clip(str(tmp_path / name), **SMALL)
        assert caught.value.reason == reason, name
    wrong_spans = [({"start_seconds": -1.0}, "bad_span"), ({"start_seconds": float("nan")}, "bad_span")]
    for options, reason in (({"num_frames": 11}, "too_short"), ({"deadline_seconds": 0.0}, "timeout"), *wrong_spans):
        with pytest.raises(MediaError) as caught:
            read_clip(good, **SMALL, **options)
        assert caught.value.reason == reason
    with pytest.raises(MediaError) as caught:
        read_clip(io.BytesIO(b""), **SMALL)
    assert caught.value.reason == "empty_file"
    assert not read_clip(silent, **SMALL, silent_ok=True).audio.any()


HOSTILE = {
    "d_audio_51.mp4": 25, "d_audio_longer.mp4": 12, "d_audio_nan_inf.mkv": 10, "d_audio_starts_late.mp4": 25, "d_bit_rot.mp4": "decode_error",
    "d_fps_1.mp4": 30, "d_gap_in_video.mp4": 30, "d_gray.mkv": 10, "d_no_audio.mp4": "no_audio", "d_no_video.mp4": "no_video", "d_odd_size_444.mp4": 25,
    "d_one_frame.mp4": "too_short", "d_random_bytes.mp4": "unreadable", "d_tall_16x1024.mp4": 25, "d_ten_bit.mp4": 25, "d_truncated_index_first.mp4": 10,
    "d_truncated_no_index.mp4": "unreadable", "d_vfr.mp4": 29, "d_video_longer.mp4": 4, "d_video_starts_late.mp4": 30, "d_whole.mp4": 25,
    "d_zero_length.mp4": "empty_file", "d_zeroed_middle.mp4": "decode_error", "missing_sound_description.mp4": "unsupported_codec",
    "no_streams.mov": "no_video", "audio_declared_absent.ts": "no_audio", "mkv_truncated_claims_1132s.mkv": 16, "empty_chunk_table.mp4": "decode_error",
}  # fmt: skip


@pytest.mark.skipif(not (SHARED / "hostile").is_dir(), reason="the folder of odd and broken files is not on this machine")
def test_odd_and_broken_files():
    for path in sorted((SHARED / "hostile").iterdir()):
        if path.stat().st_size > 400_000 and path.name not in HOSTILE:
            continue  # long ones take long and are odd only in name, size or rotation
        try:
            outcome = len(read_clip(str(path), **SMALL, deadline_seconds=30).video)
        except MediaError as error:
            outcome = error.reason
        assert outcome == HOSTILE.get(path.name, outcome), path.name
    with pytest.raises(MediaError) as caught:
        read_clip(str(SHARED / "hostile" / "d_fifteen_frames.mp4"), **{**SMALL, "fps": 30}, num_frames=16)
    assert caught.value.reason == "too_short"


@pytest.mark.skipif(not (SHARED / "clips").is_dir(), reason="the folder of real clips is not on this machine")
def test_real_clips_have_the_length_that_their_listing_says():
    import csv

    with open(SHARED / "clips" / "MANIFEST.csv", newline="") as file:
        rows = list(csv.DictReader(file))[::25]
    for row in rows:
        clip = read_clip(str(SHARED / "clips" / row["file"]), **SMALL)
        assert abs(clip.seconds - min(float(row["duration_s"]), float(row["audio_s"]) + 0.1)) < 0.25, row["file"]
