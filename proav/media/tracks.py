"""Chooses the tracks of a file that are read: one picture and one sound of the same programme.

Tracks that are not empty are preferred. Clips are made in `segments.py`. This module is private to
`proav/media`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import av
import numpy as np

from proav.errors import MediaError
from proav.media.opening import Watch, can_be_read_again, read_head
from proav.media.sound import SILENT_RMS

NO_PROGRAMME = -1
"""Stands for the programme of tracks that belong to none."""
HEAD_BYTES = 4 << 20
"""How much of a transport stream is searched for its programmes: half a second at 64 Mbit/s."""
MAP_HEAD_BYTES = 4
"""Bytes of a programme map table before its streams: the clock's identifier and a length."""
TRANSPORT_SYNC, PACKET_SIZES = 0x47, (188, 192, 204)
"""Packets of MPEG-2 transport streams: as in ISO/IEC 13818-1, with time codes (Blu-ray), with error
correction."""
STUFFING = 0xFF
"""Fills a packet after its last section."""
COVER = av.stream.Disposition.attached_pic


@dataclass
class Tracks:
    """The tracks of a file that are read.

    video, audio: indices of the streams; audio is None if only pictures are read.
    candidates: the sound tracks among which loudness decides; the default one is first.
    why: the reason for the choice of sound, for people.
    """

    video: int
    audio: int | None
    candidates: tuple[int, ...] = ()
    why: str = ""

    def streams(self, container) -> list:
        """The picture and, if there is one, the sound."""
        return [container.streams[index] for index in (self.video, self.audio) if index is not None]

    def places(self, container) -> tuple[int, int | None]:
        """Picture and sound as numbers among the file's tracks of their kind, from 0."""
        kinds = (("video", self.video), ("audio", self.audio))
        return tuple(
            None if index is None else [stream.index for stream in _tracks(container, kind)].index(index)
            for kind, index in kinds
        )


def choose_tracks(
    container,
    name: str,
    *,
    programmes: dict[int, set[int]],
    picture_track: int | None,
    sound_track: int | None,
    pictures_only: bool,
) -> Tracks:
    """The picture and the sound to read.

    container, name: the opened file, and its name for messages.
    programmes: stream ids of each programme, {} if the file has none.
    picture_track, sound_track: numbers among the file's tracks of that kind, from 0; None: the main track
        whose programme has both.
    pictures_only: no sound is chosen, and none is needed. The picture is the same as with sound.
    Raises MediaError no_video, no_audio, unsupported_codec or no_track.
    """
    videos, audios = _tracks(container, "video"), _tracks(container, "audio")
    groups = {stream.index: _programmes_of(stream, programmes) for stream in [*videos, *audios]}
    sounds = (
        [_given(audios, sound_track, "sound", name)]
        if sound_track is not None
        else _decodable(container, audios)
    )
    if picture_track is not None:
        pictures = [_given(videos, picture_track, "picture", name)]
    else:
        main_track(container, "video", name)
        pictures = _decodable(container, [stream for stream in videos if not stream.disposition & COVER])
        pictures = [stream for stream in pictures if stream.frames != 1] or pictures
        pictures.sort(
            key=lambda video: not any(groups[video.index] & groups[audio.index] for audio in sounds)
        )
    video = pictures[0]
    if pictures_only:
        return Tracks(video.index, None)
    beside = (
        sounds
        if sound_track is not None
        else [audio for audio in sounds if groups[video.index] & groups[audio.index]]
    )
    if not beside:
        raise _none(
            [audio for audio in audios if groups[video.index] & groups[audio.index]],
            "audio",
            "sound",
            name,
            len(audios),
        )
    best = container.streams.best("audio", related=video)
    beside.sort(key=lambda audio: best is None or audio.index != best.index)
    indices = tuple(audio.index for audio in beside)
    return Tracks(video.index, indices[0], indices)


def main_track(container, kind: str, name: str):
    """The container's main stream of `kind`, "video" or "audio"; never a cover picture.

    Raises MediaError no_KIND or unsupported_codec.
    """
    shown = [stream for stream in _tracks(container, kind) if not stream.disposition & COVER]
    if found := _decodable(container, shown):
        return found[0]
    raise _none(shown, kind, "pictures" if kind == "video" else "sound", name)


def choose_by_content(tracks: Tracks, container, loudness: dict[int, float]) -> None:
    """Switches to the loudest sound track if the chosen one is silent and the loudest is not.

    loudness: root mean square of each candidate, by index.
    """
    first, loudest = tracks.candidates[0], max(tracks.candidates, key=lambda index: loudness.get(index, 0.0))
    if loudness.get(first, 0.0) >= SILENT_RMS or loudness.get(loudest, 0.0) < SILENT_RMS:
        return
    before = tracks.places(container)[1]
    tracks.audio, tracks.why = loudest, f", since {before} is silent"


