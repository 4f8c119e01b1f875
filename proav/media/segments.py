"""A file as parts in order of time: usable segments and losses, each with its span.

The preparation of data uses this module, because it reports losses. All other code reads clips with
`container.py`. The docstring of `container.read_segments` explains how time is counted.

A stretch is a part of the file whose clock runs on without a joint (`joints.py`). `demuxing.py` decodes;
`cutting.py` cuts one stretch into segments. Letters: T frames, H and W rows and columns.
"""

import contextlib
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import BinaryIO, Literal

import av
import numpy as np

from proav.errors import MediaError
from proav.media.cutting import MAX_STILL_SECONDS, PAUSE_SECONDS, Cut, Loss, Stretch, end_slack_seconds
from proav.media.demuxing import (
    Decoder,
    check_pixels,
    declared_end,
    declared_seconds,
    origin,
    pixel_aspect,
    start_time,
)
from proav.media.joints import Joint
from proav.media.opening import MAX_PIXELS, Watch, can_be_read_again, opened
from proav.media.pictures import MAX_GAP_SECONDS, Canvas, PictureClock
from proav.media.sound import Silence, SoundClock
from proav.media.tracks import (
    Tracks,
    choose_by_content,
    choose_tracks,
    loudness_of,
    note_others,
    programmes_of,
)

WHY_LOST = {
    "too_short": "holds {seconds:.2f} s from {begin:.2f} s on with {content}; "
    "expected at least {min_frames} frames",
    "no_sound": "has no sound from {begin:.2f} s to {end:.2f} s",
    "no_picture": "has no picture from {begin:.2f} s to {end:.2f} s",
    "gap": "has neither picture nor sound from {begin:.2f} s to {end:.2f} s",
    "other_tracks": "has packets of other tracks alone from {begin:.2f} s to {end:.2f} s; "
    "data.picture_track and data.sound_track choose the tracks",
    "truncated": "says that it holds picture or sound up to {end:.2f} s, but ends after {begin:.2f} s",
    "past_end": "ends after {begin:.2f} s, but was to be read up to {end:.2f} s",
}
"""{reason of a loss: its message}. The file's name is put in front."""

