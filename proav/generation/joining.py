"""Joins given and made frames in one clip, without a visible step or an audible click between them.

Given frames are copied into the result unchanged. Not here: how frames are made (`pipeline.py`). Letters: T
frames, L sound samples.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from proav.diffusion.masks import AUDIO, VIDEO
from proav.diffusion.noise import uniforms_for
from proav.media.container import Clip

CARRY_SECONDS = 0.4
"""The difference between given and made frames at a border is spread over at most this time."""
FADE_SECONDS = 0.01
"""Made sound fades in within this time after given sound, and out before it. A longer fade hides onsets."""


def carry_over(
    made: Tensor, given: Tensor, known_T: Tensor, frames: int, *, hold_mean: bool = False
) -> Tensor:
    """Made frames without a step at the borders to given ones.

    The model makes the given frames too, but not exactly: pictures are blurrier, and colours differ a little.
    The difference e = given - made at a border is spread over the made frames beside it: the d-th frame from
    the border gets (1 - d / (n + 1)) e. n is the length of the made stretch, at most `frames`. Between two
    borders both differences are added.

    With hold_mean, let m be the mean of e over rows and columns. Only e - m is spread in this way, and m is
    added to the whole stretch. It stays constant if the stretch reaches an end of the clip; between two
    borders it falls linearly to zero. The reason: the model's error of the mean colour hardly changes within
    a clip. If m always faded, each window of a long clip would end in the model's own colour, and the next
    window would begin with it.

    made, given: float [T, ...], of one shape; with hold_mean [T, H, W, C].
    known_T: bool, the given frames.
    frames: the most made frames that a border changes.
    hold_mean: whether the mean over rows and columns is held.
    """
    result, count = made.clone(), len(known_T)
    for border in ((known_T[1:] != known_T[:-1]).nonzero().flatten() + 1).tolist():
        step = -1 if known_T[border] else 1
        last = border if known_T[border] else border - 1
        stretch = 0
        while 0 <= last + step * (stretch + 1) < count and not known_T[last + step * (stretch + 1)]:
            stretch += 1
        to_the_end = not 0 <= last + step * (stretch + 1) < count
        error = given[last] - made[last]
        mean = error.mean((0, 1)) if hold_mean else 0.0
        for distance in range(1, stretch + 1):
            share = max(0.0, 1 - distance / (min(stretch, frames) + 1))
            of_mean = 1.0 if to_the_end else 1 - distance / (stretch + 1)
            result[last + step * distance] += share * (error - mean) + of_mean * mean
    return result


def with_given_frames(made: Clip, given: Clip, known_2T: np.ndarray) -> Clip:
    """`made` with the known frames of `given` in their places; the two clips are of one shape.

    known_2T: bool; row 0 for the pictures, row 1 for the sound.
    """
    video = np.where(known_2T[VIDEO][:, None, None, None], given.video, made.video)
    return dataclasses.replace(made, video=video, audio=_joined_sound(made, given, known_2T[AUDIO]))


def _joined_sound(made: Clip, given: Clip, known_T: np.ndarray) -> np.ndarray:
    """The given sound where it is known, else the made one, without clicks.

    At a border b, made sound alone would begin at another value and phase. So it fades in while the given
    sound, mirrored in time, fades out: sample b + i is c_i g(b - 1 - i) + s_i m(b + i), with g given and m
    made. c and s are the cosine and sine of an angle that grows from 0 to a right angle, which keeps the
    power. Given samples are not changed. If the given sound comes after the border, all is reversed in time.
    """
    per_frame = made.sample_rate // made.fps
    known_L = np.repeat(known_T, per_frame)
    sound = np.where(known_L, given.audio, made.audio)
    fade = min(int(FADE_SECONDS * made.sample_rate), per_frame // 2)  # two fades fit in a frame
    angle = (np.arange(fade, dtype=np.float32) + 0.5) / fade * (np.pi / 2)
    mirrored, own = np.cos(angle), np.sin(angle)
    for border in np.flatnonzero(known_T[1:] != known_T[:-1]) + 1:
        end = border * per_frame
        before, after = slice(end - fade, end), slice(end, end + fade)
        if known_T[border]:
            sound[before] = mirrored[::-1] * given.audio[after][::-1] + own[::-1] * made.audio[before]
        else:
            sound[after] = mirrored * given.audio[before][::-1] + own * made.audio[after]
    return sound.clip(-1, 1)


def last_frames(clip: Clip, count: int) -> Clip:
    """The last `count` frames of a clip; all of it if it has fewer."""
    first = max(0, len(clip.video) - count)
    return part_of(clip, first, len(clip.video) - first)


def as_beginning(clip: Clip, known_frames: int, num_frames: int) -> Clip:
    """The last frames of a clip as the beginning of a window of `num_frames`.

    The rest of the window only fills the shape. The last picture is repeated. The sound is mirrored in time,
    so that the Fourier windows at the border do not contain its end.
    """
    return part_of(last_frames(clip, known_frames), 0, num_frames)


def part_of(clip: Clip, first: int, count: int) -> Clip:
    """`count` frames of a clip from frame `first` on, with their sound.

    Beyond the end of the clip, the last picture is repeated and the sound is mirrored in time.
    """
    samples, last = clip.sample_rate // clip.fps, first + count
    video, audio = clip.video[first:last], clip.audio[first * samples : last * samples]
    if (rest := count - len(video)) > 0:
        video = np.pad(video, ((0, rest), (0, 0), (0, 0), (0, 0)), mode="edge")
        audio = np.pad(audio, (0, rest * samples), mode="symmetric")
    return dataclasses.replace(clip, video=video, audio=audio)


def joined(clips: Sequence[Clip]) -> Clip:
    """Clips that follow each other, as one."""
    if len(clips) == 1:
        return clips[0]
    video, audio = (np.concatenate([getattr(clip, name) for clip in clips]) for name in ("video", "audio"))
    return dataclasses.replace(clips[0], video=video, audio=audio)


def window_seed(seed: int, window: int) -> int:
    """The seed of a window of a long clip. The first window has the seed of the clip."""
    return int(uniforms_for(seed, window, 1, purpose="window").item() * 2**53) if window else seed
