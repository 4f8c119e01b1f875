"""Fingerprints of picture and sound, 256 bits each.

They hardly change when a clip is encoded again, rescaled, or made a little brighter or louder.

Bits are signs of differences. A bit is 0 if the difference is too small to have a stable sign. So a black
picture and silence have no bit set. `proav/data/prepare/filtering.py` recognizes such empty fingerprints and
compares the others.
Letters: T frames, Y and X rows and columns of cells, M mel bins, S mel columns in a frame, J = T * S mel
columns.
"""

import numpy as np

HASH_BYTES = 32
MIN_LUMA_DIFFERENCE = 1 / 255
"""Smallest difference of the mean luma of two areas that sets a bit; white is 1."""
MIN_MEL_DIFFERENCE = 0.005
"""Smallest change of the step between two neighbouring bands of the mel that sets a bit.

The mel's range is 2, so this is 0.3 dB at the default floor and ceiling.
"""


def picture_hash(luma_TYX: np.ndarray, *, black: float) -> bytes:
    """256 bits that say where and when a picture is brighter.

    Half of them say whether an area is brighter than its left neighbour. There are 8 x 8 such comparisons in
    each half of the time. The other half say whether an area became brighter from one ninth of the time to
    the next (4 x 4). Black bars are cut off first, so that they do not matter.

    luma_TYX: mean luma of cells, white is 1.
    black: outer rows and columns that are always darker than this are bars.
    """
    rows, columns = (np.flatnonzero(luma_TYX.max(axis=(0, other)) >= black) for other in (2, 1))
    if not len(rows):
        return bytes(HASH_BYTES)
    seen_TYX = luma_TYX[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    in_space = np.diff(_means(seen_TYX, (2, 8, 9)), axis=2) > MIN_LUMA_DIFFERENCE
    in_time = np.diff(_means(seen_TYX, (9, 4, 4)), axis=0) > MIN_LUMA_DIFFERENCE
    return np.packbits(np.concatenate([in_space.ravel(), in_time.ravel()])).tobytes()


def sound_hash(mel_TMS: np.ndarray) -> bytes:
    """256 bits from the mel (Haitsma and Kalker 2002).

    The mel is averaged over 17 bands and 17 equal parts of the time. A step is the difference between a band
    and the next one. A bit says whether a step grows from one part of the time to the next.
    """
    mel_JM = mel_TMS.astype(np.float32).transpose(0, 2, 1).reshape(-1, mel_TMS.shape[1])
    change = np.diff(np.diff(_means(mel_JM, (17, 17)), axis=0), axis=1)
    return np.packbits(change > MIN_MEL_DIFFERENCE).tobytes()


def _means(values: np.ndarray, sizes: tuple[int, ...]) -> np.ndarray:
    """Means over sizes[k] equal stretches of axis k. Cells on a border are counted by their share."""
    for axis, size in enumerate(sizes):
        length = values.shape[axis]
        edges = np.linspace(0, length, size + 1)
        starts, ends, places = edges[:-1, None], edges[1:, None], np.arange(length)
        shares = np.clip(np.minimum(ends, places + 1) - np.maximum(starts, places), 0, None) * (size / length)
        values = np.moveaxis(np.tensordot(shares, values, axes=(1, axis)), 0, axis)
    return values
