"""Decoded pictures -> RGB frames of one size (`Canvas`) at the times of a regular clock (`PictureClock`).

Knows nothing of files or sound. Pictures are chosen by their time stamps, never by counting. Private to `proav/media/container.py`.
"""

from fractions import Fraction
from typing import Literal

import av
import numpy as np
from av.sidedata.sidedata import Type as SideDataType
from av.video.reformatter import Colorspace, Interpolation, VideoReformatter

SCALING = Interpolation.BICUBIC | Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP
"""Bicubic with chroma at full resolution: 0.15 ms a frame dearer than the default, and 2.5 times closer to a float reference on coloured edges."""
MAX_GAP_SECONDS = 30.0
"""A stream that pauses for longer counts as ended; this bounds what is held in memory."""
MIN_TOLERANCE, MAX_TOLERANCE = 1e-6, 5e-4
"""Time stamps are off by up to half a tick of their container, but a coarse tick (AVI counts frames) does not excuse half a frame."""
LAST_FRAME_SLACK = 0.1
"""The last frame of a clip may lack this share of its time (millisecond time stamps round the end of a stream)."""
MAX_PIXELS = 8192 * 8192
"""Larger pictures are refused rather than decoded."""


class Canvas:
    """Draws a decoded picture as uint8 [H, W, 3]: turned upright, pixels made square, scaled, then padded or cropped.

    fit "pad" keeps the whole picture between black bars, "crop" keeps the centre. Transparency is drawn on black. Untagged pictures of
    more than 576 rows are read as BT.709, others as BT.601, as players do. High dynamic range is not tone-mapped.
    """

    def __init__(self, *, height: int, width: int, fit: Literal["pad", "crop"], pixel_aspect: Fraction = Fraction(1)) -> None:
        assert fit in ("pad", "crop"), fit
        self.height, self.width, self.fit = height, width, fit
        self.pixel_aspect = pixel_aspect
        self._reformatter = VideoReformatter()
        self._cropper: tuple[tuple, av.filter.Graph] | None = None

    def draw(self, frame: av.VideoFrame) -> np.ndarray:
        transposed, flip_rows, flip_columns = _orientation(frame)
        height, width = (self.width, self.height) if transposed else (self.height, self.width)
        aspect = Fraction(frame.width, frame.height) * self.pixel_aspect
        scale_down = min(Fraction(width) / aspect, Fraction(height))  # rows of the whole picture inside the canvas
        if self.fit == "pad":
            rows, columns = _between(round(scale_down), 1, height), _between(round(scale_down * aspect), 1, width)
        else:
            frame = self._crop_to(frame, Fraction(width, height) / self.pixel_aspect)
            rows, columns = height, width
        picture = self._scale(frame, rows, columns)
        picture = picture.swapaxes(0, 1) if transposed else picture
        picture = picture[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]
        if picture.shape[:2] == (self.height, self.width):
            return np.ascontiguousarray(picture)
        canvas = np.zeros((self.height, self.width, 3), np.uint8)
        top, left = (self.height - picture.shape[0]) // 2, (self.width - picture.shape[1]) // 2
        canvas[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
        return canvas

    def _scale(self, frame: av.VideoFrame, rows: int, columns: int) -> np.ndarray:
        has_alpha = any(component.is_alpha for component in frame.format.components)
        matrix = Colorspace.ITU709 if frame.colorspace == 2 and frame.height > 576 else None  # 2: the file does not say
        scaled = self._reformatter.reformat(
            frame, width=columns, height=rows, format="rgba" if has_alpha else "rgb24", src_colorspace=matrix, interpolation=SCALING, threads=1
        ).to_ndarray()
        if not has_alpha:
            return scaled
        return (scaled[..., :3].astype(np.uint16) * scaled[..., 3:] // 255).astype(np.uint8)

    def _crop_to(self, frame: av.VideoFrame, aspect: Fraction) -> av.VideoFrame:
        """The largest centred part of `frame` whose columns / rows are `aspect`."""
        columns = _between(round(frame.height * aspect), 1, frame.width)
        rows = _between(round(frame.width / aspect), 1, frame.height)
        if (rows, columns) == (frame.height, frame.width):
            return frame
        key = (frame.width, frame.height, frame.format.name)
        if self._cropper is None or self._cropper[0] != key:
            graph = av.filter.Graph()
            source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format.name, time_base=Fraction(1, 1000))
            graph.link_nodes(source, graph.add("crop", f"{columns}:{rows}"), graph.add("buffersink")).configure()
            self._cropper = key, graph
        self._cropper[1].vpush(frame)
        return self._cropper[1].vpull()


class PictureClock:
    """Turns decoded pictures into frames 0, 1, 2 ... of a regular clock: frame k is the picture shown at start + k / fps.

    Shown at a time is the last picture whose time stamp is not later; before the first picture, the first. `frames` holds what is
    finished and not yet taken.
    """

    def __init__(self, canvas: Canvas, *, fps: int, start: float, tick: float, max_frames: int | None, default_duration: float) -> None:
        self.canvas, self.fps, self.start, self.max_frames = canvas, fps, start, max_frames
        self.frames: list[np.ndarray] = []
        self.num_frames = 0
        self.broke_off = False
        self._tolerance = max(MIN_TOLERANCE, min(tick / 2, MAX_TOLERANCE))
        self._duration = default_duration
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

    @property
    def started(self) -> bool:
        return self._shown is not None

    def push(self, frame: av.VideoFrame) -> None:
        """Takes the next picture in order of showing; one that comes after a later one (a damaged stream) is left out."""
        time = frame.time if frame.time is not None else self._next_time()
        if self._time is not None:
            if time < self._time:
                return
            if time - max(self._time, self.start) > MAX_GAP_SECONDS:
                self.broke_off = True
                return
            self._duration = time - self._time or self._duration
        if self._shown is None:
            self._shown = frame  # held from the start of the clip until it is due
        self._finish_before(time)
        self._shown, self._drawn, self._time = frame, None, time
        if frame.duration:
            self._duration = float(frame.duration * frame.time_base)

    def finish(self) -> None:
        """The stream has ended: the last picture stays for its own duration."""
        if self._shown is None or self._time is None:
            return
        end = min(self._next_time(), self._time + MAX_GAP_SECONDS)
        whole_frames = int((end - self.start) * self.fps + LAST_FRAME_SLACK)
        while self.num_frames < whole_frames and not self.full:
            self._finish_frame()

    def take(self, count: int) -> np.ndarray:
        """The next `count` frames, uint8 [count, H, W, 3]."""
        taken, self.frames = self.frames[:count], self.frames[count:]
        return np.stack(taken)

    def _next_time(self) -> float:
        return self.start if self._time is None else self._time + self._duration

    def _finish_before(self, time: float) -> None:
        while not self.full and self.start + self.num_frames / self.fps + self._tolerance < time:
            self._finish_frame()

    def _finish_frame(self) -> None:
        if self._drawn is None:
            self._drawn = self.canvas.draw(self._shown)
        self.frames.append(self._drawn)
        self.num_frames += 1


def _orientation(frame: av.VideoFrame) -> tuple[bool, bool, bool]:
    """(transposed, rows flipped, columns flipped) of the frame's display matrix, to the nearest right angle.

    The matrix maps a stored point to x' = a x + c y, y' = b x + d y, with y downwards.
    """
    side_data = frame.side_data.get(SideDataType.DISPLAYMATRIX)
    if side_data is None:
        return False, False, False
    a, b, _, c, d = (int(value) for value in np.frombuffer(bytes(side_data), np.int32)[:5])
    if abs(a) >= abs(b):
        return False, d < 0, a < 0
    return True, b < 0, c < 0


def _between(value: int, least: int, most: int) -> int:
    return max(least, min(most, value))
