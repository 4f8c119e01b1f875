"""One clock for picture and sound, whatever container and codecs hold them.

The flash of a made film is in the frame that its time says, and the beep is within 5 ms of its time.
"""

import random
from fractions import Fraction
from functools import partial

import av
import numpy as np
import pytest

from proav.errors import MediaError
from proav.media.container import read_clip, read_pictures
from tests.media.flash_and_beep import (
    BEEP_SECONDS,
    INTERLACED,
    FieldMarker,
    beep_times,
    expected_white,
    make_film,
    regular,
    white_frames,
)

RATE = 16000
FLASHES, BEEPS = (Fraction(48, 100), Fraction(132, 100)), (0.48, 1.32, 1.8)
"""If such a flash is one picture of 25 fps early or late, it shows in another frame of 10 fps."""
BEEP_TOLERANCE = 0.005
SECONDS = 2
TIMES = regular(25, SECONDS)
KINDS = [
    tuple(line.split())
    for line in (
        "mp4 libx264 aac", "mp4 libx265 ac3", "mp4 libsvtav1 libopus", "mp4 libvpx-vp9 libmp3lame",
        "mp4 mpeg4 alac", "mp4 mpeg2video flac",
        "mov libx264 pcm_s16le", "mov mjpeg pcm_s24le", "mov prores_ks pcm_f32le", "mov libx265 aac",
        "mkv libx264 aac", "mkv libx265 libopus", "mkv libvpx vorbis", "mkv libvpx-vp9 libmp3lame",
        "mkv libsvtav1 flac", "mkv mpeg2video ac3", "mkv mpeg4 pcm_s16le", "mkv mjpeg eac3", "mkv ffv1 mp2",
        "webm libvpx vorbis", "webm libvpx-vp9 libopus", "webm libsvtav1 libopus",
        "ts libx264 aac", "ts libx265 ac3", "ts mpeg2video mp2", "ts mpeg2video libmp3lame",
        "ts libx264 libopus", "flv libx264 aac", "flv flv libmp3lame", "mpg mpeg2video mp2",
        "mpg mpeg1video ac3", "nut libx264 libmp3lame", "mxf mpeg2video pcm_s16le",
        "avi mpeg4 libmp3lame", "avi mjpeg pcm_s16le", "avi libx264 ac3", "avi mpeg2video mp2",
    )
]  # fmt: skip
PIXEL_FORMATS = {"mjpeg": "yuvj420p", "prores_ks": "yuv422p10le"}
CODEC_FRAME_SECONDS = {"libmp3lame": 1152 / 48000, "mp2": 1152 / 48000, "ac3": 1536 / 48000}


flash_and_beep = partial(make_film, times=TIMES, flashes=FLASHES, beeps=BEEPS)


def film_of(folder, kind: tuple[str, str, str], **options) -> str:
    """A film of `kind`: extension, picture codec, sound codec."""
    extension, video, audio = kind
    if missing := {video, audio} - av.codec.codecs_available:
        pytest.skip(f"this PyAV cannot write {', '.join(missing)}")
    return flash_and_beep(
        folder / f"film.{extension}",
        video=video,
        audio=audio,
        pixel_format=PIXEL_FORMATS.get(video, "yuv420p"),
        **options,
    )


def check(path, *, times=TIMES, start=Fraction(0), fps=10, tolerance=BEEP_TOLERANCE, first=None, **options):
    """Checks the frames and the sound of a film's clip against their known times; returns the clip.

    path: the film, with `FLASHES` and `BEEPS`.
    times: of its pictures, in seconds.
    start: the film's time at which its clip begins, in seconds.
    fps: frames of the clip per second.
    tolerance: how far a beep may be from its time, in seconds.
    first: where reading begins, in seconds after `start`; None reads from the beginning.
    options: passed to `read_clip`.
    """
    clip = read_clip(
        path, fps=fps, sample_rate=RATE, height=16, width=16, start_seconds=float(first or 0), **options
    )
    start = start if first is None else start + first
    assert white_frames(clip.video) == expected_white(times, FLASHES, fps, len(clip.video), start)
    expected = [
        time - float(start) for time in BEEPS if 0 <= time - float(start) <= clip.seconds - BEEP_SECONDS
    ]
    errors = np.abs(np.array(beep_times(clip.audio, RATE, len(expected))) - expected)
    assert len(errors) and errors.max() <= tolerance, errors
    assert len(clip.audio) == len(clip.video) * RATE // fps
    return clip


