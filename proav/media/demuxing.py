"""An opened media file as decoded frames in file order, with seeking and a count of damage.

Clips are made in `segments.py`. This module is private to `proav/media`.
"""

import itertools
from collections.abc import Iterator
from fractions import Fraction

import av

from proav.errors import MediaError
from proav.media.joints import Joint, with_joints
from proav.media.opening import MAX_PIXELS, Watch, no_memory, words

SEEK_MARGIN_SECONDS = 0.2
"""Reading a span starts this much earlier. The first sound after a seek lacks the overlap with the sound
before it."""
MPEG_MARGIN_SECONDS = 3.0
"""The same for MPEG program streams (.mpg, .vob). Only some of their pictures have a time stamp. Until the
second stamp after a seek, FFmpeg's guesses are late by a few pictures. In files that we made, stamps are up
to 1.2 s apart."""
MAX_DAMAGE = 0.1
"""A segment is refused if more than this share of its packets of one stream cannot be decoded."""
COUNTED_FORMATS = ("avi",)
"""Formats without time stamps, which hold pictures in decoding order. With B-frames, FFmpeg's stamps are
late, and with H.264 they are even out of order. Instead, a picture's time is the number of packets that were
read before the decoder gave it, less a constant delay (`_late_by`)."""
END_TIME_FORMATS = ("matroska,webm", "nut", "asf")
"""Formats whose headers state the end time on the file's clock, not the length."""
MAX_REORDERED = 16
"""Most pictures that may wait to be shown: the limit of H.264, the largest of any codec."""
MIN_RATE, MAX_RATE = 1_000, 768_000
"""Sample rates in Hz. Any other is an error in the header: at 1 Hz, a file of nine kilobytes would hold hours
of sound."""
MAX_SOUND_FRAME_SECONDS = 30.0
"""Longest piece of decoded sound. Codecs give some milliseconds at a time, up to a few seconds."""
MAX_PIXEL_ASPECT = 4
"""Largest ratio of a pixel's sides. A larger one is an error in the file, and the pixel counts as square."""


def start_time(stream) -> Fraction | None:
    """When the stream starts, in seconds of the file's clock; None if its header does not say."""
    return None if stream.start_time is None else stream.start_time * stream.time_base


def declared_seconds(container) -> float:
    """Length of the file in seconds by its header, 0 if it states none."""
    duration = container.duration or 0
    if container.format.name in END_TIME_FORMATS and duration > (container.start_time or 0):
        duration -= container.start_time or 0
    return duration / av.time_base


def declared_end(container, stream) -> float | None:
    """When the stream ends, in seconds of the file's clock; None if its header does not say."""
    if stream.duration is not None:
        start = 0 if container.format.name in END_TIME_FORMATS else stream.start_time or 0
        return float((start + stream.duration) * stream.time_base)
    hours, _, rest = stream.metadata.get("DURATION", "").partition(":")  # Matroska, 00:01:00.008000000
    minutes, _, seconds = rest.partition(":")
    try:
        return 3600 * int(hours) + 60 * int(minutes) + float(seconds)
    except ValueError:
        return None


def origin(video_start: Fraction | None, audio_start: Fraction | None, frame_seconds: Fraction) -> Fraction:
    """Time 0 on the file's clock, in seconds: the start of the pictures.

    If the sound starts at least `frame_seconds` earlier, time 0 is the start of the sound.
    """
    if video_start is None or audio_start is None:
        return video_start if video_start is not None else audio_start or Fraction(0)
    return audio_start if video_start - audio_start >= frame_seconds else video_start


def check_pixels(picture, name: str, max_pixels: int) -> None:
    """Raises MediaError("too_large") if a picture has more than `max_pixels`, or if a stream states more.

    This is checked for every picture, since the size may change within a file.
    """
    if picture.width * picture.height > max_pixels:
        said = f"{name} has pictures of {picture.width}x{picture.height}"
        raise MediaError("too_large", f"{said}; expected at most {max_pixels} pixels")


def check_sound(frame: av.AudioFrame, name: str) -> None:
    """Raises MediaError bad_rate or too_large if a small piece of sound would become huge when resampled."""
    if not frame.samples or not frame.sample_rate:  # nothing to resample
        return
    if not MIN_RATE <= frame.sample_rate <= MAX_RATE:
        said = f"{name} says that its sound has a rate of {frame.sample_rate} Hz"
        raise MediaError("bad_rate", f"{said}; expected {MIN_RATE} to {MAX_RATE} Hz")
    if frame.samples > MAX_SOUND_FRAME_SECONDS * frame.sample_rate:
        said = f"{name} holds {frame.samples / frame.sample_rate:.0f} s of sound in one piece"
        raise MediaError("too_large", f"{said}; expected at most {MAX_SOUND_FRAME_SECONDS:g} s")


