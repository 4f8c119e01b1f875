"""Clips of another length than the model was trained on: windows, one after the other.

A window has the T frames of the model. The first is made by the task that is asked for. Each later one is
given the last frames of the clip so far, and adds the rest of its own. Not here: how a window is made
(`pipeline.py`), how made and given frames are joined (`finishing.py`). Letters: T frames.
"""

import dataclasses
import math

import numpy as np

from proav.config import Config
from proav.diffusion.masks import continue_frames
from proav.diffusion.tasks import TASKS, check_trained, sampled_tasks
from proav.errors import UserError
from proav.generation.joining import as_beginning, joined, last_frames, part_of, window_seed
from proav.generation.requests import SampleRequest
from proav.geometry import MODALITIES
from proav.media.container import Clip

WHOLE_FILE = "file"
"""Instead of a length in seconds: the clip is as long as the file that is given."""


def following_task(name: str) -> str | None:
    """The task of all windows after the first; None if clips of the task `name` have only one window.

    If a stream is given for the whole clip, the other stream is continued beside it. The task is then
    `inpaint`: all frames of the one stream are given, and the first frames of the other.
    """
    if TASKS[name].asks_span:
        return None
    return "inpaint" if TASKS[name].given else "continue"


def wanted_frames(config: Config, seconds: float | None, num_windows: int) -> int:
    """The number of frames of a clip, if it does not continue a given one.

    config: of the model.
    seconds: the length of the clip; None: it follows from num_windows.
    num_windows: how many windows are made.
    Raises UserError if `seconds` is no length, or if both are given.
    """
    frames, fps = config.clip.num_frames, config.clip.fps
    if seconds is None:
        return frames + (num_windows - 1) * (frames - continue_frames(config))
    if num_windows != 1:
        raise UserError(f"seconds={seconds:g} and num_windows={num_windows}: expected only one of them")
    if not (1 / fps <= seconds and seconds * fps < math.inf):
        raise UserError(f"seconds={seconds:g}: expected at least the {1 / fps:g} s of a frame")
    return round(seconds * fps)


def windows_needed(config: Config, task: str, num_frames: int, there: int = 0) -> int:
    """Windows that make a clip of so many frames.

    config: of the model.
    task: of the first window, a name of TASKS.
    num_frames: of the whole clip. If the task continues a given clip, that clip's frames count too.
    there: frames of the given clip that is continued; 0 for other tasks.
    Raises UserError if the given clip is that long already.
    """
    new = config.clip.num_frames - continue_frames(config)
    if not TASKS[task].extends:
        return 1 + max(0, -(-(num_frames - config.clip.num_frames) // new))
    if num_frames <= there:
        fps = config.clip.fps
        raise UserError(
            f"seconds={num_frames / fps:g}: the given clip has {there / fps:g} s already; "
            "expected the length of the whole clip, with what is made"
        )
    return -(-(num_frames - there) // new)


def of_length(config: Config, request: SampleRequest, num_frames: int) -> SampleRequest:
    """The request for a clip of `num_frames`. If it continues a given clip, that clip's frames count too.

    config: of the model. Raises UserError if the given clip is that long already.
    """
    task = request.settings.task
    there = len(request.given.video) if TASKS[task].extends else 0
    num_windows = windows_needed(config, task, num_frames, there)
    return dataclasses.replace(request, num_windows=num_windows, num_frames=num_frames)


def makes_long_clips(config: Config, task: str) -> bool:
    """Whether a model of this configuration makes clips of more than one window by a task."""
    return following_task(task) in sampled_tasks(config)


def check_length(config: Config, task: str, num_windows: int) -> None:
    """Raises UserError if a model of this configuration cannot make so many windows by a task."""
    following = following_task(task)
    if num_windows < 1 or (num_windows > 1 and following is None):
        raise UserError(
            f"num_windows={num_windows}: expected 1"
            + (" or more" if following else f"; task={task!r} makes clips of one window")
        )
    if num_windows > 1:
        try:
            check_trained(following, config)
        except UserError as error:
            said = f"num_windows={num_windows}: all windows but the first are made by the task {following!r}"
            raise UserError(f"{said}. {error}") from error


def check_given(config: Config, request: SampleRequest) -> None:
    """Raises UserError if a stream that is given for the whole clip ends before the clip does.

    config: of the model.
    """
    task, given = request.settings.task, request.given
    if TASKS[task].given is None or given is None:
        return
    needed = wanted_frames(config, None, request.num_windows)
    needed = min(needed, request.num_frames or needed)
    there, fps = min(len(given.video), len(given.audio) * given.fps // given.sample_rate), config.clip.fps
    if there < needed:
        raise UserError(
            f"task={task!r}: the given clip has {there} frames ({there / fps:g} s), the clip to make has "
            f"{needed} ({needed / fps:g} s); give as many, or make fewer by num_windows=... or num_frames=..."
        )


def window_of(
    config: Config, request: SampleRequest, window: int = 0, end: Clip | None = None
) -> SampleRequest:
    """One window of a request, as a SampleRequest of its own.

    config: of the model.
    request: of a whole clip.
    window: number of the window, from 0.
    end: the clip so far, or its last frames; None: nothing is made yet.
    """
    task, frames, known = TASKS[request.settings.task], config.clip.num_frames, continue_frames(config)
    own = dataclasses.replace(request, seed=window_seed(request.seed, window), num_windows=1, num_frames=None)
    if not (window or task.extends):
        return dataclasses.replace(own, given=request.given and part_of(request.given, 0, frames))
    begun = as_beginning(request.given if end is None else end, known, frames)
    settings = dataclasses.replace(
        request.settings.without_guidance_of(task.given), task=following_task(request.settings.task)
    )
    if not task.given:
        return dataclasses.replace(own, settings=settings, given=begun)
    given = part_of(request.given, window * (frames - known), frames)
    stream = {"video": given.video} if task.given == "video" else {"audio": given.audio}
    known_2T = np.zeros((2, frames), bool)
    known_2T[:, :known] = known_2T[MODALITIES.index(task.given)] = True
    return dataclasses.replace(
        own, settings=settings, given=dataclasses.replace(begun, **stream), known=known_2T
    )


class GrowingClip:
    """A clip while its windows are made. It holds only what the next window is given."""

    def __init__(self, config: Config, request: SampleRequest) -> None:
        self.config, self.request = config, request
        self._window = self._told = 0
        self._end: Clip | None = None

    def window(self) -> SampleRequest:
        """The next window to make."""
        return window_of(self.config, self.request, self._window, self._end)

    def add(self, made: Clip) -> list[Clip]:
        """Takes the window that was made next; returns the new part of the clip, in pieces."""
        extends, known = TASKS[self.request.settings.task].extends, continue_frames(self.config)
        begins = self._window == 0
        new = made if begins and not extends else part_of(made, known, len(made.video) - known)
        pieces = [self.request.given, new] if begins and extends else [new]
        self._window += 1
        there = pieces if self._end is None else [self._end, *pieces]
        self._end = last_frames(joined([last_frames(piece, known) for piece in there[-2:]]), known)
        return [piece for piece in map(self._cut, pieces) if piece is not None]

    def _cut(self, piece: Clip) -> Clip | None:
        """A piece without what is beyond the wanted length; None if nothing is left."""
        most = self.request.num_frames
        left = len(piece.video) if most is None else min(len(piece.video), most - self._told)
        self._told += left
        return part_of(piece, 0, left) if left > 0 else None