@pytest.mark.parametrize("kind", KINDS, ids=" ".join)
def test_containers_and_codecs(tmp_path, kind):
    """The flash and the beep are at their times, also after a seek.

    AVI carries no time stamps. So its sound is late by the encoder's delay, which is less than one of its
    frames.
    """
    tolerance = CODEC_FRAME_SECONDS.get(kind[2], BEEP_TOLERANCE) if kind[0] == "avi" else BEEP_TOLERANCE
    path = film_of(tmp_path, kind)
    clip = check(path, tolerance=tolerance)
    assert abs(clip.seconds - SECONDS) <= 0.1
    check(path, tolerance=tolerance, first=Fraction(11, 10))  # the same after a seek


def test_pictures_without_sound_are_told_apart(tmp_path):
    path = make_film(
        tmp_path / "film.gif",
        times=TIMES,
        flashes=FLASHES,
        video="gif",
        audio=None,
        pixel_format="rgb8",
        tick=Fraction(1, 100),
    )
    with pytest.raises(MediaError) as caught:
        read_clip(path, fps=10, sample_rate=RATE, height=16, width=16)
    assert caught.value.reason == "no_audio"
    video = read_pictures(path, fps=10, height=16, width=16)
    assert white_frames(video) == expected_white(TIMES, FLASHES, 10, len(video), Fraction(0))


@pytest.mark.parametrize("extension", ["mp4", "mkv"])
@pytest.mark.parametrize(
    ("rate", "fps"),
    [(rate, 10) for rate in (5, 12, 15, "24000/1001", 24, 25, "30000/1001", 30, 50, "60000/1001", 60, 120)]
    + [(25, 30), (30, 25), (24, 4)],
)
def test_frame_rates_up_and_down(tmp_path, rate, fps, extension):
    times = regular(rate, SECONDS)
    path = flash_and_beep(
        tmp_path / f"film.{extension}", times=times, video="mpeg2video" if rate in (24, 25, 30) else "libx264"
    )
    clip = check(path, times=times, fps=fps)
    assert abs(clip.seconds - SECONDS) <= max(1 / fps, 0.1)


@pytest.mark.parametrize(
    ("extension", "video"),
    [("mp4", "libx264"), ("mov", "libx265"), ("mkv", "libx264"), ("webm", "libvpx-vp9"), ("flv", "libx264")],
)
def test_variable_frame_rate(tmp_path, extension, video):
    generator, times = random.Random(3), [Fraction(0)]
    while times[-1] < SECONDS:
        times.append(times[-1] + Fraction(generator.choice([1, 2, 3, 8]), 60))
    audio = "libopus" if extension == "webm" else "aac"
    path = flash_and_beep(
        tmp_path / f"film.{extension}", times=times[:-1], tick=Fraction(1, 90000), video=video, audio=audio
    )
    check(path, times=times[:-1])


STAMPED_KINDS = [kind for kind in KINDS if kind[0] not in ("avi", "mxf")]


@pytest.mark.parametrize("late", [Fraction(1), Fraction(8, 25)])
@pytest.mark.parametrize("kind", STAMPED_KINDS[::2], ids=" ".join)
def test_pictures_that_start_late(tmp_path, kind, late):
    """The clip begins with the sound, and the first picture is held from there.

    If the container does not hide the delay of the sound's encoder, the clip begins with this delay.
    """
    times = regular(25, SECONDS - late, first=late)
    path = film_of(tmp_path, kind, times=times)
    with av.open(path) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        lead = video.start_time * video.time_base - late - (audio.start_time or 0) * audio.time_base
    check(path, times=times, start=-max(lead, Fraction(0)))


