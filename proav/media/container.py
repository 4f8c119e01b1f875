"""Clips in files: picture and sound read onto one clock in a single pass, and written as mp4 (PyAV).

Not for features or storage of data sets (`melframes.py`, `proav/data/shards.py`). Clips are what ProAV-DiT is trained on: T frames of
H x W with the sound of exactly the same time. Letters: T frames, H and W rows and columns.
"""

import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import BinaryIO, Literal

import av
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, VideoReformatter

from proav import storage
from proav.errors import MediaError
from proav.media.demuxing import (
    Decoder,
    check_pixels,
    choose_stream,
    opened,
    origin,
    pixel_aspect,
    start_time,
)
from proav.media.pictures import LAST_FRAME_SLACK, MAX_GAP_SECONDS, SCALING, Canvas, PictureClock
from proav.media.sound import Silence, SoundClock

MAX_SOUND_SHORTFALL = 0.1
"""Sound may end this much before the pictures, in seconds, and is filled with silence; if it ends earlier, the clip ends with it."""
AAC_RATES = (7350, 8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Clip:
    """Picture and sound of the same stretch of time.

    video: uint8 [T, H, W, 3], RGB. audio: float32 [T * sample_rate / fps], mono, in [-1, 1]. Raises MediaError("bad_clip") for anything else.
    """

    video: np.ndarray
    audio: np.ndarray
    fps: int
    sample_rate: int

    def __post_init__(self) -> None:
        video, audio = self.video, self.audio
        if not (isinstance(video, np.ndarray) and video.dtype == np.uint8 and video.ndim == 4 and video.shape[-1] == 3 and video.size):
            raise MediaError("bad_clip", f"a clip's video is {_describe(video)}; expected a uint8 numpy array [T, H, W, 3]")
        if not (isinstance(audio, np.ndarray) and audio.dtype == np.float32 and audio.ndim == 1):
            raise MediaError("bad_clip", f"a clip's audio is {_describe(audio)}; expected a float32 numpy array [samples], mono")
        if not (isinstance(self.fps, int) and isinstance(self.sample_rate, int) and self.fps > 0 and self.sample_rate > 0):
            raise MediaError("bad_clip", f"fps={self.fps!r}, sample_rate={self.sample_rate!r}: expected positive whole numbers")
        expected = round(len(video) * self.sample_rate / self.fps)
        if len(audio) != expected:
            rates = f"{self.fps} fps and {self.sample_rate} Hz"
            raise MediaError("bad_clip", f"{len(audio)} sound samples for {len(video)} frames; expected {expected} at {rates}")
        if not np.abs(audio).max(initial=0.0) <= 1.0:  # also false where a sample is not a number
            raise MediaError("bad_clip", "a clip's audio leaves [-1, 1] or is not finite; divide it by its largest magnitude")

    @property
    def seconds(self) -> float:
        return len(self.video) / self.fps

    def save(self, path: str) -> None:
        """Writes an mp4; see `write_clip`."""
        write_clip(path, self)


CRF = 10
"""x264's quality. 18, often used, leaves 37 dB of 64x64 samples and adds a grid (bench/coding.py)."""


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
    silent_ok: bool = False,
) -> Iterator[tuple[float, Clip]]:
    """(start in seconds, Clip) for one stretch of at most `segment_seconds` after the other, in one decoding pass with bounded memory.

    One clock: time 0 is where the file's pictures start, or its sound where that starts a frame or more earlier. Frame k of a clip is the
    picture shown k / fps after its start; the first picture is held where pictures start late, silence stands where sound starts late or
    pauses. The pictures' end is the end, unless the sound ends more than 0.1 s before it: then that is. A stream that pauses for more
    than 30 s has ended. Only whole frames, each with exactly its sound.

    source: a path, local or remote, or an open binary file. start_seconds, end_seconds: the part to read (a seek, not a decoding from the
    start). min_frames: shorter remainders are left out. deadline_seconds: time this function may spend, the caller's own not counted.
    on_progress: called at each packet that is read, as a sign of life. silent_ok: a file without a sound track gives silence instead of an
    error.
    Raises MediaError with reason not_found, empty_file, unreadable, no_video, no_audio, unsupported_codec,
    too_large, bad_rate, bad_span, decode_error, truncated (ends long before its header says), too_short
    (holds no segment of min_frames) or timeout.
    """
    assert segment_seconds * fps >= 1, (segment_seconds, fps)
    max_frames = None if end_seconds is None else max(0, int((end_seconds - start_seconds) * fps + 1e-6))
    geometry = {"fps": fps, "sample_rate": sample_rate, "height": height, "width": width, "fit": fit}
    segments = _segments(
        source, **geometry, segment_frames=int(segment_seconds * fps + 1e-6), start_seconds=start_seconds, max_frames=max_frames,
        min_frames=min_frames, deadline_seconds=deadline_seconds, on_progress=on_progress, silent_ok=silent_ok,
    )  # fmt: skip
    for first_frame, clip in segments:
        yield start_seconds + first_frame / fps, clip


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
    deadline_seconds: float | None = None,
    silent_ok: bool = False,
) -> Clip:
    """`num_frames` frames (None: all) from `start_seconds` on, with their sound; clock, arguments and errors as in `read_segments`."""
    geometry = {"fps": fps, "sample_rate": sample_rate, "height": height, "width": width, "fit": fit}
    segments = _segments(
        source, **geometry, segment_frames=num_frames, start_seconds=start_seconds, max_frames=num_frames,
        min_frames=num_frames or 1, deadline_seconds=deadline_seconds, on_progress=None, silent_ok=silent_ok,
    )  # fmt: skip
    return next(segments)[1]


