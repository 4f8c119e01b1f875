"""Clips in files: picture and sound read onto one clock in a single pass, and written as mp4 (PyAV).

A clip is T frames of H x W pixels, with the sound of exactly the same time. Mel images are in `melframes.py`,
the encoders in `muxing.py`, the storage of data sets in `proav/data/store/shards.py`.
"""

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, Literal

import av
import numpy as np

from proav import storage
from proav.errors import MediaError
from proav.media.demuxing import END_TIME_FORMATS, Decoder, declared_end, declared_seconds, start_time
from proav.media.joints import Joint
from proav.media.muxing import Muxer
from proav.media.opening import MAX_PIXELS, Watch, opened, read_head
from proav.media.segments import Request, Segment, read_parts
from proav.media.sound import SoundClock
from proav.media.tracks import main_track


@dataclass(frozen=True, eq=False)
class Clip:
    """Picture and sound of the same stretch of time.

    video: uint8 [T, H, W, 3], RGB.
    audio: float32 [T * sample_rate / fps], mono, in [-1, 1].
    fps: frames per second, a whole number.
    sample_rate: Hz, a whole number.
    Raises MediaError("bad_clip") for anything else.
    """

    video: np.ndarray
    audio: np.ndarray
    fps: int
    sample_rate: int

    def __post_init__(self) -> None:
        video, audio = self.video, self.audio
        if not (
            isinstance(video, np.ndarray)
            and video.dtype == np.uint8
            and video.ndim == 4
            and video.shape[-1] == 3
            and video.size
        ):
            raise MediaError(
                "bad_clip", f"a clip's video is {_describe(video)}; expected a uint8 numpy array [T, H, W, 3]"
            )
        if not (isinstance(audio, np.ndarray) and audio.dtype == np.float32 and audio.ndim == 1):
            raise MediaError(
                "bad_clip",
                f"a clip's audio is {_describe(audio)}; expected a float32 numpy array [samples], mono",
            )
        if not (
            isinstance(self.fps, int)
            and isinstance(self.sample_rate, int)
            and self.fps > 0
            and self.sample_rate > 0
        ):
            raise MediaError(
                "bad_clip",
                f"fps={self.fps!r}, sample_rate={self.sample_rate!r}: expected positive whole numbers",
            )
        expected = round(len(video) * self.sample_rate / self.fps)
        if len(audio) != expected:
            rates = f"{self.fps} fps and {self.sample_rate} Hz"
            raise MediaError(
                "bad_clip",
                f"{len(audio)} sound samples for {len(video)} frames; expected {expected} at {rates}",
            )
        if not np.abs(audio).max(initial=0.0) <= 1.0:  # also false if a sample is not a number
            raise MediaError(
                "bad_clip",
                "a clip's audio leaves [-1, 1] or is not finite; divide it by its largest magnitude",
            )

    @property
    def seconds(self) -> float:
        return len(self.video) / self.fps

    def save(self, path: str) -> None:
        """Writes an mp4; see `write_clip`."""
        write_clip(path, self)


CRF = 10
"""x264's quality. At the common value 18, 64x64 samples have only 37 dB and show a grid
(bench/train/coding.py).
"""
HEADERLESS_FORMATS = ("aac", "ac3", "eac3", "amr", "amrnb", "amrwb")
"""Sound formats that state no length: FFmpeg guesses one from the bit rate. It also does so for mp3 without
the header of its encoder, which states the delay of the encoder as well.
"""
MAX_MISSING_SOUND_SECONDS = 0.5
"""If sound ends this much earlier than its header says, it was cut off. Headers are rounded up to packets."""
PIPED_WAV_BYTES = 0x7FFF0000
"""A WAV file that was written to a pipe states this size or a larger one, since its size was unknown."""