@pytest.mark.parametrize("kind", STAMPED_KINDS[1::2], ids=" ".join)
def test_sound_that_starts_late(tmp_path, kind):
    """The clip begins with the pictures, and silence stands before the sound."""
    clip = check(film_of(tmp_path, kind, sound_from=0.4))
    assert not clip.audio[: int(0.37 * RATE)].any()


@pytest.mark.parametrize("extension", ["mp4", "mov"])
@pytest.mark.parametrize("video", ["libx264", "libx265", "mpeg4"])
def test_edit_lists(tmp_path, extension, video):
    """The file keeps what lies before time 0 for decoding, and its edit list hides it."""
    hidden = Fraction(10, 25)
    path = flash_and_beep(tmp_path / f"film.{extension}", video=video, shift=-hidden)
    check(path, start=hidden)
    check(path, start=hidden, first=Fraction(4, 10))


@pytest.mark.parametrize(
    ("extension", "shift"),
    [
        ("mkv", Fraction(3)),
        ("flv", Fraction(3)),
        ("nut", Fraction(3)),
        ("ts", Fraction(94000)),
        ("ts", Fraction(95443)),
        ("mpg", Fraction(70)),
    ],
)
def test_clocks_that_do_not_begin_at_zero(tmp_path, extension, shift):
    """At 95,443 s the 33 bits of a transport stream's time stamps overflow within the film."""
    path = flash_and_beep(
        tmp_path / f"film.{extension}",
        shift=shift,
        video="libx264",
        audio="mp2" if extension in ("ts", "mpg") else "aac",
    )
    check(path)
    check(path, first=Fraction(11, 10))


@pytest.mark.parametrize("extension", ["mkv", "ts"])
def test_negative_time_stamps(tmp_path, extension):
    """The first picture has a time stamp below 0."""
    audio = "pcm_s16le" if extension == "mkv" else "mp2"
    options = {"avoid_negative_ts": "disabled"}
    path = flash_and_beep(
        tmp_path / f"film.{extension}",
        shift=-Fraction(10, 25),
        container_options=options,
        audio=audio,
        options={"bf": "0"},
    )
    check(path)


@pytest.mark.parametrize("extension", ["mp4", "mkv", "ts", "flv", "avi"])
@pytest.mark.parametrize(
    "options",
    [
        {"bf": "0"},
        {"bf": "1"},
        {"bf": "4", "x264-params": "b-pyramid=normal:b-adapt=0"},
        {"x264-params": "open-gop=1:bframes=3"},
    ],
)
def test_reordered_pictures(tmp_path, extension, options):
    audio = "pcm_s16le" if extension in ("mkv", "avi") else "aac"
    path = flash_and_beep(tmp_path / f"film.{extension}", options={"g": "12", **options}, audio=audio)
    check(path)
    check(path, first=Fraction(11, 10))


ODD_PICTURES = {
    "turned": {"rotation": 90, "extension": "mp4"},
    "turned over": {"rotation": 180, "extension": "mp4"},
    "wide pixels": {"sample_aspect": Fraction(64, 45)},
    "tall pixels": {"sample_aspect": Fraction(1, 3), "extension": "mp4"},
    "interlaced H.264": {"options": INTERLACED, "prepare": True},
    "interlaced H.264 in mp4": {"options": INTERLACED, "prepare": True, "extension": "mp4"},
    "interlaced MPEG-2": {
        "options": INTERLACED,
        "prepare": True,
        "video": "mpeg2video",
        "extension": "ts",
        "audio": "mp2",
    },
    "interlaced MPEG-4": {
        "options": INTERLACED,
        "prepare": True,
        "video": "mpeg4",
        "extension": "avi",
        "audio": "pcm_s16le",
    },
    "10 bit": {"pixel_format": "yuv420p10le"},
    "10 bit HEVC": {"pixel_format": "yuv420p10le", "video": "libx265", "extension": "mp4"},
    "10 bit AV1": {"pixel_format": "yuv420p10le", "video": "libsvtav1"},
    "10 bit 4:2:2": {"pixel_format": "yuv422p10le", "video": "prores_ks", "extension": "mov"},
    "odd rows and columns": {"size": (51, 97), "pixel_format": "yuv444p"},
    "grey": {"pixel_format": "gray", "video": "ffv1"},
    "RGB": {"pixel_format": "bgr0", "video": "ffv1"},
    "one row of blocks": {"size": (32, 128)},
}


