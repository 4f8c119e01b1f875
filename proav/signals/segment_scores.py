"""Scores of one segment, the columns that filters use.

They are loudness, darkness, stillness, shot cuts, synchrony of sound and picture, and fingerprints. They are
computed with numpy on pictures that are reduced once to about 32 x 32 cells. This costs a few per cent of the
time for decoding. `proav/data/prepare/filtering.py` uses the scores.
Letters: T frames, H and W rows and columns, C colours, Y and X rows and columns of cells, N cells of a
picture, L sound samples, M mel bins, S mel columns in a frame, K entries of the colours' distributions.
"""

import math
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from proav.media.sound import SILENT_RMS
from proav.signals.fingerprints import picture_hash, sound_hash
from proav.signals.synchrony import synchrony

CLIPPED_LEVEL = 0.999
"""A sample of at least this magnitude counts as clipped."""
LUMA_WEIGHTS = (77, 150, 29)
"""BT.601's weights of red, green and blue in parts of 256. Sums of whole numbers are exact on any machine
and in any order."""
BLACK_LUMA, BLACK_SHARE = 0.1, 0.98
"""A picture is black if at least BLACK_SHARE of its cells are darker than BLACK_LUMA. Both are as in FFmpeg's
filter blackdetect."""
FROZEN_CHANGE = 1 / 255
"""A picture is frozen if no cell's mean changes by more than this. A re-encoded still changes less, a mouth
in a quiet face much more."""
CELLS = 32
"""Largest number of cells along a side of the reduced picture."""

CUT_RATIO = 1.9
"""A step is a cut if it is at least this many times the steps around it, as the geometric mean over the three
distances of CUT_FLOORS. Measured on 206 real clips."""
MIXED_CUT_RATIO = 3.0
"""The same for a cut with one frame that mixes both shots; frame-rate conversion makes such frames. Measured
on the same clips."""
CUT_FLOORS = np.array([0.02, 0.008, 0.04])
"""Added to the steps around, so that in still pictures not every change is a cut. There is one for each
distance: mean |difference| of cells; distance between the distributions of each colour (Wasserstein-1), both
with full scale 1; 1 - correlation."""
CUT_MIN_UNLIKENESS = 0.1
"""If 1 - correlation is below this, it is the same picture, brighter or darker: no cut."""
CUT_WINDOW_SECONDS, CUT_PERSISTENCE_SECONDS = 0.5, 0.2
"""How far around a step the usual change is measured, and how long the new picture must stay. A flash ends
earlier."""

SCORE_FIELDS = [
    pa.field("rms", pa.float32()),  # of the sound, full scale 1
    pa.field("peak", pa.float32()),  # largest |sample|
    pa.field("clipped", pa.float32()),  # share of samples at full scale
    pa.field("silent", pa.bool_()),  # rms below -60 dB of full scale, and not cancelled
    pa.field("cancelled", pa.bool_()),  # the source's channels hold sound but cancel each other in the mix
    pa.field("mean_luma", pa.float32()),  # of all pixels, white is 1
    pa.field("motion", pa.float32()),  # mean |difference| of a pixel to the previous frame, full scale 1
    pa.field("black", pa.float32()),  # share of pictures that are black
    pa.field("frozen", pa.float32()),  # share of steps from picture to picture without change
    pa.field("shot_starts", pa.list_(pa.int32())),  # frames at which a new shot begins; frame 0 is not listed
    # correlation of onsets of sound with jerks of the picture, NaN if undefined
    pa.field("sync", pa.float32()),
    # seconds by which the sound is late at the best correlation, NaN if undefined
    pa.field("sync_lag", pa.float32()),
    pa.field("picture_hash", pa.binary()),  # 32 bytes, alike for pictures that look alike
    pa.field("sound_hash", pa.binary()),  # 32 bytes, alike for sounds that sound alike
]


