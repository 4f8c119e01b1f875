"""An opened media file as decoded frames in file order: seeking, counting damage.

Knows nothing of clips. Private to `proav/media/container.py`.
"""

import itertools
from collections.abc import Iterator
from fractions import Fraction

import av

from proav.errors import MediaError
from proav.media.joints import Joint, with_joints
from proav.media.opening import MAX_PIXELS, Watch, no_memory, words

SEEK_MARGIN_SECONDS = 0.2
"""Reading a span starts this much earlier: the first sound after a seek lacks the overlap with what came before."""
MPEG_MARGIN_SECONDS = 3.0
"""The same for MPEG program streams (.mpg, .vob): only some of their pictures have a time stamp, and before
the second one after a seek FFmpeg's guesses are late by a few pictures. Made files have stamps up to 1.2 s
apart."""
MAX_DAMAGE = 0.1
"""A stretch of which more than this share of a stream's packets cannot be decoded is refused."""
COUNTED_FORMATS = ("avi",)
"""They carry no time stamps, only pictures in the order of decoding. With B-frames FFmpeg stamps them late, by as many as wait to be shown, and H.264
even out of order; the count of packets at which a picture came out is in order, and late by the same number."""
END_TIME_FORMATS = ("matroska,webm", "nut", "asf")
"""Their headers state when the file ends on its own clock, not how long it is."""
MAX_REORDERED = 16
"""Of H.264, the most of any codec."""
MIN_RATE, MAX_RATE = 1_000, 768_000
"""Sound of other rates, in Hz, is a header's mistake: at 1 Hz, nine kilobytes would become hours."""
MAX_SOUND_FRAME_SECONDS = 30.0
"""Codecs hand out some milliseconds at a time, up to a few seconds."""
MAX_PIXEL_ASPECT = 4
"""Pixels said to be more than so many times as wide as high, or as high as wide, are a writer's mistake and taken as square."""


def start_time(stream) -> Fraction | None:
    """When the stream starts, in seconds of the file's clock, if its header says."""
    return None if stream.start_time is None else stream.start_time * stream.time_base


def declared_seconds(container) -> float:
    """Length of the file by its header, 0 if it states none."""
    duration = container.duration or 0
    if container.format.name in END_TIME_FORMATS and duration > (container.start_time or 0):
        duration -= container.start_time or 0
    return duration / av.time_base


def declared_end(container, stream) -> float | None:
    """When the stream ends, in seconds of the file's clock, if its header says."""
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
    """Time 0 of a clip on the file's clock: where pictures start, or sound where that starts at least `frame_seconds` earlier."""
    if video_start is None or audio_start is None:
        return video_start if video_start is not None else audio_start or Fraction(0)
    return audio_start if video_start - audio_start >= frame_seconds else video_start


def check_pixels(picture, name: str, max_pixels: int) -> None:
    """Raises MediaError("too_large") if a picture has more pixels, or a stream says that its have.

    Asked of every picture, since files may change their size midway.
    """
    if picture.width * picture.height > max_pixels:
        said = f"{name} has pictures of {picture.width}x{picture.height}"
        raise MediaError("too_large", f"{said}; expected at most {max_pixels} pixels")


def check_sound(frame: av.AudioFrame, name: str) -> None:
    """Raises MediaError bad_rate or too_large if sound would become far more at another rate than it is."""
    if not frame.samples or not frame.sample_rate:  # nothing, of which nothing is made
        return
    if not MIN_RATE <= frame.sample_rate <= MAX_RATE:
        said = f"{name} says that its sound has a rate of {frame.sample_rate} Hz"
        raise MediaError("bad_rate", f"{said}; expected {MIN_RATE} to {MAX_RATE} Hz")
    if frame.samples > MAX_SOUND_FRAME_SECONDS * frame.sample_rate:
        said = f"{name} holds {frame.samples / frame.sample_rate:.0f} s of sound in one piece"
        raise MediaError("too_large", f"{said}; expected at most {MAX_SOUND_FRAME_SECONDS:g} s")