JOINABLE_FORMATS = ("mpegts", "mpeg")
"""Files of these formats stay readable when they are concatenated. So before a span of such a file is read,
all its packets are searched for joints."""
PROBED_FORMATS = ("matroska,webm", "mpegts", "mpeg")
"""Files of these formats do not state when a track begins. FFmpeg reads 5 s ahead to find out, and takes the
start of the file for a track that begins later."""
FAR_SECONDS = 1.0
"""A first picture that is later than its track's start by more than this is the start. Below it, pictures may
follow that are shown before the first."""
MAX_PAUSE_SECONDS = 6 * 3600.0
"""If the next picture is later than this, its time stamp counts as wrong: it may be a million years away.
Reading then ends with the picture before it."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class About:
    """What is known of a file so far.

    end_seconds: where it ends, by its header or by what was read, or where the requested span ends.
    picture_track, sound_track: the tracks that are read, as numbers among the file's tracks of that kind,
        from 0.
    note: a sentence for people about programmes and tracks that are not read.
    """

    end_seconds: float
    picture_track: int | None = None
    sound_track: int | None = None
    note: str = ""


@dataclass(frozen=True, eq=False)
class Segment:
    """Frames that can be used.

    start_seconds: within the file.
    video: uint8 [T, H, W, 3].
    audio: float32 [samples].
    cancelled: the result of `SoundClock.cancels` for the sound.
    """

    start_seconds: float
    video: np.ndarray
    audio: np.ndarray
    cancelled: bool


@dataclass(frozen=True)
class Lost:
    """A span of the file that cannot be used.

    end_seconds: None if unknown.
    reason: a short stable word.
    message: for people.
    """

    start_seconds: float
    end_seconds: float | None
    reason: str
    message: str


@dataclass(frozen=True)
class Request:
    """What to read of a file, and how.

    fps, sample_rate: of the segments, per second.
    height, width: of the frames, pixels.
    fit: "pad" or "crop", as in `pictures.Canvas`.
    segment_frames: frames in a whole segment; None: segments are as long as possible.
    start_seconds: where to begin.
    max_frames: how many frames to read; None: up to the end.
    wanted_from: this many frames are read first and not reported; max_frames counts from there.
    min_frames: shorter segments are lost as too_short.
    deadline_seconds, on_progress: as in `opening.Watch`.
    pictures_only: the file's sound is not decoded. Segments have silence, and the file's length and time 0
        are those of the pictures.
    picture_track, sound_track: numbers among the file's tracks of that kind, from 0; None: the main tracks.
    max_pixels: files with larger pictures are refused.
    """

    fps: int
    sample_rate: int
    height: int
    width: int
    fit: Literal["pad", "crop"] = "pad"
    segment_frames: int | None = None
    start_seconds: float = 0.0
    max_frames: int | None = None
    wanted_from: int = 0
    min_frames: int = 1
    deadline_seconds: float | None = None
    on_progress: Callable[[], None] | None = None
    pictures_only: bool = False
    picture_track: int | None = None
    sound_track: int | None = None
    max_pixels: int = MAX_PIXELS

    @property
    def asked_seconds(self) -> float | None:
        return None if self.max_frames is None else self.max_frames / self.fps


def read_parts(source: str | BinaryIO, request: Request) -> Iterator[About | Segment | Lost]:
    """Reads a file in parts: About, then segments and losses in order of time, then About again.

    About comes as soon as something is known, and again when more is known. Segments and losses cover the
    file, or the requested span, except for up to `end_slack_seconds` at the end of each stretch.
    Raises the errors of `container.read_segments`: at the end if the file has no segment, and at once if it
    cannot be read further.
    """
    start, asked = request.start_seconds, request.asked_seconds
    if not (0 <= start < float("inf") and (asked is None or asked > 0)):
        frames = "" if asked is None else f" for {request.max_frames} frames"
        said = f"{source}: cannot read from {start} s on{frames}; expected 0 <= start_seconds < end_seconds"
        raise MediaError("bad_span", said)
    watch = Watch(request.deadline_seconds, request.on_progress)
    with contextlib.ExitStack() as files:
        container, name = files.enter_context(opened(source, watch))
        end = start + asked if asked is not None else max(start, declared_seconds(container))
        yield About(end)
        programmes = programmes_of(source, container, watch)
        tracks = choose_tracks(
            container, name, programmes=programmes, picture_track=request.picture_track,
            sound_track=request.sound_track, pictures_only=request.pictures_only,
        )  # fmt: skip
        if len(tracks.candidates) > 1 and can_be_read_again(source):
            _listen(container, name, tracks, request, watch)
            files.close()
            container, name = files.enter_context(opened(source, watch))
        if start and container.format.name in JOINABLE_FORMATS and can_be_read_again(source):
            joined = _has_joints(container, tracks, name, watch, request.pictures_only)
            files.close()
            container, name = files.enter_context(opened(source, watch))
            if joined:  # the clock does not say where the span is, so the file is read from the beginning
                request = replace(
                    request, wanted_from=math.ceil(start * request.fps - 1e-6), start_seconds=0.0
                )
        starts = [start_time(stream) for stream in tracks.streams(container)]
        if request.pictures_only and container.format.name in PROBED_FORMATS and can_be_read_again(source):
            first = _first_picture(container, tracks, name, watch)
            if first is not None and first - (starts[0] or 0) > FAR_SECONDS:
                starts = [first]
            files.close()
            container, name = files.enter_context(opened(source, watch))
        about = About(end, *tracks.places(container), note_others(tracks, container, programmes))
        yield about
        for part in _Reader(container, name, tracks, request, watch, starts).parts():
            yield replace(about, end_seconds=part) if isinstance(part, float) else part


def _has_joints(container, tracks: Tracks, name: str, watch: Watch, alone: bool) -> bool:
    """Whether the file's clock starts anew somewhere. Nothing is decoded. Arguments as of Decoder."""
    decoder = Decoder(container, tracks.streams(container), name, watch, alone=alone)
    return any(isinstance(packet, Joint) for packet in decoder.packets())


