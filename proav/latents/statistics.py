"""Mean and standard deviation of the stored latents, exact to the last bit.

They do not depend on the order of windows or on how windows are grouped into shards. Floating-point sums
would. Latents are float16, so they are whole multiples of 2^-24, and their squares are whole multiples of
2^-48. They are summed as integers, and rounded once at the end. Not here: making latents (`encode.py`).

Letters: D latent channels, P planes, N plane side.
"""

import json
import math
from collections.abc import Iterable, Sequence
from fractions import Fraction

import numpy as np

from proav.data.store.parquet import open_parquet
from proav.errors import UserError
from proav.geometry import PLANE_NAMES

UNIT_BITS = 24
"""float16's smallest step is 2^-24."""
LOW_BITS = 17
"""A value in units is split into two parts, above and below 2^LOW_BITS."""
MAX_LATENT = 1024.0
"""Up to this value, sums of products of the two parts fit in 64 bits. Planes have about unit mean square."""
MIN_STD = 1e-3
"""Least standard deviation. Without it, a channel that is constant would be divided by zero."""


def shard_sums(path: str) -> dict:
    """{"num_windows", "sums"} of a finished shard.

    sums is JSON of the joint planes of the training windows: "count", the number of values in a channel;
    "totals", their sums [P][D] in units of 2^-24; "squares", the sums of their squares [P][D] in units of
    2^-48. Raises UserError if a value is not a number within MAX_LATENT.
    """
    file, num_windows, count, totals, squares = open_parquet(path), 0, 0, 0, 0
    for batch in file.iter_batches(batch_size=64, columns=["split", "joint", "shape"]):
        num_windows += batch.num_rows
        for split, joint, shape in zip(
            batch["split"].to_pylist(), batch["joint"], batch["shape"].to_pylist(), strict=True
        ):
            if split != "train":
                continue
            total_PD, square_PD = plane_sums(
                np.frombuffer(joint.as_buffer(), np.float16).reshape(shape), path
            )
            count, totals, squares = count + shape[2] * shape[3], totals + total_PD, squares + square_PD
    lists = {name: np.asarray(values).tolist() for name, values in (("totals", totals), ("squares", squares))}
    return {"num_windows": num_windows, "sums": json.dumps({"count": count, **lists})}


def plane_sums(stack_DPNN: np.ndarray, origin: str) -> tuple[np.ndarray, np.ndarray]:
    """Sums of the values and of their squares, Python integers [P][D], in units of 2^-24 and 2^-48.

    stack_DPNN: float16.
    origin: the file, for the message of UserError if a value is not a number within MAX_LATENT.
    """
    values_PDNN = stack_DPNN.astype(np.float64).swapaxes(0, 1)
    if not (np.abs(values_PDNN) <= MAX_LATENT).all():
        raise UserError(
            f"{origin} holds latents that are no numbers within {MAX_LATENT:g}: "
            "its MDSA checkpoint cannot be used; train it anew"
        )
    units_PDNN = (values_PDNN * 2.0**UNIT_BITS).astype(np.int64)
    high, low = units_PDNN >> LOW_BITS, units_PDNN & ((1 << LOW_BITS) - 1)
    totals, high_high, high_low, low_low = (  # sums over a row fit in 64 bits, over a plane perhaps not
        terms.sum(-1).astype(object).sum(-1) for terms in (units_PDNN, high * high, high * low, low * low)
    )
    return totals, high_high * 2 ** (2 * LOW_BITS) + high_low * 2 ** (LOW_BITS + 1) + low_low


def merge_statistics(
    parts: Iterable[dict], *, scale: str = "channel", channels: Sequence[int] | None = None
) -> dict:
    """{"num_windows", "planes", "mean", "std"} over all shards; mean and standard deviation are [P][D].

    parts: of `shard_sums`.
    scale: "channel": a standard deviation for each channel. "plane": one for all channels of a plane, the
        root of their mean variance.
    channels: how many channels each plane really has; None: all.

    Raises UserError if there are no training windows.
    """
    num_windows, count, totals, squares = 0, 0, 0, 0
    for part in parts:
        sums = json.loads(part["sums"])
        num_windows += part["num_windows"]
        if sums["count"]:
            count += sums["count"]
            totals, squares = (
                totals + np.array(sums["totals"], object),
                squares + np.array(sums["squares"], object),
            )
    if not count:
        raise UserError(
            "no training windows to take latent statistics from; "
            "check data.validation_fraction and the listing's split column"
        )
    mean = [[float(Fraction(total, count << UNIT_BITS)) for total in plane] for plane in totals]
    variance = [
        [
            float(Fraction(count * square - total**2, (count << UNIT_BITS) ** 2))
            for total, square in zip(*plane, strict=True)
        ]
        for plane in zip(totals, squares, strict=True)
    ]
    if scale == "plane":
        own = channels or [len(values) for values in variance]
        pooled = [sum(map(Fraction, values)) / count for values, count in zip(variance, own, strict=True)]
        variance = [[float(value)] * len(values) for value, values in zip(pooled, variance, strict=True)]
    std = [[math.sqrt(max(value, MIN_STD**2)) for value in values] for values in variance]
    return {"num_windows": num_windows, "planes": list(PLANE_NAMES), "mean": mean, "std": std}