def pixel_aspect(video) -> Fraction:
    """Width over height of a pixel; 1 where the file gives nothing sensible."""
    aspect = Fraction(video.sample_aspect_ratio or 1)
    return aspect if 1 <= aspect * MAX_PIXEL_ASPECT <= MAX_PIXEL_ASPECT**2 else Fraction(1)


class Decoder:
    """Decodes chosen streams of a container on one thread, in file order.

    `watch` is told of each packet, and its clock starts here.
    """

    def __init__(
        self, container, streams: list, name: str, watch: Watch, max_pixels: int = MAX_PIXELS
    ) -> None:
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
        self._watch, self._max_pixels = watch, max_pixels
        watch.start(name)
        self.stopped_by: str | None = None
        self.has_later_tracks = False
        self.num_frames = dict.fromkeys((stream.type for stream in streams), 0)
        self.num_packets = dict.fromkeys(self.num_frames, 0)
        self._recent = {
            kind: [0, 0] for kind in self.num_frames
        }  # packets, packets that failed, since the last check
        self._unplaced = set(
            self.num_frames
        )  # streams of which no frame has come since the file was opened or sought in
        self._counted = container.format.name in COUNTED_FORMATS
        self._first_key: int | None = None  # these two: of the pictures of counted formats, in packets
        self._reordered: int | None = None
        for stream in streams:
            stream.thread_type = "NONE"
            if stream.type == "video":
                stream.codec_context.options = {**stream.codec_context.options, "max_pixels": str(max_pixels)}

    def damage(self) -> str:
        """What is wrong if too much failed since the last call, else nothing."""
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
        """("video" or "audio", frame) to the end of the file, or of what is readable of it; ("joint", Joint)
        where the clock starts anew.

        Raises MediaError timeout or bad_clock.
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
        """The same before decoding."""
        return with_joints(self._read_packets(), self._time_bases, self._name)

    def _read_packets(self) -> Iterator[av.Packet]:
        packets = self._container.demux(*self._demuxed)
        while True:
            self._watch.sign()
            try:
                packet = next(packets, None)
            except (
                IndexError
            ):  # PyAV knows the tracks that were there when the file was opened, and no later ones
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
        """As `frames`, from the key frame before `start`; from the beginning where None or where the file cannot be sought in."""
        if start is not None and self._counted:
            next(
                (kind for kind, _ in self.frames() if kind == "video"), None
            )  # from the beginning, for `_late_by`
        if start is None:
            return self.frames()
        margin = MPEG_MARGIN_SECONDS if self._container.format.name == "mpeg" else SEEK_MARGIN_SECONDS
        if not self._seek(start - margin):
            self._seek(file_start - 1)  # a search that failed (RealMedia) has left the file at its end
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
            if kind == "video":  # a decoder refuses pictures above its limit, and keeps their size
                check_pixels(stream.codec_context, self._name, self._max_pixels)
            # before the first good frame this is a stream cut open between key frames, not damage
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
            frame.time_base = time_base  # frames let out at the end of the file come without
            if kind in self._unplaced and frame.pts is None and packet is not None:
                frame.pts = (
                    packet.pts
                )  # WMA names no time for its first frames: after a seek they would land anywhere
            self._unplaced.discard(kind)
            if self._counted and kind == "video":
                frame.pts = None if frame.dts is None else frame.dts - self._late_by(frame)
            decoded.append((kind, frame))
        return decoded

    def _late_by(self, frame: av.VideoFrame) -> int:
        """How many packets of a counted format pass before a picture comes out; settled by the first picture of the file."""
        if self._reordered is None:
            late = frame.dts - self._first_key if self._first_key is not None else 0
            self._reordered = late if 0 <= late <= MAX_REORDERED else 0
        return self._reordered