def note_others(tracks: Tracks, container, programmes: dict[int, set[int]]) -> str:
    """A sentence about the programmes and tracks that are not read; "" if there are none."""
    videos, audios = _tracks(container, "video"), _tracks(container, "audio")
    groups = {stream.index: _programmes_of(stream, programmes) for stream in [*videos, *audios]}
    mine, notes = groups[tracks.video], []
    if elsewhere := [
        number
        for number in programmes
        if number not in mine and any(number in group for group in groups.values())
    ]:
        told = ", ".join(f"{number} ({_told(number, videos, audios, groups)})" for number in elsewhere)
        notes.append(f"programme {min(mine)} is taken, there are others: {told}")
    places = tracks.places(container)
    for what, streams, place, why in (
        ("picture", videos, places[0], ""),
        ("sound", audios, places[1], tracks.why),
    ):
        others = [
            f"{number} ({_words(stream)})"
            for number, stream in enumerate(streams)
            if place is not None
            and number != place
            and groups[stream.index] & (mine | {NO_PROGRAMME})
            and not stream.disposition & COVER
        ]
        if others:
            notes.append(f"{what} track {place} is taken{why}, there are others: {', '.join(others)}")
    return "; ".join(notes)


def loudness_of(
    container, indices: Sequence[int], *, end_seconds: float | None, on_packet: Callable[[], None]
) -> dict[int, float]:
    """Root mean square of the loudest frame of each sound track, by the stream's index.

    Reads from the container's current position. Stops as soon as the first track is not silent. Sound that
    cannot be decoded counts as silent.

    container: the opened file.
    indices: the streams.
    end_seconds: where to stop, on the file's clock; None: at the end of the file.
    on_packet: called at each packet.
    """
    streams = [container.streams[index] for index in indices]
    resamplers: dict[tuple, av.AudioResampler] = {}
    loudness = dict.fromkeys(indices, 0.0)
    packets, packet = container.demux(*streams), None
    while True:
        on_packet()
        try:
            packet = next(packets, None)
            if packet is None or (
                end_seconds is not None
                and packet.dts is not None
                and packet.dts * packet.time_base > end_seconds
            ):
                return loudness
            for frame in packet.decode() if packet.size else []:
                if frame.samples and frame.sample_rate:
                    level = _level(frame, packet.stream_index, resamplers)
                    loudness[packet.stream_index] = max(loudness[packet.stream_index], level)
        except IndexError:  # a packet of a track that was not there when the file was opened
            packets = container.demux(*streams)
            continue
        except (av.FFmpegError, OSError, ValueError):
            if packet is None:
                return loudness
        if loudness[indices[0]] >= SILENT_RMS:
            return loudness


def _level(frame: av.AudioFrame, index: int, resamplers: dict[tuple, av.AudioResampler]) -> float:
    """Root mean square of a frame. resamplers: for each kind of frame of each stream; kept by the caller."""
    kind = index, frame.sample_rate, frame.layout.name, frame.format.name
    if kind not in resamplers:
        resamplers[kind] = av.AudioResampler(format="flt", layout=frame.layout, rate=frame.sample_rate)
    pieces = [
        np.nan_to_num(piece.to_ndarray(), posinf=0.0, neginf=0.0)
        for piece in resamplers[kind].resample(frame)
    ]
    return max((float(np.sqrt(np.mean(piece**2))) for piece in pieces), default=0.0)


def programmes_of(source: str | BinaryIO, container, watch: Watch) -> dict[int, set[int]]:
    """The programmes of an opened file, like `parse_programmes`; {} if it cannot have several."""
    if container.format.name != "mpegts" or len(container.streams) < 2 or not can_be_read_again(source):
        return {}
    return parse_programmes(read_head(HEAD_BYTES, watch))


