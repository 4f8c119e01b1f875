"""Cuts one stretch of a file into clips, and reports which frames cannot be used.

A stretch is picture and sound on one clock, without a joint (`joints.py`). Files are read in `segments.py`.
This module is private to `proav/media`, except for two tolerances.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from proav.media.pictures import LAST_FRAME_SLACK, MAX_GAP_SECONDS, PictureClock
from proav.media.sound import Silence, SoundClock

MAX_SOUND_SHORTFALL = 0.1
"""Seconds by which sound may end before the pictures; silence fills them. If the sound ends earlier, the clip
ends with it."""
PAUSE_SECONDS = 1.0
"""A longer time without sound and without pictures was not recorded: no clip spans it."""
MAX_LEAD_SECONDS = 40.0
"""If pictures lead by more than this, they no longer wait for their sound. This bounds the frames in memory.
"""
MAX_SKEW_SECONDS = 5.0
"""Pictures and sound of the same time are at most this far apart in a file."""
MAX_STILL_SECONDS = 600.0
"""If sound leads by more than this, it no longer waits for the next picture. This bounds the sound in memory.
If only pictures are read, no picture is held for longer.
"""


def end_slack_seconds(fps: int) -> float:
    """Longest loss at the end of a stretch that need not be reported, in seconds.

    This is the longer of one frame and MAX_SOUND_SHORTFALL.
    """
    return max(MAX_SOUND_SHORTFALL, 1 / fps) + 1e-6


@dataclass(frozen=True, eq=False)
class Cut:
    """A clip's frames, from frame `first` of the stretch on, and its sound.

    video: uint8 [T, H, W, 3]. audio: float32 [samples].
    cancelled: what `SoundClock.cancels` says of the sound.
    """

    first: int
    video: np.ndarray
    audio: np.ndarray
    cancelled: bool


@dataclass(frozen=True)
class Loss:
    """Frames `first` to `end` - 1 of the stretch cannot be used.

    reason: too_short, no_sound, no_picture or gap.
    """

    first: int
    end: int
    reason: str


class Stretch:
    """Cuts finished pictures and sound into clips of `min_frames` to `segment_frames` frames."""

    def __init__(
        self, pictures: PictureClock, sound: SoundClock | Silence, *, fps: int, sample_rate: int,
        segment_frames: int | None, min_frames: int, first: int = 0,
    ) -> None:  # fmt: skip
        """pictures, sound: the clocks that hold finished pictures and sound.
        fps: frames per second of `pictures`.
        sample_rate: of `sound`, Hz.
        segment_frames: frames in a whole clip; None: clips are as long as possible.
        min_frames: shorter clips are lost as too_short.
        first: the first frame that is wanted.
        """
        self._first = first
        self.pictures, self.sound = pictures, sound
        self._fps, self._sample_rate = fps, sample_rate
        self._segment_frames, self._min_frames = segment_frames, max(1, min_frames)
        self._next = 0  # the first frame that is neither cut nor lost
        self._num_holes = 0  # holes of the sound that are dealt with; the last one may still grow
        self._loss: Loss | None = None

    @property
    def reached(self) -> int:
        """The first frame that is not cut, lost or dropped as unwanted."""
        return self._next

    @property
    def complete(self) -> bool:
        """Whether everything that was asked for has been read."""
        return self.pictures.full and self.sound.seconds >= self.pictures.seconds

    def ready(self) -> Iterable[Cut | Loss]:
        """Clips and losses of the time that both streams have passed."""
        pictures, sound = self.pictures, self.sound
        lead = pictures.seconds - sound.seconds
        if lead > MAX_LEAD_SECONDS and not pictures.full:
            sound.silence_until(pictures.seconds - MAX_SKEW_SECONDS)
        elif -lead > MAX_STILL_SECONDS and sound.seconds < float("inf"):
            pictures.hold_until(sound.seconds - MAX_STILL_SECONDS)
        elif (
            pictures.max_frames is not None
            and MAX_LEAD_SECONDS < sound.seconds - pictures.max_frames / self._fps < float("inf")
        ):
            pictures.hold_until(pictures.max_frames / self._fps)
        known = min(pictures.num_frames, int(min(sound.seconds, 1e9) * self._fps + 1e-6))
        whole = self._segment_frames is None or known < self._next + self._segment_frames
        if whole and len(self.sound.holes) == self._num_holes and pictures.late <= MAX_GAP_SECONDS:
            return ()  # this runs for every frame: the usual case must be cheap
        return self._cut_until(known)

    def rest(self) -> Iterator[Cut | Loss]:
        """The remaining clips and losses, once the stretch has ended or everything has been read."""
        pictures, sound = self.pictures, self.sound
        sound.finish()
        pictures.finish(sound.end_seconds)
        total = pictures.num_frames
        if sound.seconds < total / self._fps - MAX_SOUND_SHORTFALL:
            total = self._frames(sound.seconds)
        yield from self._cut_until(total, ended=True)
        yield from self._tail(total)
        yield from self._lose(pictures.num_frames, "no_sound")
        if (
            sound.seconds < float("inf")
            and sound.seconds > pictures.seconds + MAX_SOUND_SHORTFALL
            and not pictures.full
        ):
            yield from self._lose(self._frames(sound.seconds), "no_picture")
        yield from self._told()

    def _frames(self, seconds: float) -> int:
        """Number of whole frames in a time, with a little slack for the last frame."""
        return int(min(seconds, 1e9) * self._fps + LAST_FRAME_SLACK)

    def _cut_until(self, known: int, *, ended: bool = False) -> Iterator[Cut | Loss]:
        """Whole segments and losses up to frame `known`, which both clocks have passed."""
        self._drop(min(self._first, known))
        limit = known
        for first, end, reason in self._unusable(known, ended):
            if first >= known or not reason:
                limit = min(known, first)
                break
            if min(end, known) > self._next:
                yield from self._whole_segments(first)
                yield from self._tail(first)
                yield from self._lose(min(end, known), reason)
        yield from self._whole_segments(limit)

    def _unusable(self, known: int, ended: bool) -> Iterator[tuple[int, int, str]]:
        """Yields (first, end, reason) in frames, in order.

        The reason is "" if it is not known yet whether these frames can be used.
        """
        late = self.pictures.late
        if late > MAX_GAP_SECONDS:
            yield 0, self._up(late), "no_picture"
        for number in range(self._num_holes, len(self.sound.holes)):
            begin, end = self.sound.holes[number]
            if end - begin > MAX_GAP_SECONDS:
                yield self._frames(begin), self._up(end), "no_sound"
            elif known <= self._up(end) and not ended:
                yield self._frames(begin), self._up(end), ""
                return
            else:
                # after a pause the picture before it is not shown: frames are lost until the next picture
                for one, other in self.pictures.pauses:
                    if min(other, end) - max(one, begin) > PAUSE_SECONDS:
                        back = other if other - end < PAUSE_SECONDS else end
                        yield self._frames(max(one, begin)), self._up(back), "gap"
                        yield self._up(back), self._up(other), "no_picture"
            if known > self._up(end) and number + 1 < len(self.sound.holes):
                self._num_holes = number + 1

    def _up(self, seconds: float) -> int:
        """The first frame that begins at or after a time."""
        return math.ceil(seconds * self._fps - LAST_FRAME_SLACK)

    def _whole_segments(self, end: int) -> Iterator[Cut | Loss]:
        while self._segment_frames is not None and self._next + self._segment_frames <= end:
            yield from self._cut(self._segment_frames)

    def _tail(self, end: int) -> Iterator[Cut | Loss]:
        if end - self._next >= self._min_frames:
            yield from self._cut(end - self._next)
        else:
            yield from self._lose(end, "too_short")

    def _cut(self, count: int) -> Iterator[Cut | Loss]:
        yield from self._told()
        first = self._next
        first_sample, num_samples = (
            round(first * self._sample_rate / self._fps),
            round(count * self._sample_rate / self._fps),
        )
        cancelled = self.sound.cancels(first / self._fps, (first + count) / self._fps)
        cut = Cut(first, self.pictures.take(count), self.sound.take(first_sample, num_samples), cancelled)
        self._next += count
        yield cut

    def _lose(self, end: int, reason: str) -> Iterator[Loss]:
        """Marks frames up to `end` as lost. A loss that continues is reported once, when it is over."""
        self._drop(min(end, self._first))
        first = self._next
        if end <= first:
            return
        self._drop(end)
        if self._loss is not None and self._loss.reason == reason:
            self._loss = Loss(self._loss.first, end, reason)
            return
        yield from self._told()
        self._loss = Loss(first, end, reason)

    def _drop(self, end: int) -> None:
        if end <= self._next:
            return
        self.pictures.skip(end - self._next)
        self.sound.forget(round(end * self._sample_rate / self._fps))
        self._next = end

    def _told(self) -> Iterator[Loss]:
        if self._loss is not None:
            yield self._loss
            self._loss = None