def read_segments(
    source: str | BinaryIO,
    *,
    fps: int,
    sample_rate: int,
    height: int,
    width: int,
    fit: Literal["pad", "crop"] = "pad",
    segment_seconds: float,
    start_seconds: float = 0.0,
    end_seconds: float | None = None,
    min_frames: int = 1,
    deadline_seconds: float | None = None,
    on_progress: Callable[[], None] | None = None,
) -> Iterator[tuple[float, Clip]]:
    """Cuts a file into consecutive clips, in one decoding pass with bounded memory.

    Returns an iterator of (start in seconds, Clip). A clip is at most `segment_seconds` long. It holds whole
    frames only, with exactly their sound. `segments.read_parts` also reports what is left out.

    Picture and sound share one clock:
    - Time 0 is the start of the file's pictures. If the sound starts a frame or more earlier, time 0 is the
      start of the sound.
    - Frame k of a clip is the picture shown k / fps after the clip's start. A picture is shown until the next
      one.
    - If pictures start late, the first one is shown from time 0 on. If they start more than 30 s late, they
      are missing until then.
    - If sound starts late or pauses, silence fills the time. If it pauses for more than 30 s, it is missing
      during the pause.
    - No clip spans a pause of both streams.
    - The last clip ends with the pictures, or with the sound if that ends more than 0.1 s earlier. If the
      file has shown stills before, its last picture is held as long as the sound.
    - If the file's clock starts anew, a new clip begins. Its time continues after the previous clip.

    Picture and sound come from one programme. If its main sound track is silent in the part that is read,
    the loudest track is used if it is not silent.

    source: a path, local or remote, or an open binary file.
    fps: frames per second of the clips.
    sample_rate: of the clips' sound, Hz.
    height, width: of the clips' frames, pixels.
    fit: "pad" or "crop", as in `pictures.Canvas`.
    segment_seconds: longest clip.
    start_seconds, end_seconds: the part to read. It is found by a seek, not by decoding from the start.
    min_frames: remainders with fewer frames are left out.
    deadline_seconds: time that this function may spend. The caller's own time is not counted.
    on_progress: called at each packet that is read, as a sign of life.

    Raises StorageUnavailable, and MediaError with reason not_found, empty_file, unreadable, no_video,
    no_audio, unsupported_codec, too_large, bad_rate, bad_span, bad_clock, decode_error, truncated (ends long
    before its header says), too_short (holds no segment of min_frames), no_sound or no_picture (for more than
    30 s), or timeout.
    """
    request = Request(
        fps=fps, sample_rate=sample_rate, height=height, width=width, fit=fit,
        segment_frames=frames_in(segment_seconds, fps),
        start_seconds=start_seconds,
        max_frames=None if end_seconds is None else max(0, frames_in(end_seconds - start_seconds, fps)),
        min_frames=min_frames, deadline_seconds=deadline_seconds, on_progress=on_progress,
    )  # fmt: skip
    assert request.segment_frames >= 1, (segment_seconds, fps)
    return _clips(source, request)


def frames_in(seconds: float, fps: int) -> int:
    """Number of whole frames in a time, with tolerance for rounding errors."""
    return int(seconds * fps + 1e-6)


def _clips(source: str | BinaryIO, request: Request) -> Iterator[tuple[float, Clip]]:
    for part in read_parts(source, request):
        if isinstance(part, Segment):
            yield part.start_seconds, Clip(part.video, part.audio, request.fps, request.sample_rate)