def read_sound(source: str | BinaryIO, *, sample_rate: int, max_seconds: float = float("inf"), deadline_seconds: float | None = None) -> np.ndarray:
    """The sound of a file, with or without pictures, as float32 [samples], mono, in [-1, 1]: all of it, or its first `max_seconds`.

    Raises MediaError as `read_segments`.
    """
    with opened(source) as (container, name):
        stream = choose_stream(container, "audio", name)
        clock = SoundClock(sample_rate=sample_rate, start=float(start_time(stream) or 0))
        for _, frame in Decoder(container, [stream], name, deadline_seconds).frames():
            try:
                clock.push(frame)
            except (av.FFmpegError, ValueError) as error:
                said = f"{name}: audio in the format {frame.format.name} cannot be converted ({error})"
                raise MediaError("decode_error", said) from error
            if clock.seconds >= max_seconds:
                break
        clock.finish()
        if not clock.num_samples:
            raise MediaError("no_audio", f"{name} has a sound track that holds no sound")
        return clock.take(0, int(min(clock.num_samples, max_seconds * sample_rate)))


def probe_seconds(source: str | BinaryIO) -> float:
    """Length that the file's header states for its pictures, in seconds; 0 where it states none or cannot be opened. Nothing is decoded."""
    try:
        with opened(source) as (container, name):
            stream = choose_stream(container, "video", name)
            if stream.duration is not None:
                return float(stream.duration * stream.time_base)
            return 0.0 if container.duration is None else container.duration / av.time_base
    except MediaError:
        return 0.0


def write_clip(path: str, clip: Clip, *, crf: int = CRF) -> None:
    """Writes an mp4 (H.264, AAC) under a temporary name and moves it to `path`, local or remote.

    crf: x264's quality, 0 (lossless) .. 51. Raises MediaError("not_writable") for sizes or rates that the format cannot hold.
    """
    storage.write_bytes(str(path), encode_clip(clip, crf=crf))


def encode_clip(clip: Clip, *, crf: int = CRF) -> bytes:
    """The bytes of `clip` as mp4: H.264 4:2:0 BT.709 + AAC, index in front, the encoder's delay taken back by the edit list.

    The same clip gives the same bytes (one encoding thread).
    """
    _, height, width, _ = clip.video.shape
    if height % 2 or width % 2:
        raise MediaError("not_writable", f"H.264 cannot hold frames of {height}x{width}; expected even rows and columns")
    if clip.sample_rate not in AAC_RATES:
        raise MediaError("not_writable", f"AAC cannot hold sound at {clip.sample_rate} Hz; expected one of {', '.join(map(str, AAC_RATES))}")
    with tempfile.TemporaryDirectory(prefix="proav-") as folder:  # a real file: moving the index to the front reads it again
        file = os.path.join(folder, "clip.mp4")
        with av.open(file, "w", format="mp4", options={"movflags": "+faststart"}) as container:
            _mux(container, clip, crf)
        with open(file, "rb") as written:
            return written.read()


