"""Every second of a file is in a segment or reported as lost, whatever the file's clock does.

No segment crosses a joint, which is where one recording in a file ends and the next begins.
"""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from proav.errors import MediaError
from proav.media.container import read_clip, read_pictures
from proav.media.segments import About, Lost, Request, Segment, read_parts
from tests.media.flash_and_beep import beep_times, make_film, regular, white_frames

FPS, RATE = 10, 16000
MILLISECOND = Fraction(1, 1000)


def parts_of(path, *, segment_seconds=5, start=0.0, end=None, fit="pad", **options):
    """(segments, losses, end): what `read_parts` reports of a file or of a span.

    Checks that segments and losses do not overlap, and leave no hole longer than a frame.

    path: the file.
    segment_seconds: length of a full segment.
    start, end: of the span, in seconds; None ends with the file.
    fit: "pad" or "crop".
    options: passed to `Request`.
    """
    request = Request(
        fps=FPS, sample_rate=RATE, height=16, width=16, fit=fit,
        segment_frames=int(segment_seconds * FPS), min_frames=8,
        start_seconds=start, max_frames=None if end is None else int((end - start) * FPS + 1e-6), **options,
    )  # fmt: skip
    parts = list(read_parts(str(path), request))
    segments, losses = ([part for part in parts if isinstance(part, kind)] for kind in (Segment, Lost))
    stop = [part for part in parts if isinstance(part, About)][-1].end_seconds
    spans = sorted(
        [(part.start_seconds, part.start_seconds + len(part.video) / FPS) for part in segments]
        + [(part.start_seconds, part.end_seconds) for part in losses if part.end_seconds is not None]
    )
    edges = [start, *(edge for span in spans for edge in span), stop]
    assert all(
        -1e-6 <= after - before <= 0.1 + 1e-5 for before, after in zip(edges[::2], edges[1::2], strict=True)
    ), edges
    return segments, losses, stop


def seconds(segments):
    return sum(len(part.video) for part in segments) / FPS


def whites(segments):
    return [
        round(part.start_seconds + frame / FPS, 1) for part in segments for frame in white_frames(part.video)
    ]


def beep_in(segments, time):
    """When the likeliest beep begins, in seconds, in the segment that holds `time`."""
    (part,) = [
        part for part in segments if part.start_seconds <= time < part.start_seconds + len(part.video) / FPS
    ]
    return part.start_seconds + beep_times(part.audio, RATE, 1)[0]


def told(losses):
    return [(round(part.start_seconds, 1), round(part.end_seconds, 1), part.reason) for part in losses]


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    """{ending: [film of 4 s with flash and beep at 1 s, film of 6 s with both at 2 s]}, as bytes."""
    folder, made = tmp_path_factory.mktemp("pieces"), {}
    for ending, video in (("ts", "libx264"), ("mpg", "mpeg2video")):
        made[ending] = [
            Path(make_film(
                folder / f"{length}.{ending}", times=regular(25, length), sound_to=float(length),
                video=video, audio="mp2",
                flashes=(Fraction(time),), beeps=(float(time),),
            )).read_bytes()
            for length, time in ((4, 1), (6, 2))
        ]  # fmt: skip
    return made


@pytest.mark.parametrize("ending", ["ts", "mpg"])
@pytest.mark.parametrize(
    ("order", "expected"), [("ab", [1, 6]), ("aaa", [1, 5, 9]), ("ba", [2, 7]), ("bab", [2, 7, 12])]
)
def test_a_clock_that_starts_anew_begins_a_new_stretch(tmp_path, pieces, ending, order, expected):
    path = tmp_path / f"joined.{ending}"
    path.write_bytes(b"".join(pieces[ending]["ab".index(letter)] for letter in order))
    lengths = [4 if letter == "a" else 6 for letter in order]
    segments, losses, end = parts_of(path)
    assert not losses and seconds(segments) == sum(lengths) == end
    assert whites(segments) == [time + late for time in expected for late in (0.0, 0.1)]
    for time in expected:
        assert abs(beep_in(segments, time) - time) < 0.03
    joints = np.cumsum(lengths)[:-1]
    assert all(
        not part.start_seconds < joint < part.start_seconds + len(part.video) / FPS
        for part in segments
        for joint in joints
    )