def segment_scores(
    video_THWC: np.ndarray,
    sound_L: np.ndarray,
    *,
    fps: int,
    sample_rate: int,
    mel_TMS: np.ndarray,
    cancelled: bool = False,
) -> dict:
    """The values of SCORE_FIELDS for one segment.

    video_THWC: uint8, RGB, at least 2 frames of 16 x 16.
    sound_L: float32 in [-1, 1], T * sample_rate / fps samples.
    fps: frames per second.
    sample_rate: of the sound, in Hz.
    mel_TMS: mel of the sound, in [-1, 1].
    cancelled: whether the channels of the sound cancel each other in the mix.
    """
    assert len(mel_TMS) == len(video_THWC) and len(sound_L) == round(len(video_THWC) * sample_rate / fps), (
        mel_TMS.shape,
        sound_L.shape,
    )
    rms = math.sqrt(np.vdot(sound_L, sound_L.astype(np.float64)) / len(sound_L))
    magnitude = np.abs(sound_L)
    reduced = reduce_pictures(video_THWC)
    luma_TYX = reduced.luma_TYX
    cells = luma_TYX.reshape(len(luma_TYX), -1)
    starts = shot_starts(luma_TYX, reduced.colours_TK, fps=fps)
    sync, lag = synchrony(luma_TYX, mel_TMS, fps=fps, shot_starts=starts)
    return {
        "rms": rms,
        "peak": float(magnitude.max(initial=0.0)),
        "clipped": np.count_nonzero(magnitude >= CLIPPED_LEVEL) / len(sound_L),
        "silent": rms < SILENT_RMS and not cancelled,
        "cancelled": cancelled,
        "mean_luma": float(luma_TYX.mean(dtype=np.float64)),
        "motion": reduced.motion,
        "black": float(np.mean((cells < BLACK_LUMA).mean(axis=1) >= BLACK_SHARE)),
        "frozen": float(np.mean(np.abs(np.diff(cells, axis=0)).max(axis=1) <= FROZEN_CHANGE)),
        "shot_starts": starts,
        "sync": sync,
        "sync_lag": lag,
        "picture_hash": picture_hash(luma_TYX, black=BLACK_LUMA),
        "sound_hash": sound_hash(mel_TMS),
    }


@dataclass(frozen=True, eq=False)
class ReducedPictures:
    """Pictures of a segment, reduced to cells, distributions of colours and one number for motion.

    luma_TYX: float32, mean luma of blocks of pixels, 16 to 32 along a side; white is 1. An incomplete last
        block is left out.
    colours_TK: float32, cumulative distributions of red, green and blue over one pixel of each block. The
        mean |difference| of two rows is the Wasserstein-1 distance of their colours, full scale 1.
    motion: mean |difference| of a pixel to the previous frame, full scale 1.
    """

    luma_TYX: np.ndarray
    colours_TK: np.ndarray
    motion: float