def _mux(container, clip: Clip, crf: int) -> None:
    _, height, width, _ = clip.video.shape
    options = {"crf": str(crf), "preset": "fast", "g": str(2 * clip.fps), "bf": "0"}  # looking ahead over B-frames, x264 reads unset memory
    video = container.add_stream("libx264", rate=clip.fps, options=options)
    video.width, video.height, video.pix_fmt = width, height, "yuv420p"
    context = video.codec_context
    context.thread_count, context.time_base = 1, Fraction(1, clip.fps)
    context.colorspace, context.color_range, context.color_primaries, context.color_trc = 1, ColorRange.MPEG, ColorPrimaries.BT709, ColorTrc.BT709
    audio = container.add_stream("aac", rate=clip.sample_rate, layout="mono")
    audio.bit_rate = min(128_000, 6 * clip.sample_rate)  # the format's limit is 6144 bits for 1024 samples
    reformatter = VideoReformatter()
    samples_per_packet = 1024
    next_sample = 0
    for index, pixels in enumerate(clip.video):
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        picture = reformatter.reformat(
            picture, format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG, interpolation=SCALING, threads=1
        )
        picture.pts, picture.time_base = index, Fraction(1, clip.fps)
        container.mux(video.encode(picture))
        last = index + 1 == len(clip.video)
        while next_sample < len(clip.audio) and (last or next_sample * clip.fps <= (index + 1) * clip.sample_rate):
            samples = clip.audio[None, next_sample : next_sample + samples_per_packet]
            sound = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), "fltp", "mono")
            sound.sample_rate, sound.pts, sound.time_base = clip.sample_rate, next_sample, Fraction(1, clip.sample_rate)
            container.mux(audio.encode(sound))
            next_sample += samples_per_packet
    container.mux(video.encode(None))
    container.mux(audio.encode(None))


def _segments(
    source, *, fps, sample_rate, height, width, fit, segment_frames, start_seconds, max_frames, min_frames, deadline_seconds, on_progress, silent_ok
) -> Iterator[tuple[int, Clip]]:
    """(number of the first frame, Clip); `segment_frames` None: everything in one clip."""
    if not (0 <= start_seconds < float("inf") and (max_frames is None or max_frames > 0)):
        frames = "" if max_frames is None else f" for {max_frames} frames"
        raise MediaError("bad_span", f"{source}: cannot read from {start_seconds} s on{frames}; expected 0 <= start_seconds < end_seconds")
    with opened(source) as (container, name):
        video = choose_stream(container, "video", name)
        audio = None if silent_ok and container.streams.best("audio") is None else choose_stream(container, "audio", name)
        check_pixels(video, name)
        file_start = origin(video, audio, Fraction(1, fps))
        start = float(file_start) + start_seconds
        canvas = Canvas(height=height, width=width, fit=fit, pixel_aspect=pixel_aspect(video))
        rate = video.guessed_rate or video.average_rate or Fraction(25)
        pictures = PictureClock(canvas, fps=fps, start=start, tick=float(video.time_base), max_frames=max_frames, default_duration=float(1 / rate))
        sound = SoundClock(sample_rate=sample_rate, start=start) if audio is not None else Silence()
        decoder = Decoder(container, [video, audio] if audio is not None else [video], name, deadline_seconds, on_progress)
        cutter = _Cutter(pictures, sound, fps, sample_rate, segment_frames, min_frames)
        for kind, frame in decoder.frames_from(start if start_seconds > 0 else None, float(file_start)):
            try:
                (pictures if kind == "video" else sound).push(frame)
            except (av.FFmpegError, ValueError) as error:  # a pixel or sample format that cannot be converted
                raise MediaError("decode_error", f"{name}: {kind} in the format {frame.format.name} cannot be converted ({error})") from error
            for segment in cutter.ready():
                decoder.check_damage()
                with decoder.off_the_clock():
                    yield segment
            if cutter.complete or cutter.stalled:
                break
        try:
            cutter.finish()
        except (av.FFmpegError, ValueError) as error:
            raise MediaError("decode_error", f"{name}: the end of the file cannot be converted ({error})") from error
        for segment in cutter.rest():
            decoder.check_damage()
            with decoder.off_the_clock():
                yield segment
        if sound.num_cleaned:
            logger.warning("%s: %d sound samples were not numbers and became silence", name, sound.num_cleaned)
        declared = (container.duration or 0) / av.time_base - start_seconds
        longest = max(pictures.seconds, sound.seconds if audio is not None else 0.0)
        cut_short = max_frames is None and longest < 0.5 * declared
        if cutter.num_segments == 0:
            raise _nothing_usable(name, decoder, pictures, sound, start_seconds, min_frames, declared if cut_short else None)
        if decoder.stopped_by or cut_short:
            logger.warning("%s: read %.1f s of %.1f s (%s)", name, longest, declared, decoder.stopped_by or "the file ends early")


