"""Decoded pictures -> RGB frames of one size (`Canvas`) at the times of a regular clock (`PictureClock`).

Pictures are chosen by their time stamps, never by counting. Files are read in `segments.py`, sound is in
`sound.py`. Letters: H and W rows and columns.
"""

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import av
import numpy as np
from av.sidedata.sidedata import Type as SideDataType
from av.video.reformatter import Colorspace, Interpolation, VideoReformatter

from proav.media.interlacing import Deinterlacer
from proav.media.tone_mapping import HLG, PQ, to_standard_range

SCALING = Interpolation.BICUBIC | Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP
"""Bicubic with chroma at full resolution. It costs 0.15 ms a frame more than the default. On coloured edges
it is 2.5 times closer to a float reference."""
MAX_GAP_SECONDS = 30.0
"""A longer pause of the sound is counted as missing sound. If the first picture comes later than this, the
pictures before it are counted as missing. Shorter pauses are filled with silence, or with the first picture.
"""
STILL_SECONDS = 1.0
"""If a file has shown one picture for longer than this, we assume that its writer stores a picture only when
the picture changes."""
UNSEEN_DURATION = 2 / 3
"""If the stated duration of the last picture is less than this share of the shortest distance between two
pictures, FFmpeg has guessed it. The file then states no duration for the picture."""
MIN_TOLERANCE, MAX_TOLERANCE = 1e-6, 5e-4
"""Limits, in seconds, of the tolerance for time stamps. A time stamp is rounded to a tick of its container.
So it may be off by half a tick. A coarse tick (AVI counts frames) would allow half a frame, which is too
much."""
LAST_FRAME_SLACK = 0.1
"""The last frame of a clip may lack this share of its time: millisecond time stamps round a stream's end."""
ROTATED = (False, False, False), (True, True, False), (False, True, True), (True, False, True)
"""(transposed, rows flipped, columns flipped) after 0, 1, 2 and 3 quarter turns counterclockwise."""
UNSPECIFIED = 2
"""FFmpeg's AVCOL_SPC_UNSPECIFIED: the file does not say which matrix made its YUV."""


@dataclass(frozen=True)
class _Drawing:
    """How pictures of one size and format are drawn onto a canvas."""

    rows: int
    columns: int
    cropper: av.filter.Graph | None
    format: str
    matrix: Colorspace | None
    transfer: int | None
    """PQ or HLG if the picture is to be tone-mapped, else None."""