def test_a_span_of_a_joined_file_is_what_the_whole_has_there(tmp_path, pieces):
    path = tmp_path / "joined.ts"
    path.write_bytes(pieces["ts"][0] + pieces["ts"][1])
    segments, losses, _ = parts_of(path, start=3.0, end=9.0)
    assert [(part.start_seconds, len(part.video)) for part in segments] == [
        (3.0, 10),
        (4.0, 50),
    ] and not losses
    assert whites(segments) == [6.0, 6.1]
    segments, losses, _ = parts_of(path, start=8.0, end=12.0)
    assert seconds(segments) == 2.0 and told(losses) == [(10.0, 12.0, "past_end")]


def test_a_part_without_sound_and_one_too_short_are_reported(tmp_path, pieces):
    mute = Path(make_film(tmp_path / "mute.ts", times=regular(25, 3), audio=None)).read_bytes()
    short = Path(
        make_film(tmp_path / "short.ts", times=regular(25, 1)[:15], audio="mp2", sound_to=0.6)
    ).read_bytes()
    path = tmp_path / "joined.ts"
    path.write_bytes(b"".join([pieces["ts"][0], mute, short, pieces["ts"][1]]))
    segments, losses, _ = parts_of(path)
    assert told(losses) == [(4.0, 7.0, "no_sound"), (7.0, 7.6, "too_short")]
    assert whites(segments) == [1.0, 1.1, 9.6, 9.7]


@pytest.mark.parametrize("ahead", [10, 500])
def test_a_clock_that_goes_ahead_leaves_a_gap(tmp_path, pieces, ahead):
    later = make_film(
        tmp_path / "b.ts",
        times=regular(25, 6),
        sound_to=6.0,
        audio="mp2",
        flashes=(Fraction(2),),
        shift=Fraction(ahead),
    )
    path = tmp_path / "joined.ts"
    path.write_bytes(pieces["ts"][0] + Path(later).read_bytes())
    segments, losses, _ = parts_of(path)
    ((first, end, reason),) = told(losses)
    assert (first, reason) == (4.0, "gap") and abs(end - ahead) < 0.15
    assert seconds(segments) >= 9.8 and whites(segments)[:2] == [1.0, 1.1]