class _Cutter:
    """Cuts what two clocks have finished into clips of at most `segment_frames` frames."""

    def __init__(self, pictures, sound, fps: int, sample_rate: int, segment_frames: int | None, min_frames: int) -> None:
        self._pictures, self._sound, self._fps, self._sample_rate = pictures, sound, fps, sample_rate
        self._segment_frames, self._min_frames = segment_frames, min_frames
        self._next_frame = 0
        self.num_segments = 0

    @property
    def complete(self) -> bool:
        """All that was asked for has been read."""
        return self._pictures.full and self._sound.seconds >= self._pictures.seconds

    @property
    def stalled(self) -> bool:
        """One stream has ended or paused for so long that it counts as ended."""
        if self._pictures.broke_off or self._sound.broke_off:
            return True
        return self._sound.seconds < float("inf") and abs(self._pictures.seconds - self._sound.seconds) > MAX_GAP_SECONDS and not self._pictures.full

    def ready(self) -> Iterator[tuple[int, Clip]]:
        """(first frame, Clip) of segments that both streams have passed."""
        while self._segment_frames is not None:
            end = self._next_frame + self._segment_frames
            if self._pictures.num_frames < end or self._sound.seconds < end / self._fps:
                return
            yield self._cut(self._segment_frames)

    def finish(self) -> None:
        """The file has ended, or all that was asked for has been read."""
        self._pictures.finish()
        self._sound.finish()

    def rest(self) -> Iterator[tuple[int, Clip]]:
        """(first frame, Clip) of what is left then."""
        total = self._pictures.num_frames
        if self._sound.seconds < total / self._fps - MAX_SOUND_SHORTFALL:
            total = int(self._sound.seconds * self._fps + LAST_FRAME_SLACK)
        while (left := total - self._next_frame) >= max(1, self._min_frames):
            yield self._cut(min(left, self._segment_frames or left))

    def _cut(self, count: int) -> tuple[int, Clip]:
        first = self._next_frame
        first_sample, num_samples = round(first * self._sample_rate / self._fps), round(count * self._sample_rate / self._fps)
        video, audio = self._pictures.take(count), self._sound.take(first_sample, num_samples)
        self._next_frame += count
        self.num_segments += 1
        return first, Clip(video, audio, self._fps, self._sample_rate)


def _nothing_usable(name, decoder, pictures, sound, start_seconds, min_frames, declared) -> MediaError:
    """Why a file that opened gave no clip."""
    for kind, what in (("video", "picture"), ("audio", "sound")):
        if decoder.num_frames.get(kind, 1) == 0 and not start_seconds:
            if decoder.num_packets[kind]:
                return MediaError("decode_error", f"{name}: no {what} can be decoded")
            return MediaError(f"no_{kind}", f"{name} has a {what} track that holds nothing")
    seconds = min(pictures.seconds, sound.seconds)
    where = f" from {start_seconds:g} s on" if start_seconds else ""
    if declared is not None:
        said = f"{name} says it holds {declared:.1f} s{where}"
        return MediaError("truncated", f"{said}, but ends after {seconds:.2f} s; expected at least {min_frames} frames")
    return MediaError("too_short", f"{name} holds {seconds:.2f} s{where} with picture and sound; expected at least {min_frames} frames")


def _describe(value) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__
