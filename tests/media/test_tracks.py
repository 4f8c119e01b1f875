"""Picture and sound are of one programme, and the track that holds something is read.

Settings can choose other tracks. Notes name what else there is.
"""

import io
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest

from proav.errors import MediaError
from proav.media.container import read_clip
from proav.media.segments import About, Request, Segment, read_parts
from proav.media.tracks import loudness_of, parse_programmes
from tests.media.flash_and_beep import make_film, regular

RATE = 16000
SECONDS = 3


def read(path, **options):
    """The `About` that is known at the end, and the first segment."""
    parts = list(
        read_parts(
            str(path), Request(fps=10, sample_rate=RATE, height=16, width=16, segment_frames=100, **options)
        )
    )
    return [part for part in parts if isinstance(part, About)][-1], [
        part for part in parts if isinstance(part, Segment)
    ][0]


def pitch(audio):
    """The frequency of the strongest tone, in Hz."""
    return int(np.abs(np.fft.rfft(audio)).argmax() * RATE / len(audio))


def tone(hertz, level=0.3, channels=1):
    time = np.arange(SECONDS * 48000) / 48000
    return np.tile(level * np.sin(2 * np.pi * hertz * time), (channels, 1)).astype(np.float32)


def write_film(path, *sounds, pictures=(40,)):
    """A film with these sound tracks and one picture track for each brightness.

    sounds: float32 [channels, samples] at 48 kHz.
    pictures: the brightness of each picture track, 0 to 255.
    """
    with av.open(str(path), "w") as container:
        videos = [container.add_stream("libx264", rate=25) for _ in pictures]
        for video in videos:
            video.width, video.height, video.pix_fmt, video.codec_context.thread_count = 64, 48, "yuv420p", 1
        tracks = [
            container.add_stream("pcm_s16le", rate=48000, layout={1: "mono", 2: "stereo"}[len(sound)])
            for sound in sounds
        ]
        packets = []
        for video, level in zip(videos, pictures, strict=True):
            for number in range(25 * SECONDS):
                picture = av.VideoFrame.from_ndarray(np.full((48, 64, 3), level, np.uint8), format="rgb24")
                picture.pts, picture.time_base = number, Fraction(1, 25)
                packets += video.encode(picture)
            packets += video.encode(None)
        for track, sound in zip(tracks, sounds, strict=True):
            for first in range(0, sound.shape[1], 4800):
                samples = np.round(sound[:, first : first + 4800] * 32767).astype(np.int16)
                block = av.AudioFrame.from_ndarray(samples.T.reshape(1, -1).copy(), "s16", track.layout.name)
                block.sample_rate, block.pts, block.time_base = 48000, first, Fraction(1, 48000)
                packets += track.encode(block)
        for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
            container.mux(packet)
    return path