def read_clip(
    source: str | BinaryIO,
    *,
    fps: int,
    sample_rate: int,
    height: int,
    width: int,
    fit: Literal["pad", "crop"] = "pad",
    start_seconds: float = 0.0,
    num_frames: int | None = None,
    min_frames: int | None = None,
    deadline_seconds: float | None = None,
    on_progress: Callable[[], None] | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Clip:
    """Reads one clip: `num_frames` frames (None: all) from `start_seconds` on, with their sound.

    The clock, the other arguments and the errors are those of `read_segments`.
    min_frames: a file that holds fewer is refused; None: fewer than `num_frames`.
    max_pixels: files with larger pictures (rows x columns) are refused.
    """
    request = Request(
        fps=fps, sample_rate=sample_rate, height=height, width=width, fit=fit,
        segment_frames=num_frames, start_seconds=start_seconds,
        max_frames=num_frames, min_frames=min_frames or num_frames or 1,
        deadline_seconds=deadline_seconds, on_progress=on_progress, max_pixels=max_pixels,
    )  # fmt: skip
    return next(_clips(source, request))[1]


def read_pictures(
    source: str | BinaryIO,
    *,
    fps: int,
    height: int,
    width: int,
    fit: Literal["pad", "crop"] = "pad",
    start_seconds: float = 0.0,
    num_frames: int | None = None,
    deadline_seconds: float | None = None,
    on_progress: Callable[[], None] | None = None,
    max_pixels: int = MAX_PIXELS,
) -> np.ndarray:
    """The pictures of a file, with or without sound: uint8 [T, H, W, 3].

    Sound is not decoded: it may be missing, shorter or damaged. A clock that starts anew ends the pictures.
    The last picture is held as in `read_segments`, for at most 10 minutes.

    Time 0 is the start of the pictures. If FFmpeg finds no start, as in Matroska and transport streams whose
    sound begins 5 s or more earlier, a file that can be read twice is searched for its first picture.

    num_frames: how many frames are read; None: all. The other arguments are those of `read_clip`.
    Raises MediaError like `read_segments`: no_picture if one picture is followed by none for more than 10
    minutes, too_short for fewer than `num_frames`.
    """
    request = Request(
        fps=fps, sample_rate=fps, height=height, width=width, fit=fit,
        segment_frames=num_frames, start_seconds=start_seconds,
        max_frames=num_frames, min_frames=num_frames or 1,
        deadline_seconds=deadline_seconds, on_progress=on_progress, pictures_only=True,
        max_pixels=max_pixels,
    )  # fmt: skip
    return next(part.video for part in read_parts(source, request) if isinstance(part, Segment))


def read_sound(
    source: str | BinaryIO,
    *,
    sample_rate: int,
    max_seconds: float = float("inf"),
    deadline_seconds: float | None = None,
    on_progress: Callable[[], None] | None = None,
) -> np.ndarray:
    """The sound of a file, with or without pictures: float32 [samples], mono, in [-1, 1].

    A pause of more than 30 s ends the sound, and so does a clock that starts anew.

    source: a path, local or remote, or an open binary file.
    sample_rate: of the result, Hz.
    max_seconds: at most this much sound is returned, from its beginning.
    deadline_seconds: time that this function may spend.
    on_progress: called at each packet that is read, as a sign of life.
    Raises MediaError like `read_segments`.
    """
    watch = Watch(deadline_seconds, on_progress)
    with opened(source, watch) as (container, name):
        stream = main_track(container, "audio", name)
        clock = SoundClock(sample_rate=sample_rate, start=float(start_time(stream) or 0))
        decoder = Decoder(container, [stream], name, watch)
        to_the_end = _decode_sound(decoder, clock, max_seconds, name)
        if damage := decoder.damage():
            raise MediaError("decode_error", damage)
        if not clock.num_samples:
            if decoder.num_packets["audio"] and not decoder.num_frames["audio"]:
                raise MediaError("decode_error", f"{name}: no sound can be decoded")
            raise MediaError("no_audio", f"{name} has a sound track that holds no sound")
        if to_the_end:
            _check_sound_end(container, stream, decoder.stopped_by, name, clock.seconds, watch)
        seconds = min([max_seconds, *(begin for begin, _ in clock.holes)])
        return clock.take(0, int(min(clock.num_samples, seconds * sample_rate)))


def _decode_sound(decoder: Decoder, clock: SoundClock, max_seconds: float, name: str) -> bool:
    """Fills the clock. Returns whether the sound ended with the file.

    Otherwise it ended with `max_seconds`, with a pause or with a joint.

    name: of the file, for messages.
    """
    ended = True
    for kind, frame in decoder.frames():
        if kind == "joint":
            if not decoder.num_frames["audio"]:
                continue  # the file begins with pictures alone
            ended = False
            break
        try:
            clock.push(frame)
        except (av.FFmpegError, ValueError) as error:
            said = f"{name}: audio in the format {frame.format.name} cannot be converted ({error})"
            raise MediaError("decode_error", said) from error
        if clock.seconds >= max_seconds or clock.holes:
            ended = False
            break
    try:
        clock.finish()
    except (av.FFmpegError, ValueError) as error:
        raise MediaError(
            "decode_error", f"{name}: the end of the sound cannot be converted ({error})"
        ) from error
    return ended


def _check_sound_end(
    container, stream, stopped_by: str | None, name: str, seconds: float, watch: Watch
) -> None:
    """Raises MediaError("truncated") if sound ends long before its header says, or if reading it failed.

    container, stream: of the sound, read to the end.
    stopped_by: as `Decoder.stopped_by`.
    name: of the file, for messages.
    seconds: length of the sound that was read.
    watch: has the open file.
    """
    stated = _stated_sound_seconds(container, stream, seconds, watch)
    if stated is not None and stated > seconds + MAX_MISSING_SOUND_SECONDS:
        why = f" ({stopped_by})" if stopped_by else ""
        said = f"{name} says that it holds {stated:.2f} s of sound, but ends after {seconds:.2f} s{why}"
        raise MediaError("truncated", said)
    if stated is None and stopped_by:
        raise MediaError("truncated", f"{name} cannot be read beyond {seconds:.2f} s ({stopped_by})")


def _stated_sound_seconds(container, stream, seconds: float, watch: Watch) -> float | None:
    """Length of the sound by the file's header; None if it states none. The other arguments are as above."""
    form, start = container.format.name, start_time(stream) or 0
    if form in HEADERLESS_FORMATS or (form == "mp3" and not start):
        return None
    if form == "wav":  # FFmpeg takes the length of a WAV file from its size
        missing, bit_rate = _missing_wav_bytes(watch), stream.codec_context.bit_rate
        return None if missing is None or not bit_rate else seconds + missing * 8 / bit_rate
    end = None if form == "asf" else declared_end(container, stream)  # ASF states the end of the longest
    alone = sum(other.type in ("video", "audio") for other in container.streams) == 1
    if end is None and alone and container.duration:
        return declared_seconds(container)
    return None if end is None else end - float(start)


def _missing_wav_bytes(watch: Watch) -> int | None:
    """Bytes that a WAV file should have beyond its end; None if it does not say, as one from a pipe."""
    file = watch.file
    if not file.seekable():
        return None
    head = read_head(8, watch)
    place, size = file.tell(), file.seek(0, os.SEEK_END)
    file.seek(place)
    stated = int.from_bytes(head[4:8], "little")
    return max(0, stated + 8 - size) if head[:4] == b"RIFF" and 0 < stated < PIPED_WAV_BYTES else None


def probe_seconds(source: str | BinaryIO) -> float:
    """Length of a file's pictures by its header, in seconds.

    If the header states none, the times of all packets are read. Nothing is decoded. 0 if the file cannot be
    opened or has no times. Raises StorageUnavailable.
    """
    try:
        watch = Watch()
        with opened(source, watch) as (container, name):
            stream = main_track(container, "video", name)
            seconds, end = declared_seconds(container), declared_end(container, stream)
            if container.format.name not in END_TIME_FORMATS and stream.duration is not None:
                seconds = float(stream.duration * stream.time_base)
            elif seconds and end:  # the pictures may end before the sound
                seconds = min(seconds, end)
            return seconds or _measured_seconds(Decoder(container, [stream], name, watch), stream)
    except MediaError:
        return 0.0


def _measured_seconds(decoder: Decoder, stream) -> float:
    """From the first picture to the end of the last, by the times of the packets; 0 if they have none."""
    times = [
        packet.pts * packet.time_base
        for packet in decoder.packets()
        if not isinstance(packet, Joint) and packet.pts is not None
    ]
    rate = stream.guessed_rate or stream.average_rate or 25
    return float(max(times) - min(times) + 1 / rate) if times else 0.0


def write_clip(path: str, clip: Clip, *, crf: int = CRF) -> None:
    """Writes an mp4 (H.264, AAC) under a temporary name and moves it to `path`, local or remote.

    crf: x264's quality, 0 (lossless) .. 51.
    Raises MediaError("not_writable") if the format cannot hold the clip's size or sample rate.
    """
    write_clips(path, [clip], crf=crf)


def write_clips(path: str, clips: Iterable[Clip], *, crf: int = CRF) -> None:
    """Writes consecutive clips as one mp4, like `write_clip`. Only one of them at a time is in memory.

    The file is the same however the time is cut into clips.

    clips: at least one; all of one size and with the same rates, else MediaError("bad_clip").
    """
    with ClipWriter(crf=crf) as writer:
        for clip in clips:
            writer.add(clip)
        writer.save(path)


def encode_clip(clip: Clip, *, crf: int = CRF) -> bytes:
    """The bytes of `clip` as mp4: H.264 4:2:0 BT.709 with AAC, the index in front.

    The edit list compensates the encoder's delay. The same clip gives the same bytes (one encoding thread).
    """
    with ClipWriter(crf=crf) as writer:
        writer.add(clip)
        with writer.finished() as file:
            return file.read()


class ClipWriter:
    """An mp4 as `write_clips` makes it, from clips that arrive one by one. Several writers may be open at a
    time.

    The mp4 is written to a temporary local file, since FFmpeg must read it again to move the index to the
    front. The end of the `with` block deletes that file.
    """

    def __init__(self, *, crf: int = CRF) -> None:
        """crf: x264's quality, 0 (lossless) .. 51."""
        self._crf, self._muxer, self._form = crf, None, {}
        self._open = contextlib.ExitStack()

    def __enter__(self) -> "ClipWriter":
        folder = self._open.enter_context(tempfile.TemporaryDirectory(prefix="proav-"))
        self._path = os.path.join(folder, "clip.mp4")
        container = av.open(self._path, "w", format="mp4", options={"movflags": "+faststart"})
        self._container = self._open.enter_context(container)
        return self

    def __exit__(self, *_) -> None:
        self._open.close()

    def add(self, clip: Clip) -> None:
        """The next clip. Raises MediaError("bad_clip") if its size or rates differ from those of the clips
        before."""
        form = _form(clip)
        if self._muxer is None:
            self._form, self._muxer = form, Muxer(self._container, **form, crf=self._crf)
        elif form != self._form:
            raise MediaError("bad_clip", f"a clip has {form} behind one with {self._form}")
        self._muxer.add(clip.video, clip.audio)

    def save(self, path: str) -> None:
        """Moves the file to `path`, local or remote. Nothing can be added any more."""
        with self.finished() as file:
            storage.write_file(str(path), file)

    def finished(self) -> BinaryIO:
        """The finished file, open for reading. Nothing can be added any more."""
        assert self._muxer is not None, "expected at least one clip"
        self._muxer.finish()
        self._container.close()
        return open(self._path, "rb")


def _form(clip: Clip) -> dict[str, int]:
    _, height, width, _ = clip.video.shape
    return {"fps": clip.fps, "sample_rate": clip.sample_rate, "height": height, "width": width}


def _describe(value) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__