def pixel_aspect(video) -> Fraction:
    """Width over height of a pixel; 1 if the file states none, or an impossible one."""
    aspect = Fraction(video.sample_aspect_ratio or 1)
    return aspect if 1 <= aspect * MAX_PIXEL_ASPECT <= MAX_PIXEL_ASPECT**2 else Fraction(1)


class Decoder:
    """Decodes chosen streams of a container on one thread, in file order.

    After reading, `stopped_by` is the error that ended it, if any, and `has_later_tracks` says whether tracks
    began in the middle of the file. `num_frames` and `num_packets` count by kind, "video" or "audio".
    If `alone`, `other_sound_end` is where the last packet of a sound track that is not decoded ends, in
    seconds of the file's clock; None: there was none.
    """

    def __init__(
        self,
        container,
        streams: list,
        name: str,
        watch: Watch,
        max_pixels: int = MAX_PIXELS,
        *,
        alone: bool = False,
    ) -> None:
        """container: of PyAV, opened for reading.
        streams: the streams to decode; at most one of a kind.
        name: of the file, for messages.
        watch: notified of each packet; its clock starts here.
        max_pixels: larger pictures raise MediaError("too_large").
        alone: time that holds only packets of other tracks is no stretch of its own.
        """
        self._container, self._streams, self._name = container, streams, name
        beside = (
            stream
            for stream in container.streams
            if stream.type in ("video", "audio") and stream not in streams
        )
        self._demuxed = [
            *streams,
            *(stream for stream in beside if not stream.disposition & av.stream.Disposition.attached_pic),
        ]
        self._time_bases = {stream.index: stream.time_base for stream in streams}
        self._watch, self._max_pixels, self._alone = watch, max_pixels, alone
        self.other_sound_end: float | None = None
        watch.start(name)
        self.stopped_by: str | None = None
        self.has_later_tracks = False
        self.num_frames = dict.fromkeys((stream.type for stream in streams), 0)
        self.num_packets = dict.fromkeys(self.num_frames, 0)
        # by kind: packets, and packets that failed, since the last check
        self._recent = {kind: [0, 0] for kind in self.num_frames}
        # kinds without a frame since the file was opened, or since the last seek
        self._unplaced = set(self.num_frames)
        self._counted = container.format.name in COUNTED_FORMATS
        # only for pictures of COUNTED_FORMATS
        self._first_key: int | None = None  # the packet of the first key frame
        self._reordered: int | None = None  # the result of `_late_by`
        for stream in streams:
            stream.thread_type = "NONE"
            if stream.type == "video":
                stream.codec_context.options = {**stream.codec_context.options, "max_pixels": str(max_pixels)}

    def damage(self) -> str:
        """Says what is wrong if too many packets failed since the last call; else ""."""
        found = ""
        for kind, (packets, failed) in self._recent.items():
            if failed > MAX_DAMAGE * packets:
                found = (
                    found
                    or f"{self._name} is damaged: {failed} of {packets} {kind} packets in a row "
                    "cannot be decoded"
                )
        self._recent = {kind: [0, 0] for kind in self._recent}
        return found

    def frames(self) -> Iterator[tuple[str, av.VideoFrame | av.AudioFrame | Joint]]:
        """Yields ("video" or "audio", frame), and ("joint", Joint) at each place where the clock starts anew.

        Ends at the end of the file, or of its readable part. Raises MediaError timeout or bad_clock.
        """
        for packet in self.packets():
            if isinstance(packet, Joint):
                for stream in self._streams:
                    yield from self._decode(stream, None)
                    stream.codec_context.flush_buffers()
                yield "joint", packet
            else:
                yield from self._decode(packet.stream, packet)
        for stream in self._streams:
            yield from self._decode(stream, None)

    def packets(self) -> Iterator[av.Packet | Joint]:
        """Like `frames`, before decoding."""
        packets = self._read_packets()
        if self._alone:
            packets = self._without_others(packets)
        return with_joints(packets, self._time_bases, self._name)

    def _without_others(self, packets: Iterator[av.Packet]) -> Iterator[av.Packet]:
        for packet in packets:
            if packet.stream_index in self._time_bases:
                yield packet
            elif packet.size and packet.pts is not None and packet.stream.type == "audio":
                self.other_sound_end = float((packet.pts + (packet.duration or 0)) * packet.time_base)

    def _read_packets(self) -> Iterator[av.Packet]:
        packets = self._container.demux(*self._demuxed)
        while True:
            self._watch.sign()
            try:
                packet = next(packets, None)
            except IndexError:  # PyAV knows only the tracks that were there when the file was opened
                self.has_later_tracks, packets = True, self._container.demux(*self._demuxed)
                continue
            except (av.FFmpegError, OSError) as error:
                self._watch.check_storage()
                self.stopped_by = words(error)
                return
            if packet is None:
                self._watch.check_storage()
                return
            yield packet

    def frames_from(
        self, start: float | None, file_start: float
    ) -> Iterator[tuple[str, av.VideoFrame | av.AudioFrame]]:
        """Like `frames`, from the key frame before `start`; from the beginning if `start` is None or seeking
        fails.

        start, file_start: where to begin, and where the file begins, in seconds of the file's clock.
        Raises MediaError("unreadable") if the file cannot be read from `start` on.
        """
        if start is not None and self._counted:
            # the first picture of the file is decoded for `_late_by`
            next((kind for kind, _ in self.frames() if kind == "video"), None)
        if start is None:
            return self.frames()
        margin = MPEG_MARGIN_SECONDS if self._container.format.name == "mpeg" else SEEK_MARGIN_SECONDS
        if not self._seek(start - margin):
            self._seek(file_start - 1)  # a seek that failed (RealMedia) has left the file at its end
            return self.frames()
        ahead = []
        frames = self.frames()
        for kind, frame in frames:
            ahead.append((kind, frame))
            if kind == "video":
                if frame.time is not None and frame.time <= start:
                    return itertools.chain(ahead, frames)
                break
        if not self._seek(file_start - 1):
            raise MediaError(
                "unreadable",
                f"{self._name} cannot be read from {start - file_start:g} s on: it has no usable index",
            )
        return self.frames()

    def _seek(self, seconds: float) -> bool:
        try:
            self._container.seek(int(seconds * av.time_base), backward=True)
        except (av.FFmpegError, OSError):
            return False
        self._unplaced = set(self.num_frames)
        return True

    def _decode(self, stream, packet) -> list[tuple[str, av.VideoFrame | av.AudioFrame]]:
        kind, time_base, decoded = stream.type, self._time_bases[stream.index], []
        self._recent[kind][0] += packet is not None
        self.num_packets[kind] += packet is not None
        if (
            self._counted
            and kind == "video"
            and self._first_key is None
            and packet is not None
            and packet.is_keyframe
        ):
            self._first_key = packet.dts
        try:
            frames = stream.codec_context.decode(packet)
        except MemoryError as error:
            raise no_memory(self._name) from error
        except (av.FFmpegError, OSError):
            if kind == "video":  # a decoder that refused a picture above its limit still knows its size
                check_pixels(stream.codec_context, self._name, self._max_pixels)
            # A file that was cut out of another begins between key frames. So packets before the first good
            # frame do not count as damage.
            self._recent[kind][1] += bool(self.num_frames[kind])
            return decoded
        for frame in frames:
            if kind == "video":
                check_pixels(frame, self._name, self._max_pixels)
            else:
                check_sound(frame, self._name)
            if kind == "video" and frame.is_corrupt:
                self._recent[kind][1] += bool(self.num_frames[kind])
                continue
            self.num_frames[kind] += 1
            frame.time_base = time_base  # the last frames come without one, at the end of the file
            if kind in self._unplaced and frame.pts is None and packet is not None:
                # WMA's first frames have no time: after a seek their place would be unknown
                frame.pts = packet.pts
            self._unplaced.discard(kind)
            if self._counted and kind == "video":
                frame.pts = None if frame.dts is None else frame.dts - self._late_by(frame)
            decoded.append((kind, frame))
        return decoded

    def _late_by(self, frame: av.VideoFrame) -> int:
        """How many packets of a counted format pass before a picture comes out.

        The first picture of the file settles this number.
        """
        if self._reordered is None:
            late = frame.dts - self._first_key if self._first_key is not None else 0
            self._reordered = late if 0 <= late <= MAX_REORDERED else 0
        return self._reordered