def _first_picture(container, tracks: Tracks, name: str, watch: Watch) -> Fraction | None:
    """When the first picture is shown, in seconds of the file's clock; None if its packet does not say.

    Arguments as of Decoder.
    """
    packets = Decoder(container, tracks.streams(container), name, watch, alone=True).packets()
    first = next((packet for packet in packets if not isinstance(packet, Joint)), None)
    return None if first is None or first.pts is None else first.pts * first.time_base


def _listen(container, name: str, tracks: Tracks, request: Request, watch: Watch) -> None:
    """Chooses the sound track by the loudness of the tracks in the requested span.

    container, name: from `opened`.
    tracks: receives the choice.
    request: holds the span.
    watch: is notified of each packet.
    """
    first, end = (container.start_time or 0) / av.time_base + request.start_seconds, None
    if request.start_seconds:
        with contextlib.suppress(av.FFmpegError, OSError):
            container.seek(int(first * av.time_base), backward=True)
    if request.asked_seconds is not None:
        end = first + request.asked_seconds
    watch.start(name)
    choose_by_content(
        tracks, container, loudness_of(container, tracks.candidates, end_seconds=end, on_packet=watch.sign)
    )
    watch.check_storage()


class _Reader:
    """Reads chosen tracks of an opened file, one stretch after the other."""

    def __init__(
        self,
        container,
        name: str,
        tracks: Tracks,
        request: Request,
        watch: Watch,
        starts: list[Fraction | None],
    ) -> None:
        """container, name: from `opened`.
        tracks, request: what to read.
        watch: is notified of each packet.
        starts: when each of the tracks' streams begins, in seconds of the file's clock.
        """
        self.container, self.name, self.request, self.watch = container, name, request, watch
        self.streams = tracks.streams(container)
        self.video, self.audio = [*self.streams, None][:2]
        check_pixels(self.video, name, request.max_pixels)
        self.canvas = Canvas(
            height=request.height, width=request.width, fit=request.fit, pixel_aspect=pixel_aspect(self.video)
        )
        self.file_start = float(self._origin(starts))
        # where the stretch begins, in seconds on the file's clock
        self.clock = self.file_start + request.start_seconds
        self.base = 0  # the same as a frame; frame 0 is at start_seconds
        self.told = request.wanted_from  # up to this frame everything is reported, as a segment or as lost
        self.end_frame = None if request.max_frames is None else request.wanted_from + request.max_frames
        self.seconds = 0.0  # the longest time with both picture and sound in one stretch
        self.total_seconds = 0.0  # the sum over all stretches, each as long as the longer of its streams
        self.num_segments = self.num_cleaned = 0
        self.losses: list[Lost] = []  # losses before the first segment; they are reported with it
        self.decoder = Decoder(
            container, self.streams, name, watch, request.max_pixels, alone=request.pictures_only
        )
        self.content = "pictures" if self.audio is None else "picture and sound"

    def parts(self) -> Iterator[Segment | Lost | float]:
        """Yields segments and losses. The last value is a float: the end in seconds, as in `About`."""
        stretch = self._stretch()
        for kind, frame in self.decoder.frames_from(
            self.clock if self.request.start_seconds else None, self.file_start
        ):
            if kind == "joint":
                yield from self._take(self._end(stretch))
                reached = self.base + stretch.reached
                if self.end_frame is not None and reached >= self.end_frame:
                    break
                if frame.skipped_seconds:
                    reached = self._up_to_end(reached + round(frame.skipped_seconds * self.request.fps))
                    yield from self._lose(reached, "other_tracks")
                stretch = self._join(frame, reached)
                continue
            try:
                (stretch.pictures if kind == "video" else stretch.sound).push(frame)
            except (av.FFmpegError, ValueError) as error:  # a format that cannot be converted
                said = f"{self.name}: {kind} in the format {frame.format.name} cannot be converted ({error})"
                raise MediaError("decode_error", said) from error
            if pieces := stretch.ready():
                yield from self._take(pieces)
            if stretch.complete or stretch.pictures.broke_off:
                break
        if stretch.pictures.broke_off and self.audio is None:
            begin = self._time(self.base + stretch.pictures.num_frames)
            said = (
                f"{self.name} shows one picture for more than {MAX_STILL_SECONDS:g} s from {begin:.2f} s on"
            )
            raise MediaError("no_picture", f"{said}; ask for the time before that, or split the file there")
        yield from self._take(self._end(stretch))
        if self.num_cleaned:
            logger.warning(
                "%s: %d sound samples were not numbers and became silence", self.name, self.num_cleaned
            )
        yield from self._ending()

    def _origin(self, starts: list[Fraction | None]) -> Fraction:
        return origin(*[*starts, None][:2], Fraction(1, self.request.fps))

    def _up_to_end(self, frame: int) -> int:
        return frame if self.end_frame is None else min(frame, self.end_frame)

    def _stretch(self) -> Stretch:
        request = self.request
        rate = self.video.guessed_rate or self.video.average_rate or Fraction(25)
        pictures = PictureClock(
            self.canvas, fps=request.fps, start=self.clock, tick=float(self.video.time_base),
            default_duration=float(1 / rate),
            max_frames=None if self.end_frame is None else max(0, self.end_frame - self.base),
            max_still=MAX_STILL_SECONDS if self.audio is None else MAX_PAUSE_SECONDS,
        )  # fmt: skip
        sound = (
            Silence()
            if self.audio is None
            else SoundClock(sample_rate=request.sample_rate, start=self.clock, hole_seconds=PAUSE_SECONDS)
        )
        return Stretch(
            pictures, sound, fps=request.fps, sample_rate=request.sample_rate,
            segment_frames=request.segment_frames, min_frames=request.min_frames,
            first=max(0, request.wanted_from - self.base),
        )  # fmt: skip

    def _end(self, stretch: Stretch) -> Iterator[Cut | Loss]:
        if self.audio is None and self.decoder.other_sound_end is not None:
            most = stretch.pictures.seconds + MAX_STILL_SECONDS
            stretch.sound.end_seconds = min(most, self.decoder.other_sound_end - self.clock)
        try:
            yield from stretch.rest()
        except (av.FFmpegError, ValueError) as error:
            raise MediaError(
                "decode_error", f"{self.name}: the end of the file cannot be converted ({error})"
            ) from error
        self.num_cleaned += stretch.sound.num_cleaned
        self.seconds = max(self.seconds, min(stretch.pictures.seconds, stretch.sound.seconds))
        self.total_seconds += max(
            stretch.pictures.seconds, stretch.sound.seconds if self.audio is not None else 0.0
        )

    def _join(self, joint: Joint, reached: int) -> Stretch:
        """The stretch after a joint. It directly follows the previous one.

        If the clock has jumped ahead, the stretch begins later by as much.

        reached: the first frame after the joint if the clock has not jumped; frame 0 is at start_seconds.
        """
        starts = [joint.starts.get(stream.index) for stream in self.streams]
        clock = (
            float(self._origin([None if start is None else Fraction(start) for start in starts]))
            if joint.starts
            else self.file_start
        )
        self.base = max(reached, self.base + round((clock - self.clock) * self.request.fps))
        self.clock = clock
        return self._stretch()

    def _take(self, pieces: Iterator[Cut | Loss]) -> Iterator[Segment | Lost]:
        """Yields the pieces of a stretch as parts of the file."""
        for piece in pieces:
            first = self.base + piece.first
            end = self.base + piece.end if isinstance(piece, Loss) else first + len(piece.video)
            if first > self.told:
                yield from self._lose(first, "gap")
            if isinstance(piece, Loss):
                yield from self._lose(end, piece.reason)
            elif damage := self.decoder.damage():
                yield from self._lose(end, "decode_error", damage)
            else:
                yield from self.losses
                self.losses, self.told, self.num_segments = [], end, self.num_segments + 1
                with self.watch.off_the_clock():
                    yield Segment(self._time(first), piece.video, piece.audio, piece.cancelled)

    def _lose(self, end: int | float, reason: str, message: str = "") -> Iterator[Lost]:
        """Reports the frames before `end` that were not reported yet as lost.

        Before the first segment the loss is only noted. It is then reported with that segment.

        end: the first frame that is not lost.
        reason: a key of WHY_LOST, or decode_error.
        message: a sentence for people. If it is empty, the message of WHY_LOST is used.
        """
        if end <= self.told:
            return
        begin, stop = self._time(self.told), self._time(end)
        why = WHY_LOST.get(reason, "").format(
            begin=begin, end=stop, seconds=stop - begin, content=self.content,
            min_frames=self.request.min_frames,
        )  # fmt: skip
        lost = Lost(begin, stop, reason, message or f"{self.name} {why}")
        self.told = end
        if self.num_segments:
            yield lost
        else:
            self.losses.append(lost)

    def _time(self, frame: float) -> float:
        return self.request.start_seconds + frame / self.request.fps

    def _ending(self) -> Iterator[Lost | float]:
        """Reports the missing end of the file, or of the requested span, as lost; then yields that end.

        Raises MediaError if the file holds no segment.
        """
        request = self.request
        reached = self.told / request.fps
        declared = declared_seconds(self.container) - request.start_seconds
        asked, slack = (
            None if self.end_frame is None else self.end_frame / request.fps,
            end_slack_seconds(request.fps),
        )
        cut_short = asked is None and self.total_seconds < 0.5 * declared
        if self.num_segments == 0:
            yield self._time(0) + (max(declared, reached) if asked is None else asked)
            raise self._nothing_usable(declared if cut_short else None)
        own_ends = [declared_end(self.container, stream) for stream in self.streams]
        own_end = (
            declared
            if self.base or None in own_ends
            else max(own_ends) - self.file_start - request.start_seconds
        )
        end = declared if asked is None else min(declared, asked)
        if end > reached + slack:
            stopped = (
                self.decoder.stopped_by
                and f"{self.name} cannot be read beyond {self._time(self.told):.2f} s "
                f"({self.decoder.stopped_by})"
            )
            yield from self._lose(
                end * request.fps,
                "truncated" if stopped or own_end > reached + slack else "gap",
                stopped or "",
            )
        if asked is not None and asked > self.told / request.fps + slack:
            yield from self._lose(self.end_frame, "past_end")
        if self.decoder.has_later_tracks and asked is None:
            said = (
                f"{self.name} has tracks that begin in its middle, probably because recordings were joined; "
                "they are not read: split the file there"
            )
            yield Lost(self._time(self.told), None, "later_tracks", said)
        yield self._time(0) + (max(declared, self.told / request.fps) if asked is None else asked)

    def _nothing_usable(self, declared: float | None) -> MediaError:
        """The error for a file that could be opened but gave no clip."""
        name, request = self.name, self.request
        for lost in self.losses:
            if lost.reason == "decode_error":
                return MediaError(lost.reason, lost.message)
        for kind, what in (("video", "picture"), ("audio", "sound")):
            if self.decoder.num_frames.get(kind, 1) == 0 and not request.start_seconds:
                if self.decoder.num_packets[kind]:
                    return MediaError("decode_error", f"{name}: no {what} can be decoded")
                return MediaError(f"no_{kind}", f"{name} has a {what} track that holds nothing")
        longest = max(self.losses, key=lambda lost: lost.end_seconds - lost.start_seconds, default=None)
        if longest is not None and longest.end_seconds - longest.start_seconds > MAX_GAP_SECONDS:
            return MediaError(longest.reason, longest.message)
        where = f" from {request.start_seconds:g} s on" if request.start_seconds else ""
        if declared is not None:
            said = f"{name} says it holds {declared:.1f} s{where}"
            return MediaError(
                "truncated",
                f"{said}, but ends after {self.seconds:.2f} s; expected at least {request.min_frames} frames",
            )
        said = f"{name} holds {self.seconds:.2f} s{where} with {self.content}"
        return MediaError("too_short", f"{said}; expected at least {request.min_frames} frames")