@pytest.mark.parametrize("first", [None, Fraction(7, 10)])
@pytest.mark.parametrize("name", ODD_PICTURES)
def test_odd_pictures_keep_time(tmp_path, name, first):
    film = dict(ODD_PICTURES[name])
    path = tmp_path / f"film.{film.pop('extension', 'mkv')}"
    prepare = FieldMarker() if film.pop("prepare", False) else lambda frame: frame
    check(flash_and_beep(path, prepare=prepare, **film), first=first)


@pytest.mark.parametrize(
    "sample_rate", [8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 88200, 96000]
)
@pytest.mark.parametrize(("extension", "audio"), [("mp4", "aac"), ("mkv", "pcm_s16le"), ("mkv", "flac")])
def test_sample_rates(tmp_path, sample_rate, extension, audio):
    check(flash_and_beep(tmp_path / f"film.{extension}", audio=audio, sample_rate=sample_rate))


@pytest.mark.parametrize(
    ("layout", "audio", "extension"),
    [
        ("mono", "pcm_s16le", "mov"),
        ("stereo", "aac", "mp4"),
        ("4.0", "pcm_f32le", "mov"),
        ("5.0", "flac", "mkv"),
        ("5.1", "aac", "mp4"),
        ("5.1(side)", "ac3", "ts"),
        ("5.1(side)", "pcm_s24le", "mov"),
        ("7.1", "aac", "mp4"),
        ("7.1", "flac", "mkv"),
        ("5.1", "pcm_s16le", "mkv"),
        ("7.1", "pcm_u8", "mkv"),
    ],
)
def test_channel_layouts(tmp_path, layout, audio, extension):
    """Every channel is heard at its time and with its share by ITU-R BS.775.

    The shares are 1 for front, sqrt 2 for centre, sqrt 1/2 for surround, and none for low frequencies.
    PCM in Matroska does not name its channels.
    """
    names = [channel.name for channel in av.AudioLayout(layout).channels]
    shares = np.array(
        [{"FC": 2**0.5, "LFE": 0.0, "FL": 1.0, "FR": 1.0}.get(name, 0.5**0.5) for name in names]
    )
    film = partial(flash_and_beep, audio=audio, layout=layout, video="mpeg2video")
    for channel, share in enumerate(shares / shares.sum()):
        path = film(tmp_path / f"{channel}.{extension}", channel=channel)
        clip = check(path) if share else read_clip(path, fps=10, sample_rate=RATE, height=16, width=16)
        assert abs(np.abs(clip.audio).max() - 0.8 * share) < 0.02 + 0.1 * share, names[channel]
    clip = check(film(tmp_path / f"all.{extension}"))
    assert abs(np.abs(clip.audio).max() - 0.8) < 0.1


def test_a_hole_in_the_sound_becomes_silence(tmp_path):
    clip = check(flash_and_beep(tmp_path / "film.mkv", audio="pcm_s16le", hole=(0.6, 1.2)))
    assert not clip.audio[int(0.65 * RATE) : int(1.15 * RATE)].any()


def test_a_hole_in_the_pictures_is_held(tmp_path):
    times = [time for time in TIMES if not Fraction(7, 10) < time < Fraction(13, 10)]
    check(flash_and_beep(tmp_path / "film.mp4", times=times), times=times)
