"""Whether a clip looks like a mosaic of MDSA's patches, measured by the steps between neighbouring pixels.

Steps across the borders of patches are divided by steps within patches. PSNR hardly shows mosaics. The
measure is not in the paper. Letters: T frames, H W rows and columns, C colours,
M mel bins, S mel steps within a frame.
"""

import numpy as np


def blockiness(video_THWC: np.ndarray, *, side: int) -> float:
    """mean |step| across borders of patches / mean |step| within patches, `side` x `side` patches per frame.

    Steps are between neighbouring pixels along H and along W, all frames and colours together. video: uint8.
    The result is 1 for noise and infinite for a mosaic of flat patches. It is NaN if nothing changes, or if
    `side` does not divide H and W. An axis without steps of both kinds does not count.
    """
    _, height, width, _ = video_THWC.shape
    if height % side or width % side:
        return float("nan")
    video = video_THWC.astype(np.int16)
    return _ratio([_steps(video, axis, size // side) for axis, size in ((1, height), (2, width))])


def blockiness_sound(mel_TMS: np.ndarray) -> float:
    """mean |step| across borders of frames / mean |step| within frames, between neighbouring mel columns.

    It is 1 for noise. It is NaN if nothing changes, for a single frame, and for a single column per frame.
    """
    frames, bins, steps = mel_TMS.shape
    columns = mel_TMS.astype(np.float64).transpose(0, 2, 1).reshape(frames * steps, bins)
    return _ratio([_steps(columns, 0, steps)])


def _steps(x: np.ndarray, axis: int, patch: int) -> tuple[float, int, float, int]:
    """Along one axis: sum and number of |steps| across borders of patches, then of those within patches."""
    steps = np.moveaxis(np.abs(np.diff(x, axis=axis)), axis, 0)
    is_across = np.arange(1, len(steps) + 1) % patch == 0
    across, within = steps[is_across], steps[~is_across]
    return float(across.sum(dtype=np.float64)), across.size, float(within.sum(dtype=np.float64)), within.size


def _ratio(axes: list[tuple[float, int, float, int]]) -> float:
    """Mean step across borders divided by mean step within patches, of the axes that have both kinds of
    steps."""
    used = [parts for parts in axes if parts[1] and parts[3]]
    if not used:
        return float("nan")
    across, num_across, within, num_within = (sum(column) for column in zip(*used, strict=True))
    if not within:
        return float("inf") if across else float("nan")
    return across / num_across / (within / num_within)