def parse_programmes(head: bytes) -> dict[int, set[int]]:
    """The programmes of an MPEG transport stream: number -> packet identifiers of their streams.

    {} if the stream names none. A map table says itself of which programme it is.
    head: its first bytes. Association and map tables come at least every half second.
    """
    first, size = next(
        (
            (first, size)
            for size in PACKET_SIZES
            for first in range(size)
            if all(
                head[place : place + 1] == bytes([TRANSPORT_SYNC])
                for place in range(first, first + 5 * size, size)
            )
        ),
        (0, 0),
    )
    if not size:
        return {}
    maps: set[int] = set()
    numbers: set[int] = set()
    programmes: dict[int, set[int]] = {}
    for identifier, section in _sections(head, range(first, len(head) - 187, size), maps):
        body = section[8:-4]
        if not identifier and section[0] == 0:
            for entry in range(0, len(body) - 3, 4):
                if number := body[entry] << 8 | body[entry + 1]:
                    numbers.add(number)
                    maps.add((body[entry + 2] & 0x1F) << 8 | body[entry + 3])
        elif identifier and section[0] == 2 and len(body) >= MAP_HEAD_BYTES:
            number = section[3] << 8 | section[4]  # several programmes may share one identifier
            if number in numbers:
                programmes[number] = _streams_of_map(body)
            if len(programmes) == len(numbers):
                break
    return programmes


def _sections(head: bytes, places: range, maps: set[int]) -> Iterator[tuple[int, bytes]]:
    """(packet identifier, section) of each whole section of the association and map tables.

    places: where packets begin in `head`.
    maps: identifiers of the map tables; the caller adds those that the association table names.
    """
    begun: dict[int, bytes] = {}
    for place in places:
        packet = head[place : place + 188]
        identifier = (packet[1] & 0x1F) << 8 | packet[2]
        if packet[0] != TRANSPORT_SYNC or not packet[3] & 0x10 or (identifier and identifier not in maps):
            continue
        payload, before = (
            packet[4 + (1 + packet[4] if packet[3] & 0x20 else 0) :],
            begun.pop(identifier, None),
        )
        pieces = [] if before is None else [before + payload]
        if packet[1] & 0x40 and payload:  # a section begins here; bytes before it belong to the last one
            start = 1 + payload[0]
            pieces = [(before or b"") + payload[1:start], payload[start:]]
        rest = b""
        for rest in pieces:
            while len(rest) >= 3 and rest[0] != STUFFING:
                length = 3 + ((rest[1] & 0x0F) << 8 | rest[2])
                if length > len(rest):
                    break
                yield identifier, rest[:length]
                rest = rest[length:]
        if rest and rest[0] != STUFFING:
            begun[identifier] = rest


def _streams_of_map(body: bytes) -> set[int]:
    streams, place = set(), 4 + ((body[2] & 0x0F) << 8 | body[3])
    while place + 5 <= len(body):
        streams.add((body[place + 1] & 0x1F) << 8 | body[place + 2])
        place += 5 + ((body[place + 3] & 0x0F) << 8 | body[place + 4])
    return streams


def _tracks(container, kind: str) -> list:
    return [stream for stream in container.streams if stream.type == kind]


def _decodable(container, streams: list) -> list:
    """The streams for which there is a decoder, the container's main one in front."""
    best = container.streams.best(streams[0].type) if streams else None
    found = [stream for stream in streams if stream.codec_context is not None]
    return sorted(found, key=lambda stream: best is None or stream.index != best.index)


def _programmes_of(stream, programmes: dict[int, set[int]]) -> set[int]:
    return {number for number, streams in programmes.items() if stream.id in streams} or {NO_PROGRAMME}


def _given(streams: list, track: int, what: str, name: str):
    if track >= len(streams):
        there = ", ".join(f"{number} ({_words(stream)})" for number, stream in enumerate(streams)) or "none"
        raise MediaError("no_track", f"{name} has no {what} track {track}; there are: {there}")
    if streams[track].codec_context is None:
        raise MediaError(
            "unsupported_codec", f"{name} has {what} track {track} in a format for which there is no decoder"
        )
    return streams[track]


def _none(streams: list, kind: str, what: str, name: str, num_elsewhere: int = 0) -> MediaError:
    if streams:
        return MediaError("unsupported_codec", f"{name} has {what} in a format for which there is no decoder")
    if num_elsewhere:
        return MediaError(
            f"no_{kind}", f"{name} has no {what} in the programme of its pictures, only in others"
        )
    return MediaError(f"no_{kind}", f"{name} has no {what}")


def _told(programme: int, videos: list, audios: list, groups: dict[int, set[int]]) -> str:
    kinds = (("picture", videos), ("sound", audios))
    return ", ".join(
        f"{what} {number}"
        for what, streams in kinds
        for number, stream in enumerate(streams)
        if programme in groups[stream.index]
    )


def _words(stream) -> str:
    """A track in a few words."""
    context = stream.codec_context
    words = [context.name if context is not None else "unknown format"]
    if context is not None and stream.type == "video":
        words.append(f"{context.width}x{context.height}")
    elif context is not None:
        words.append(context.layout.name)
    language = stream.metadata.get("language", "und")
    return " ".join(words + ([language] if language != "und" else []))