def test_only_one_clock_that_starts_anew_is_refused(tmp_path, pieces):
    """Two sounds of 4 s both begin at 0, beside pictures of 8 s, so what belongs together is unknown."""
    film = Path(make_film(tmp_path / "film.ts", times=regular(25, 8), sound_to=4.0, audio="mp2")).read_bytes()
    packets = [film[place : place + 188] for place in range(0, len(film), 188)]
    again = [pieces["ts"][0][place : place + 188] for place in range(0, len(pieces["ts"][0]), 188)]
    again = [packet for packet in again if (packet[1] & 0x1F) << 8 | packet[2] == 0x101]
    middle = len(packets) * 5 // 8
    mixed = packets[:middle]
    for number, packet in enumerate(packets[middle:]):
        share = len(packets) - middle
        mixed += [packet, *again[number * len(again) // share : (number + 1) * len(again) // share]]
    (tmp_path / "mixed.ts").write_bytes(b"".join(mixed))
    with pytest.raises(MediaError, match="the clock of one track starts anew") as caught:
        parts_of(tmp_path / "mixed.ts")
    assert caught.value.reason == "bad_clock"


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
@pytest.mark.parametrize("segment_seconds", [2, 7])
def test_a_still_stays_until_the_next_picture(tmp_path, ending, segment_seconds):
    times = [Fraction(number, 10) for number in [*range(60), *range(450, 550)]]
    path = make_film(
        tmp_path / f"still.{ending}",
        times=times,
        tick=MILLISECOND,
        sound_to=55.0,
        flashes=(3, 50),
        beeps=(3.0, 50.0),
    )
    segments, losses, _ = parts_of(path, segment_seconds=segment_seconds)
    assert not losses and abs(seconds(segments) - 55) <= 0.1
    assert whites(segments) == [3.0, 3.1, 50.0, 50.1]
    assert all(abs(beep_in(segments, time) - time) < 0.005 for time in (3, 50))


@pytest.mark.parametrize(
    ("ending", "times"),
    [
        ("mp4", [*range(60), 200, 300]),
        ("mkv", [*range(60), 200, 300]),
        ("mkv", range(60)),
        ("ts", range(60)),
        ("mkv", [0, 150]),
    ],
)
def test_the_last_still_stays_as_long_as_the_sound(tmp_path, ending, times):
    """The last picture is held until the sound ends in two cases.

    Either stills were shown before it, or the file does not say how long it stays.
    """
    options = {"audio": "mp2"} if ending == "ts" else {}
    path = make_film(
        tmp_path / f"still.{ending}",
        times=[Fraction(time, 10) for time in times],
        tick=MILLISECOND,
        sound_to=40.0,
        **options,
    )
    segments, losses, _ = parts_of(path)
    assert not losses and abs(seconds(segments) - 40) <= 0.1


def test_pictures_that_say_how_long_they_stay_end_then(tmp_path):
    path = make_film(tmp_path / "film.mkv", times=regular(25, 3), sound_to=5.0)
    segments, losses, _ = parts_of(path)
    assert seconds(segments) == 3.0 and told(losses) == [(3.0, 5.0, "no_picture")]


@pytest.mark.parametrize("segment_seconds", [3, 10])
def test_long_holes_are_reported_and_what_follows_is_used(tmp_path, segment_seconds):
    film = {"times": regular(10, 50), "flashes": (Fraction(45),), "beeps": (45.0,), "sound_to": 50.0}
    hole = make_film(tmp_path / "hole.mkv", **film, hole=(6.0, 40.0), audio="libopus")
    late = make_film(tmp_path / "late.mp4", **film, sound_from=35.0)
    unseen = make_film(tmp_path / "unseen.mkv", **film | {"times": regular(10, 15, first=35)})
    ends = make_film(tmp_path / "ends.mkv", **film | {"sound_to": 10.0, "beeps": ()})
    for path, expected in (
        (hole, (6.0, 40.0, "no_sound")),
        (late, (0.0, 35.0, "no_sound")),
        (unseen, (0.0, 35.0, "no_picture")),
    ):
        segments, losses, _ = parts_of(path, segment_seconds=segment_seconds)
        long = [loss for loss in told(losses) if loss[2] != "too_short"]
        assert len(long) == 1 and long[0][2] == expected[2], path
        assert abs(long[0][0] - expected[0]) < 0.15 and abs(long[0][1] - expected[1]) < 0.15
        assert whites(segments) == [45.0, 45.1] and abs(beep_in(segments, 45) - 45) < 0.005
    assert told(parts_of(ends)[1]) == [(10.0, 50.0, "no_sound")]


def test_a_short_hole_is_silence_and_a_pause_of_both_is_none(tmp_path):
    quiet = make_film(
        tmp_path / "quiet.mkv", times=regular(10, 20), sound_to=20.0, hole=(5.0, 15.0), beeps=(4.0, 18.0)
    )
    segments, losses, _ = parts_of(quiet)
    assert not losses and seconds(segments) == 20 and not segments[1].audio.any()
    times = regular(10, 5) + regular(10, 5, first=15)
    paused = make_film(
        tmp_path / "paused.mkv",
        times=times,
        tick=MILLISECOND,
        sound_to=20.0,
        hole=(5.0, 15.0),
        flashes=(18,),
        beeps=(18.0,),
    )
    segments, losses, _ = parts_of(paused)
    assert told(losses) == [(5.0, 15.0, "gap")] and whites(segments) == [18.0, 18.1]


@pytest.mark.parametrize("fit", ["pad", "crop"])
@pytest.mark.parametrize("segment_seconds", [0.8, 1.3, 4, 30])
def test_the_remainder_is_reported(tmp_path, segment_seconds, fit):
    path = make_film(tmp_path / "film.mp4", times=regular(25, 5), sound_to=4.7)
    segments, losses, _ = parts_of(path, segment_seconds=segment_seconds, fit=fit)
    assert told(losses)[-1] == (4.7, 5.0, "no_sound")
    rest = round(4.7 * FPS) % int(segment_seconds * FPS)
    assert ("too_short" in [loss.reason for loss in losses]) == (0 < rest < 8)


def test_what_a_header_declares_and_the_file_does_not_hold_is_reported(tmp_path):
    whole = Path(
        make_film(tmp_path / "film.mkv", times=regular(25, 20), sound_to=20.0, beeps=range(1, 19))
    ).read_bytes()
    (tmp_path / "cut.mkv").write_bytes(whole[: len(whole) * 2 // 3])
    segments, losses, end = parts_of(tmp_path / "cut.mkv")
    assert abs(end - 20) < 0.1 and 5 < seconds(segments) < 18
    assert told(losses)[-1][1:] == (20.0, "truncated")


@pytest.mark.parametrize("ending", ["mkv", "nut", "flv", "ts"])
def test_a_clock_that_does_not_begin_at_zero_loses_nothing(tmp_path, ending):
    audio = "mp2" if ending == "ts" else "aac"
    path = make_film(
        tmp_path / f"film.{ending}", times=regular(25, 4), sound_to=4.0, shift=Fraction(3), audio=audio
    )
    segments, losses, _ = parts_of(path)
    assert seconds(segments) == 4.0 and not losses


def test_damage_loses_its_own_segment_alone(tmp_path):
    noise = lambda time: np.random.default_rng(int(time * 25)).integers(0, 255, (64, 80, 3), np.uint8)
    path = make_film(
        tmp_path / "film.ts",
        times=regular(25, 12),
        sound_to=12.0,
        audio="mp2",
        video="mpeg2video",
        paint=noise,
    )
    data = bytearray(Path(path).read_bytes())
    for place in range(len(data) * 5 // 12 // 188 * 188, len(data) * 6 // 12 // 188 * 188, 188):
        if data[place + 1] & 0x1F == 1 and not data[place + 1] & 0x40:  # the middle of a picture or of sound
            data[place + 60 : place + 188] = bytes(128)
    Path(path).write_bytes(bytes(data))
    segments, losses, _ = parts_of(path, segment_seconds=2)
    damaged = [loss for loss in losses if loss.reason == "decode_error"]
    assert damaged and all(3 <= loss.start_seconds and loss.end_seconds <= 9 for loss in damaged)
    assert seconds(segments) >= 6 and segments[-1].start_seconds >= 9


@pytest.mark.parametrize("order", ["ab", "ba", "aba"])
def test_a_part_with_other_tracks_is_reported(tmp_path, pieces, order):
    """Recordings of two makers are joined. The tracks of the shorter one have other identifiers."""
    other = make_film(
        tmp_path / "b.ts", times=regular(25, 3), sound_to=3.0, audio="mp2", size=(32, 40),
        container_options={"mpegts_start_pid": "0x300", "mpegts_pmt_start_pid": "0x1050"},
    )  # fmt: skip
    path = tmp_path / "joined.ts"
    path.write_bytes(b"".join({"a": pieces["ts"][1], "b": Path(other).read_bytes()}[part] for part in order))
    segments, losses, _ = parts_of(path)
    assert seconds(segments) == (6.0 * order.count("a") if order[0] == "a" else 3.0)
    (loss,) = losses  # FFmpeg knows the tracks of the beginning; the end of later ones may be unknown
    assert loss.reason == ("other_tracks" if loss.end_seconds is not None else "later_tracks")
    assert loss.end_seconds is None or 2.5 < loss.end_seconds - loss.start_seconds < 3.2


def test_a_clip_is_the_first_stretch(tmp_path, pieces):
    path = tmp_path / "joined.ts"
    path.write_bytes(pieces["ts"][0] * 2)
    size = {"fps": FPS, "height": 16, "width": 16}
    clip, pictures = read_clip(str(path), **size, sample_rate=RATE), read_pictures(str(path), **size)
    assert len(clip.video) == 40 and np.array_equal(pictures, clip.video)


def test_pictures_after_a_joint_are_found_without_the_sound(tmp_path, pieces):
    path = tmp_path / "joined.ts"
    path.write_bytes(pieces["ts"][0] * 2)
    span = {"fps": FPS, "height": 16, "width": 16, "start_seconds": 5.0, "num_frames": 30}
    pictures = read_pictures(str(path), **span)
    assert np.array_equal(pictures, read_clip(str(path), **span, sample_rate=RATE).video)


@pytest.mark.parametrize("num_pictures", [1, 20])
def test_a_clip_of_any_length_is_cut_from_a_still_with_long_sound(tmp_path, num_pictures):
    times = [Fraction(number, 25) for number in range(num_pictures)]
    path = make_film(tmp_path / "still.mp4", times=times, tick=Fraction(1, 25), sound_to=45.0)
    for count in (28, 29, 57, 58):  # 29 / 25 * 25 is less than 29 in floating point
        clip = read_clip(path, fps=25, sample_rate=RATE, height=16, width=16, num_frames=count)
        assert clip.video.shape == (count, 16, 16, 3)
