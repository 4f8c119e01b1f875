"""Joins given and made frames in one clip, without a visible step or an audible click between them.

Given frames are copied into the result unchanged. Not here: how frames are made (`pipeline.py`). Letters: T
frames, L sound samples.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from torch import Tensor

from proav.diffusion.masks import AUDIO, VIDEO
from proav.diffusion.noise import uniforms_for
from proav.media.container import Clip

CARRY_SECONDS = 0.4
"""The difference between given and made frames at a border is spread over at most this time."""
HOLD_SECONDS = 0.05
"""At most this far from given sound, made sound still resembles it. A longer time would delay onsets."""
HALF_TRUST_DB = 3.0
"""If the model errs by this much, the column beside a border is nearly the mean of given and made sound. The
choice is measured in docs/experiments.md."""
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
    result = made.clone()
    for border, stretch in _made_stretches(known_T):
        to_the_end = stretch[-1] in (0, len(known_T) - 1)
        error = given[border] - made[border]
        mean = error.mean((0, 1)) if hold_mean else 0.0
        for distance, place in enumerate(stretch, 1):
            share = max(0.0, 1 - distance / (min(len(stretch), frames) + 1))
            of_mean = 1.0 if to_the_end else 1 - distance / (len(stretch) + 1)
            result[place] += share * (error - mean) + of_mean * mean
    return result


def hold_given(
    joined_JM: Tensor, made_JM: Tensor, given_JM: Tensor, known_J: Tensor, columns: int, half_trust: float
) -> Tensor:
    """Mel columns that leave given sound gradually, the more so the worse the model made the given sound.

    Sound changes little within some hundredths of a second. So if a model errs by much, the last given column
    g says more about the next columns than they do themselves. The d-th made column x from a border becomes
    x + w (g - x), with w = r (1 - d / (n + 1)) and r = e / (e + half_trust). e is the root mean square of
    g - m over the bands, with m the model's own version of the given column.

    joined_JM: the columns that are changed, after `carry_over`.
    made_JM, given_JM: as the model made them, and the given ones.
    known_J: bool, the given columns.
    columns: the most columns n that a border changes; also at most half of a made stretch.
    half_trust: the error e at which r is one half, in the unit of the columns; above 0.
    """
    result = joined_JM.clone()
    for border, stretch in _made_stretches(known_J):
        error = (given_JM[border] - made_JM[border]).square().mean().sqrt()
        doubt, count = error / (error + half_trust), min(columns, len(stretch) // 2)
        for distance, place in enumerate(stretch[:count], 1):
            weight = doubt * (1 - distance / (count + 1))
            result[place] += weight * (given_JM[border] - result[place])
    return result


def _made_stretches(known_T: Tensor) -> Iterator[tuple[int, range]]:
    """For each border: the given place beside it, and the made places behind it, the nearest first."""
    known, count = known_T.tolist(), len(known_T)
    for after in range(1, count):
        if known[after] == known[after - 1]:
            continue
        step, border = (-1, after) if known[after] else (1, after - 1)
        end = border + step
        while 0 <= end < count and not known[end]:
            end += step
        yield border, range(border + step, end, step)


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