def checksum(data):
    """The CRC-32 of MPEG-2 tables."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte << 24
        for _ in range(8):
            value = (value << 1 ^ 0x04C11DB7 if value & 0x80000000 else value << 1) & 0xFFFFFFFF
    return value.to_bytes(4, "big")


def multiplex(path, *programmes):
    """One transport stream made of several, whose packets alternate.

    programmes: for each, its file and the identifier of its map. They are numbered from 1.
    """
    streams = []
    association = b""
    for number, (file, identifier) in enumerate(programmes, start=1):
        data = Path(file).read_bytes()
        packets = [data[place : place + 188] for place in range(0, len(data), 188)]
        streams.append([packet for packet in packets if (packet[1] & 0x1F) << 8 | packet[2] not in (0, 0x11)])
        association += number.to_bytes(2, "big") + (0xE000 | identifier).to_bytes(2, "big")
    table = (
        b"\x00" + (0xB000 | 9 + len(association)).to_bytes(2, "big") + b"\x00\x01\xc1\x00\x00" + association
    )
    table = b"\x47\x40\x00\x10\x00" + table + checksum(table)
    out, length = [], max(map(len, streams))
    for number in range(length):
        if number % 20 == 0:
            out.append(table.ljust(188, b"\xff"))
        for packets in streams:
            out += packets[number * len(packets) // length : (number + 1) * len(packets) // length]
    Path(path).write_bytes(b"".join(out))
    return path


def programme(path, number, *, picture=True, sound=True, hertz=300):
    """A transport stream with identifiers of its own: a grey picture, a tone, or both.

    path: where it is written.
    number: of the programme; it sets the identifiers and the brightness.
    picture, sound: whether it has them.
    hertz: frequency of the tone.

    Returns the path and the identifier of the programme's map.
    """
    options = {
        "mpegts_pmt_start_pid": f"{0x1000 + number:#x}",
        "mpegts_start_pid": f"{0x100 * number:#x}",
        "mpegts_service_id": str(number),
    }
    with av.open(str(path), "w", options=options) as container:
        packets = []
        if picture:
            video = container.add_stream("libx264", rate=25, options={"g": "12"})
            video.width, video.height, video.pix_fmt, video.codec_context.thread_count = 64, 48, "yuv420p", 1
            for index in range(25 * SECONDS):
                frame = av.VideoFrame.from_ndarray(
                    np.full((48, 64, 3), 40 + 60 * number, np.uint8), format="rgb24"
                )
                frame.pts, frame.time_base = index, Fraction(1, 25)
                packets += video.encode(frame)
            packets += video.encode(None)
        if sound:
            track = container.add_stream("mp2", rate=48000, layout="mono")
            block = np.round(tone(hertz) * 32767).astype(np.int16)
            resampler = av.AudioResampler(format="s16", layout="mono", rate=48000, frame_size=1152)
            frame = av.AudioFrame.from_ndarray(block, "s16", "mono")
            frame.sample_rate, frame.pts, frame.time_base = 48000, 0, Fraction(1, 48000)
            packets += [
                packet
                for piece in [*resampler.resample(frame), *resampler.resample(None), None]
                for packet in track.encode(piece)
            ]
        for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
            container.mux(packet)
    return path, 0x1000 + number


@pytest.fixture(scope="module")
def programmes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("programmes")
    return {
        "one": programme(folder / "one.ts", 1, hertz=300),
        "two": programme(folder / "two.ts", 2, hertz=700),
        "radio": programme(folder / "radio.ts", 3, picture=False, hertz=1100),
        "mute": programme(folder / "mute.ts", 1, sound=False),
        "last": programme(folder / "last.ts", 2, hertz=700),
    }


def test_programmes_are_read_from_the_streams_own_tables(tmp_path, programmes):
    path = multiplex(tmp_path / "all.ts", programmes["one"], programmes["two"], programmes["radio"])
    assert parse_programmes(path.read_bytes()) == {1: {0x100, 0x101}, 2: {0x200, 0x201}, 3: {0x300}}
    assert parse_programmes(b"no stream" * 1000) == {}
    with_codes = b"".join(
        b"time" + path.read_bytes()[place : place + 188] for place in range(0, 188 * 400, 188)
    )
    assert parse_programmes(with_codes) == {1: {0x100, 0x101}, 2: {0x200, 0x201}, 3: {0x300}}


def section(kind, number, body):
    """A section of the association table (0) or of a map table (2), with its head and its checksum."""
    head = bytes([kind]) + (0xB000 | 9 + len(body)).to_bytes(2, "big") + number.to_bytes(2, "big")
    return head + b"\xc1\x00\x00" + body + checksum(head + b"\xc1\x00\x00" + body)


def packets_of(identifier, *sections, shift=0):
    """Packets that hold sections one after the other; a packet says where its first new section begins.

    shift: bytes of stuffing before the first section.
    """
    data = b"\xff" * shift + b"".join(sections)
    starts = [shift + sum(map(len, sections[:number])) for number in range(len(sections))]
    out, place = b"", 0
    while place < len(data):
        first = next((start for start in starts if place <= start < place + 183), None)
        payload = b"" if first is None else bytes([first - place])
        size = 184 - len(payload)
        begins = 0x40 if payload else 0
        out += bytes([0x47, begins | identifier >> 8, identifier & 0xFF, 0x10])
        out += (payload + data[place : place + size]).ljust(184, b"\xff")
        place += size
    return out


def map_of(number, *streams, filling=0):
    """The map table of a programme. filling: bytes of descriptors before its streams."""
    body = b"\xe0\x00" + (0xF000 | filling).to_bytes(2, "big") + bytes(filling)
    for stream in streams:
        body += b"\x1b" + (0xE000 | stream).to_bytes(2, "big") + b"\xf0\x00"
    return section(2, number, body)


@pytest.mark.parametrize("filling", [0, 100, 170, 400])
@pytest.mark.parametrize("shift", [0, 40])
def test_programmes_that_share_the_identifier_of_their_maps(filling, shift):
    """A map table says whose it is. Tables share packets, or go on in the next."""
    association = section(0, 1, b"".join(bytes([0, number, 0xE0, 0x20]) for number in (1, 2, 3)))
    maps = [map_of(number, 0x100 * number, 0x100 * number + 1, filling=filling) for number in (1, 2, 3, 9)]
    expected = {number: {0x100 * number, 0x100 * number + 1} for number in (1, 2, 3)}  # 9 is in no table
    head = packets_of(0, association)
    assert parse_programmes((head + packets_of(0x20, *maps, shift=shift)) * 6) == expected
    apart = b"".join(packets_of(0x20, one) for one in maps)
    assert parse_programmes((head + apart) * 6) == expected


def test_a_short_transport_stream_is_read_from_an_open_file(programmes):
    """FFmpeg has read all of a short file before its tables are looked at. It may begin anywhere."""
    path = programmes["one"][0]
    _, expected = read(path)
    data = Path(path).read_bytes()
    for begin in (0, 1000):
        file = io.BytesIO(bytes(begin) + data)
        file.seek(begin)
        clip = read_clip(file, fps=10, sample_rate=RATE, height=16, width=16)
        assert np.array_equal(clip.video, expected.video) and np.array_equal(clip.audio, expected.audio)
        assert file.tell() == begin


def test_sound_that_cannot_be_resampled_is_silent():
    """Frames without samples or without a rate raise no error; the next ones are heard."""
    heard = av.AudioFrame.from_ndarray(tone(300), "fltp", "mono")
    heard.sample_rate = 48000
    no_rate = av.AudioFrame.from_ndarray(tone(300), "fltp", "mono")
    no_samples = av.AudioFrame("fltp", "mono", 0)
    no_samples.sample_rate = 48000
    negative = av.AudioFrame.from_ndarray(tone(300), "fltp", "mono")
    negative.sample_rate = -5
    broken = [no_rate, no_samples, negative]

    def container(*frames):
        packets = [
            SimpleNamespace(size=1, dts=None, stream_index=0, decode=lambda frame=frame: [frame])
            for frame in frames
        ]
        return SimpleNamespace(streams=[None], demux=lambda *streams: iter(packets))

    options = {"end_seconds": None, "on_packet": lambda: None}
    assert loudness_of(container(*broken), [0], **options) == {0: 0.0}
    assert abs(loudness_of(container(*broken, heard), [0], **options)[0] - 0.3 / 2**0.5) < 1e-3


def test_picture_and_sound_are_of_one_programme(tmp_path, programmes):
    hertz = {1: 300, 2: 700, 3: 1100}
    path = multiplex(tmp_path / "three.ts", programmes["one"], programmes["two"], programmes["radio"])
    about, segment = read(path)
    number = about.picture_track + 1
    assert about.sound_track == about.picture_track and abs(pitch(segment.audio) - hertz[number]) < 3
    assert (
        f"programme {number} is taken, there are others: {3 - number} (picture {2 - number}, sound "
        f"{2 - number}), 3 (sound 2)" in about.note
    )
    about, segment = read(path, picture_track=1)
    assert (about.picture_track, about.sound_track) == (1, 1) and abs(pitch(segment.audio) - 700) < 3
    about, segment = read(path, sound_track=0)
    assert (about.picture_track, about.sound_track) == (0, 0) and abs(pitch(segment.audio) - 300) < 3
    about, segment = read(path, picture_track=0, sound_track=2)  # as it was asked for
    assert (about.picture_track, about.sound_track) == (0, 2) and abs(pitch(segment.audio) - 1100) < 3


def test_a_programme_without_sound_takes_none_from_another(tmp_path, programmes):
    about, segment = read(
        multiplex(tmp_path / "television.ts", programmes["mute"], programmes["last"], programmes["radio"])
    )
    assert (
        abs(int(segment.video.max()) - 160) < 8
        and abs(pitch(segment.audio) - 700) < 3
        and about.note.startswith("programme 2 is taken")
    )
    with pytest.raises(MediaError, match="no sound in the programme of its pictures") as caught:
        read(multiplex(tmp_path / "radio.ts", programmes["mute"], programmes["radio"]))
    assert caught.value.reason == "no_audio"


@pytest.mark.parametrize(
    ("levels", "taken"),
    [((0.3, 0.3), 0), ((0.0, 0.3), 1), ((0.0, 0.0), 0), ((1e-4, 0.0, 0.1, 0.4, 0.0), 3), ((0.01, 0.5), 0)],
)
def test_content_goes_before_a_flag(tmp_path, levels, taken):
    path = write_film(
        tmp_path / "film.mov", *(tone(300 + 200 * number, level) for number, level in enumerate(levels))
    )
    about, segment = read(path)
    assert about.sound_track == taken
    assert not levels[taken] or abs(pitch(segment.audio) - 300 - 200 * taken) < 3
    assert about.note.startswith(f"sound track {taken} is taken") and (
        ", since 0 is silent" in about.note
    ) == (taken != 0)
    assert sum(f" {number} (pcm_s16le" in about.note for number in range(len(levels))) == len(levels) - 1
    with path.open("rb") as file:
        assert len(read_clip(file, fps=10, sample_rate=RATE, height=16, width=16).video) == 10 * SECONDS


def test_only_the_span_decides(tmp_path):
    late = tone(300)
    late[:, : 2 * 48000] = 0
    path = write_film(tmp_path / "film.mkv", late, tone(700))
    assert read(path)[0].sound_track == 0
    assert read(path, max_frames=15)[0].sound_track == 1
    assert read(path, start_seconds=1.5)[0].sound_track == 0


def test_settings_choose_and_a_track_that_is_not_there_is_reported(tmp_path):
    path = write_film(tmp_path / "film.mkv", tone(300, 0.0), tone(700), tone(1100), pictures=(40, 200))
    about, segment = read(path, sound_track=2, picture_track=1)
    assert abs(pitch(segment.audio) - 1100) < 3 and segment.video.max() > 150
    assert "picture track 1 is taken, there are others: 0 (h264 64x48)" in about.note
    assert not read(path, sound_track=0)[1].audio.any()
    for options, said in (
        ({"sound_track": 3}, "no sound track 3; there are: 0 .*, 1 .*, 2 "),
        ({"picture_track": 2}, "no picture track 2; there are: 0 "),
    ):
        with pytest.raises(MediaError, match=said) as caught:
            read(path, **options)
        assert caught.value.reason == "no_track"


def test_a_track_of_one_picture_is_not_the_picture(tmp_path):
    """Cameras and phones write a still beside the film."""
    film = write_film(tmp_path / "film.mp4.mov", tone(300))
    path = tmp_path / "both.mov"
    with av.open(str(path), "w") as container, av.open(str(film)) as source:
        still = container.add_stream("mjpeg", rate=25)
        still.width, still.height, still.pix_fmt = 320, 240, "yuvj420p"
        copies = {stream.index: container.add_stream_from_template(stream) for stream in source.streams}
        picture = av.VideoFrame.from_ndarray(np.full((240, 320, 3), 250, np.uint8), format="rgb24")
        picture.pts, picture.time_base = 0, Fraction(1, 25)
        container.mux([*still.encode(picture), *still.encode(None)])
        for packet in source.demux():
            if packet.size:
                packet.stream = copies[packet.stream_index]
                container.mux(packet)
    about, segment = read(path)
    assert about.picture_track == 1 and len(segment.video) == 10 * SECONDS and segment.video.max() < 100


def test_channels_that_cancel_are_no_silence(tmp_path):
    left = tone(300)
    for sound, expected in (
        (np.concatenate([left, -left]), True),
        (np.concatenate([left, left]), False),
        (np.concatenate([left, 0 * left]), False),
        (np.concatenate([left, tone(700)]), False),
        (np.zeros((2, left.shape[1]), np.float32), False),
        (left, False),
    ):
        assert read(write_film(tmp_path / "film.mov", sound))[1].cancelled is expected
    half = np.concatenate([left, -left])
    half[1, 48000:] *= -1
    assert not read(write_film(tmp_path / "film.mov", half))[1].cancelled


def test_a_film_with_one_track_of_each_has_no_note(tmp_path):
    about, _ = read(make_film(tmp_path / "film.ts", times=regular(25, 2), audio="mp2"))
    assert about.note == "" and (about.picture_track, about.sound_track) == (0, 0)


def test_tables_of_streams_that_are_too_short_or_damaged_name_nothing(tmp_path):
    """A map table of section length 9 holds no streams. Random bytes in tables raise no error."""

    def packet(identifier: int, section: bytes) -> bytes:
        head = bytes([0x47, 0x40 | identifier >> 8, identifier & 0xFF, 0x10, 0])
        return (head + section).ljust(188, b"\xff")

    association = bytes([0, 0xB0, 13, 0, 1, 0xC1, 0, 0, 0, 1, 0xE0, 0x20, 0, 0, 0, 0])
    short = bytes([2, 0xB0, 9, 0, 1, 0xC1, 0, 0, 0, 0, 0, 0])
    stream = (packet(0, association) + packet(0x20, short)) * 10
    assert parse_programmes(stream) == {}
    generator = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(stream)
        for place in generator.integers(0, len(damaged), 20):
            damaged[place] = generator.integers(256)
        parse_programmes(bytes(damaged))