class Canvas:
    """Draws decoded pictures as uint8 [H, W, 3], RGB: upright, with square pixels, scaled, padded or cropped.

    Transparency is drawn on black. High dynamic range (PQ, HLG) is tone-mapped. Untagged pictures of more
    than 576 rows are read as BT.709, others as BT.601, as players do.

    height, width: of the canvas, pixels.
    fit: "pad" keeps the whole picture between black bars, "crop" keeps the centre.
    pixel_aspect: width divided by height of the pictures' pixels.
    """

    def __init__(
        self, *, height: int, width: int, fit: Literal["pad", "crop"], pixel_aspect: Fraction = Fraction(1)
    ) -> None:
        assert fit in ("pad", "crop"), fit
        self.height, self.width, self.fit = height, width, fit
        self.pixel_aspect = pixel_aspect
        self._reformatter = VideoReformatter()
        self._drawings: dict[tuple, _Drawing] = {}

    def draw(self, frame: av.VideoFrame) -> np.ndarray:
        transposed, flip_rows, flip_columns = _orientation(frame)
        kind = frame.width, frame.height, frame.format.name, frame.colorspace, frame.color_trc, transposed
        if kind not in self._drawings:
            self._drawings[kind] = self._plan(frame, transposed)
        picture = self._scale(frame, self._drawings[kind])
        picture = picture.swapaxes(0, 1) if transposed else picture
        picture = picture[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]
        if picture.shape[:2] == (self.height, self.width):
            return np.ascontiguousarray(picture)
        canvas = np.zeros((self.height, self.width, 3), np.uint8)
        top, left = (self.height - picture.shape[0]) // 2, (self.width - picture.shape[1]) // 2
        canvas[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
        return canvas

    def _plan(self, frame: av.VideoFrame, transposed: bool) -> _Drawing:
        height, width = (self.width, self.height) if transposed else (self.height, self.width)
        aspect = Fraction(frame.width, frame.height) * self.pixel_aspect
        cropper = None
        if self.fit == "pad":
            # rows of the whole picture inside the canvas
            whole = min(Fraction(width) / aspect, Fraction(height))
            height, width = _between(round(whole), 1, height), _between(round(whole * aspect), 1, width)
        else:
            cropper = _centre_cropper(frame, Fraction(width, height) / self.pixel_aspect)
        has_alpha = any(component.is_alpha for component in frame.format.components)
        high_range = frame.color_trc in (PQ, HLG)
        untagged = Colorspace.BT2020 if high_range else Colorspace.ITU709 if frame.height > 576 else None
        return _Drawing(
            rows=height,
            columns=width,
            cropper=cropper,
            format=("rgba64le" if has_alpha else "rgb48le")
            if high_range
            else ("rgba" if has_alpha else "rgb24"),
            matrix=untagged if frame.colorspace == UNSPECIFIED else None,
            transfer=frame.color_trc if high_range else None,
        )

    def _scale(self, frame: av.VideoFrame, drawing: _Drawing) -> np.ndarray:
        if drawing.cropper is not None:
            drawing.cropper.vpush(frame)
            frame = drawing.cropper.vpull()
        scaled = self._reformatter.reformat(
            frame,
            drawing.columns,
            drawing.rows,
            drawing.format,
            src_colorspace=drawing.matrix,
            interpolation=SCALING,
            threads=1,
        ).to_ndarray()
        picture = scaled[..., :3]
        if drawing.transfer is not None:
            picture = to_standard_range(picture, drawing.transfer)
        if scaled.shape[-1] == 4:
            opacity = scaled[..., 3:].astype(np.float32) / np.iinfo(scaled.dtype).max
            picture = np.round(picture * opacity).astype(np.uint8)
        return picture


class PictureClock:
    """Turns decoded pictures into frames 0, 1, 2 ... of a regular clock.

    Frame k is the picture shown at start + k / fps. This is the last picture whose time stamp is not later,
    or the first picture if there is none. Interlaced pictures are deinterlaced.

    `frames` holds the finished frames that are not yet taken. `late` is how long after the start the first
    picture comes, in seconds. `pauses` are stretches of more than STILL_SECONDS, [from, to] in seconds after
    the start. In a pause, a picture is shown beyond the usual duration, or none has come yet.
    """

    def __init__(
        self,
        canvas: Canvas,
        *,
        fps: int,
        start: float,
        tick: float,
        max_frames: int | None,
        default_duration: float,
        max_still: float = float("inf"),
    ) -> None:
        """canvas: draws the frames.
        fps: frames per second.
        start: of frame 0, seconds of the file's clock.
        tick: of the file's time stamps, seconds.
        max_frames: most frames that are made; None: no limit.
        default_duration: of a picture, in seconds, if the file does not say.
        max_still: seconds. If a picture is shown for longer, it is the last one, and `broke_off` is set.
        """
        self.canvas, self.fps, self.start, self.max_frames, self.max_still = (
            canvas,
            fps,
            start,
            max_frames,
            max_still,
        )
        self.frames: list[np.ndarray | None] = []
        self.num_frames = 0
        self.broke_off = False
        self.pauses: list[tuple[float, float]] = []
        self.late = 0.0
        self._has_stills = False
        # stated duration of the last picture; shortest distance of two pictures
        self._duration = self._least = 0.0
        self._deinterlacer = Deinterlacer()
        self._tick = tick
        self._tolerance = max(MIN_TOLERANCE, min(tick / 2, MAX_TOLERANCE))
        self._interval = self._usual = default_duration
        self._shown: av.VideoFrame | None = None
        self._drawn: np.ndarray | None = None
        self._time: float | None = None

    @property
    def seconds(self) -> float:
        """Time covered by finished frames."""
        return self.num_frames / self.fps

    @property
    def full(self) -> bool:
        return self.max_frames is not None and self.num_frames >= self.max_frames

    def push(self, frame: av.VideoFrame) -> None:
        """Takes the next picture in display order.

        In a damaged stream a picture may be earlier than the one before it. It is left out.
        """
        self._duration = frame.duration * self._tick
        for picture in self._deinterlacer.push(frame):
            self._show(picture)

    def finish(self, sound_seconds: float) -> None:
        """Finishes the frames at the end of the stream: the last picture stays for its own duration.

        If the file does not state its duration, or has shown stills before, the last picture stays as long as
        the sound.

        sound_seconds: length of the sound after the start; infinite if there is none.
        """
        for picture in self._deinterlacer.finish():
            self._show(picture)
        if self._shown is None:
            return
        sound_end = self.start + sound_seconds if sound_seconds < float("inf") else self._time
        end = min(self._next_time(), max(self._time + MAX_GAP_SECONDS, sound_end))
        if self._has_stills or self._duration < UNSEEN_DURATION * self._least or not self._duration:
            end = max(end, sound_end)
        self._finish_frames(int((end - self.start) * self.fps + LAST_FRAME_SLACK))

    def hold_until(self, seconds: float) -> None:
        """Finishes the frames up to this time, in seconds after the start: no more pictures come before it.

        The picture that is shown stays. If none has come in MAX_GAP_SECONDS, the frames are missing (None).
        Up to then nothing is finished, because the decoder may still hold the picture that will be shown.
        """
        if self._shown is None:
            if seconds <= MAX_GAP_SECONDS:
                return
            self.late = seconds
        self._finish_frames(int(seconds * self.fps + 1e-6))

    def take(self, count: int) -> np.ndarray:
        """The next `count` frames, uint8 [count, H, W, 3]."""
        return np.stack(self.skip(count))

    def skip(self, count: int) -> list[np.ndarray | None]:
        """Takes out the next `count` frames; None stands for a missing frame."""
        taken, self.frames = self.frames[:count], self.frames[count:]
        return taken

    def _show(self, frame: av.VideoFrame) -> None:
        time = frame.time if frame.time is not None else self._next_time()
        if self._time is None:
            self._shown = frame  # shown from the start of the clip on, also before its own time
            self.late = time - self.start
            if self.late > STILL_SECONDS:
                self.pauses.append((0.0, self.late))
        elif time < self._time:
            return
        elif time - max(self._time, self.start) > self.max_still:
            self.broke_off = True
            return
        else:
            self._has_stills |= time - self._time > STILL_SECONDS + self._tolerance
            if time - self._time - self._usual > STILL_SECONDS:
                self.pauses.append((self._time + self._usual - self.start, time - self.start))
            self._interval = time - self._time or self._interval
            self._least = min(self._least or self._interval, self._interval)
        while not self.full and self.start + self.num_frames / self.fps + self._tolerance < time:
            self._finish_frame()
        self._shown, self._drawn, self._time = frame, None, time

    def _next_time(self) -> float:
        """When the shown picture ends: after its stated duration.

        Without a stated duration, it is shown for as long as the picture before it.
        """
        if self._shown is None:
            return self.start
        return self._time + (float(self._shown.duration * self._shown.time_base) or self._interval)

    def _finish_frames(self, whole: int) -> None:
        while self.num_frames < whole and not self.full:
            self._finish_frame()

    def _finish_frame(self) -> None:
        if self._drawn is None and self._shown is not None:
            self._drawn = self.canvas.draw(self._shown)
        self.frames.append(self._drawn)
        self.num_frames += 1


def _centre_cropper(frame: av.VideoFrame, aspect: Fraction) -> av.filter.Graph | None:
    """A filter that cuts out the largest centred part of a picture with columns / rows = `aspect`.

    None if that is the whole picture.
    """
    columns = _between(round(frame.height * aspect), 1, frame.width)
    rows = _between(round(frame.width / aspect), 1, frame.height)
    if (rows, columns) == (frame.height, frame.width):
        return None
    graph = av.filter.Graph()
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format.name, time_base=Fraction(1, 1000)
    )
    graph.link_nodes(source, graph.add("crop", f"{columns}:{rows}"), graph.add("buffersink")).configure()
    return graph


def _orientation(frame: av.VideoFrame) -> tuple[bool, bool, bool]:
    """(transposed, rows flipped, columns flipped) of the frame's display matrix, to the nearest right angle.

    The matrix maps a stored point to x' = a x + c y, y' = b x + d y, with y downwards.
    """
    try:
        side_data = frame.side_data.get(SideDataType.DISPLAYMATRIX)
    except ValueError:  # PyAV has no name for newer kinds of side data, such as Exif, and then shows none
        return ROTATED[round(frame.rotation / 90) % 4]
    if side_data is None:
        return False, False, False
    a, b, _, c, d = (int(value) for value in np.frombuffer(bytes(side_data), np.int32)[:5])
    if abs(a) >= abs(b):
        return False, d < 0, a < 0
    return True, b < 0, c < 0


def _between(value: int, least: int, most: int) -> int:
    return max(least, min(most, value))