def reduce_pictures(video_THWC: np.ndarray, *, levels: int = 16) -> ReducedPictures:
    """Reduces uint8 pictures in one pass, frame by frame.

    One frame stays in the processor's cache, and no memory is needed beside the result.

    levels: number of levels of each colour in the distributions.
    """
    frames, height, width, _ = video_THWC.shape
    block_rows, block_columns = math.ceil(height / CELLS), math.ceil(width / CELLS)
    rows, columns = height // block_rows, width // block_columns
    largest_sum = 255 * sum(LUMA_WEIGHTS) * block_rows * block_columns
    # float32 is exact below 2^24, float64 below 2^53
    weights = np.zeros((width, 3, columns), np.float32 if largest_sum < 1 << 24 else np.float64)
    inside = np.arange(columns * block_columns)
    weights[inside, :, inside // block_columns] = LUMA_WEIGHTS
    weights = weights.reshape(3 * width, columns)
    sum_type = np.uint16 if block_rows <= 257 else np.uint32
    channel_places = (levels * np.arange(3)).astype(np.uint8)
    luma_TYX = np.empty((frames, rows, columns), np.float32)
    counts = np.empty((frames, 3 * levels), np.int64)
    change, before = 0, None
    for number, frame in enumerate(video_THWC):
        blocks = frame[: rows * block_rows].reshape(rows, block_rows, 3 * width)
        # numpy is twice as fast over the first axis
        sums = np.add.reduce(blocks.transpose(1, 0, 2), axis=0, dtype=sum_type)
        luma_TYX[number] = (sums.astype(weights.dtype) @ weights) / largest_sum
        pixels = frame[block_rows // 2 :: block_rows, block_columns // 2 :: block_columns]
        counts[number] = np.bincount(
            (pixels // np.uint8(256 // levels) + channel_places).ravel(), minlength=3 * levels
        )
        after = frame[:: max(1, height // CELLS)]  # these rows measure motion as well as all rows
        if before is not None:
            # differences in uint8 are four times as fast
            change += int((np.maximum(after, before) - np.minimum(after, before)).sum(dtype=np.uint32))
        before = after
    colours_TK = np.cumsum(counts.reshape(frames, 3, levels), axis=2).reshape(frames, -1) / (pixels.size // 3)
    return ReducedPictures(
        luma_TYX, colours_TK.astype(np.float32), change / (max(1, frames - 1) * before.size * 255)
    )


def shot_starts(luma_TYX: np.ndarray, colours_TK: np.ndarray, *, fps: int) -> list[int]:
    """Frames at which a new shot begins after a hard cut, or after a cut with one mixed frame; frame 0 is not
    among them.

    A step is a cut if all three hold:
    - Picture, colours and structure change CUT_RATIO times as much as in the steps around it. So fast motion,
      fades and dissolves are no cuts.
    - The picture is not the same one, brighter or darker.
    - The pictures of the next 0.2 s all differ as much from the pictures before. So a flash is no cut.
    The first and the last step are never cuts, since the shot before or after would be too short to tell.
    """
    frames = len(luma_TYX)
    if frames < 4:
        return []
    pictures_TN = luma_TYX.reshape(frames, -1)
    centred = pictures_TN - pictures_TN.mean(axis=1, keepdims=True)
    directions_TN = centred / (
        np.linalg.norm(centred, axis=1, keepdims=True) + 1e-3 * math.sqrt(centred.shape[1])
    )

    def distances(after: np.ndarray, before: np.ndarray) -> np.ndarray:
        return np.stack(
            [
                np.abs(pictures_TN[after] - pictures_TN[before]).mean(axis=-1),
                np.abs(colours_TK[after] - colours_TK[before]).mean(axis=-1),
                1 - (directions_TN[after] * directions_TN[before]).sum(axis=-1),
            ]
        )

    numbers = np.arange(1, frames)
    steps = distances(numbers, numbers - 1)
    reach = max(2, round(CUT_WINDOW_SECONDS * fps))
    padded = np.pad(steps, ((0, 0), (reach, reach)), mode="edge")
    usual = np.median(np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1, axis=1), axis=-1)
    stay = max(1, round(CUT_PERSISTENCE_SECONDS * fps))
    offsets = sorted({0, (stay + 1) // 2, stay})

    def cuts(apart: int, ratio: float) -> np.ndarray:
        """First frames of new shots, `apart` frames after the last frame of the old shot.

        A frame between them is a mixture of the two shots.

        ratio: how much the change must stand out.
        """
        first, last = numbers[apart - 1 :], numbers[apart - 1 :] - apart
        beside = np.pad(steps, ((0, 0), (1, 1)), mode="reflect")
        around = (
            np.maximum(usual[:, first - 1], (beside[:, last] + beside[:, first + 1]) / 2)
            + CUT_FLOORS[:, None]
        )

        def stands_out(changes: np.ndarray, around: np.ndarray) -> np.ndarray:
            return (np.prod(changes / around, axis=0) >= ratio**3) & (changes[2] >= CUT_MIN_UNLIKENESS)

        found = np.flatnonzero(stands_out(distances(first, last), around))
        later = [np.minimum(first[found] + offset, frames - 1) for offset in offsets]
        earlier = [np.maximum(last[found] - offset, 0) for offset in offsets]
        least = np.min([distances(after, before) for after in later for before in earlier], axis=0)
        return first[found][stands_out(least, around[:, found])]

    hard, mixed = cuts(1, CUT_RATIO).tolist(), cuts(2, MIXED_CUT_RATIO).tolist()
    starts = hard + [
        start for start in mixed if 2 < start < frames - 1 and all(abs(start - cut) > 1 for cut in hard)
    ]
    return sorted(start for start in starts if start - 1 not in starts)
