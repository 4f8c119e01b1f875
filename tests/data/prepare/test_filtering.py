"""Filters of segments: the reason of each, and none if all are off.

Duplicates that are planted among many segments are found, and nothing else is. The work stays small.
"""

import time

import numpy as np
import pyarrow as pa
import pytest

from proav.config import FilterConfig
from proav.data.prepare.filtering import (
    REASONS,
    SUGGESTED,
    _join,
    count_reasons,
    dropped,
    longest_shots,
    near_repeats,
    would_drop,
)

RNG = np.random.default_rng(0)


def hashes(count):
    return RNG.integers(0, 256, (count, 32), dtype=np.uint8)


def index_of(count, **columns):
    """An index of `count` segments of 100 frames that pass every filter and are unlike each other.

    columns: replace those of the same name.
    """
    values = {
        "num_frames": pa.array([100] * count, pa.int32()), "rms": [0.1] * count,
        "cancelled": [False] * count, "clipped": [0.0] * count, "black": [0.0] * count,
        "frozen": [0.0] * count, "sync": [0.2] * count,
        "shot_starts": pa.array([[]] * count, pa.list_(pa.int32())),
        "checksum": [f"{number:032x}" for number in range(count)],
        "picture_hash": [row.tobytes() for row in hashes(count)],
        "sound_hash": [row.tobytes() for row in hashes(count)],
    }  # fmt: skip
    return pa.table(values | columns)


def test_filters_are_off_by_default():
    bad = index_of(
        3,
        rms=[0.0] * 3,
        clipped=[1.0] * 3,
        black=[1.0] * 3,
        frozen=[1.0] * 3,
        sync=[float("nan")] * 3,
        checksum=["a"] * 3,
    )
    assert dropped(bad, FilterConfig(), num_frames=16).to_pylist() == [""] * 3
    assert dropped(bad.slice(0, 0), SUGGESTED, num_frames=16).to_pylist() == []


def test_each_filter_names_its_reason():
    index = index_of(
        8,
        rms=[0.1, 0.9e-3, 1e-3, 0.1, 0.1, 0.1, 0.1, 0.1],
        clipped=[0.0, 0.0, 0.0, 0.3, 0.0, 0.0, 0.0, 0.0],
        black=[0.5, 0.0, 0.0, 0.0, 0.51, 0.0, 0.0, 0.0],
        frozen=[0.5, 0.0, 0.0, 0.0, 1.0, 0.6, 0.0, 0.0],
        sync=[0.0, 0.2, 0.2, 0.2, 0.2, 0.2, -0.01, float("nan")],
    )
    filters = FilterConfig(min_rms_db=-60, max_clipped=0.2, max_black=0.5, max_frozen=0.5, min_sync=0.0)
    reasons = dropped(index, filters, num_frames=16)
    assert reasons.to_pylist() == [
        "",
        "silent",
        "",
        "clipped",
        "black",
        "frozen",
        "out_of_sync",
        "out_of_sync",
    ]
    assert count_reasons(reasons) == {"silent": 1, "clipped": 1, "black": 1, "frozen": 1, "out_of_sync": 2}
    alone = would_drop(index, filters, num_frames=16)
    assert list(alone) == list(REASONS) and alone["frozen"] == 2 and alone["near_duplicate"] == 0


def test_a_segment_needs_one_shot_of_a_window():
    starts = [[], [15, 30, 45, 60, 75, 90], [16], [84], [10, 85], [85]]
    index = index_of(
        6,
        num_frames=pa.array([100, 100, 100, 100, 100, 99], pa.int32()),
        shot_starts=pa.array(starts, pa.list_(pa.int32())),
    )
    assert longest_shots(index).tolist() == [100, 15, 84, 84, 75, 85]
    filters = FilterConfig(avoid_shot_cuts=True)
    assert dropped(index, filters, num_frames=16).to_pylist() == ["", "shot_cuts", "", "", "", ""]
    assert count_reasons(dropped(index.slice(1), filters, num_frames=85)) == {"shot_cuts": 4}


def test_of_copies_the_first_that_no_other_filter_leaves_out_stays():
    index = index_of(5, checksum=["a", "b", "a", "a", "b"], rms=[0.0, 0.1, 0.1, 0.1, 0.1])
    assert dropped(index, FilterConfig(duplicates="exact"), num_frames=16).to_pylist() == [
        "",
        "",
        "duplicate",
        "duplicate",
        "duplicate",
    ]
    louder = dropped(index, FilterConfig(duplicates="exact", min_rms_db=-60), num_frames=16)
    assert louder.to_pylist() == ["silent", "", "", "duplicate", "duplicate"]


def flipped(hash_bytes, count, *, seed=0):
    """The hash with `count` bits changed."""
    bits = np.unpackbits(hash_bytes)
    bits[np.random.default_rng(seed).choice(256, count, replace=False)] ^= 1
    return np.packbits(bits)


def test_near_needs_both_hashes_and_hashes_that_tell_something():
    pictures, sounds = hashes(8), hashes(8)
    pictures[1], sounds[1] = flipped(pictures[0], 12), flipped(sounds[0], 12, seed=1)
    pictures[2] = flipped(pictures[0], 4)  # the same picture with another sound
    sounds[3] = flipped(sounds[0], 4)
    pictures[4] = pictures[5] = 0  # black
    sounds[5] = sounds[4]
    sounds[6] = sounds[7] = 0  # silent
    pictures[6] = pictures[7]
    repeated = near_repeats(pictures.view(np.uint64), sounds.view(np.uint64))
    assert repeated.tolist() == [False, True] + [False] * 6


def test_chains_of_copies_leave_the_first():
    assert _join(np.arange(7), np.array([[5, 2, 3, 2], [6, 5, 4, 1]])).tolist() == [0, 1, 1, 3, 3, 1, 1]
    pictures, sounds = hashes(6), hashes(6)
    for number in (2, 4, 5):
        pictures[number], sounds[number] = (
            flipped(pictures[0], 10, seed=number),
            flipped(sounds[0], 10, seed=number),
        )
    index = index_of(
        6, picture_hash=[row.tobytes() for row in pictures], sound_hash=[row.tobytes() for row in sounds]
    )
    reasons = dropped(index, FilterConfig(duplicates="near"), num_frames=16).to_pylist()
    assert reasons == ["", "", "near_duplicate", "", "near_duplicate", "near_duplicate"]
    again = dropped(
        pa.concat_tables([index.slice(0, 3), index.slice(3)]), FilterConfig(duplicates="near"), num_frames=16
    )
    assert again.to_pylist() == reasons


@pytest.mark.parametrize("same", [False, True], ids=["spread", "one bucket"])
def test_planted_copies_among_many(same):
    """50,000 rows take a second or two.

    The work stays as small if all have one picture, as from a still camera. Then the sounds decide.
    """
    count = 50_000
    pictures, sounds = hashes(count), hashes(count)
    copies = np.arange(count - 500, count)
    for hash_rows in (pictures, sounds):
        hash_rows[copies] = hash_rows[copies - 30_000] ^ np.packbits(RNG.random((500, 256)) < 0.05, axis=1)
    if same:
        pictures[:] = pictures[0]
    began = time.process_time()
    repeated = near_repeats(pictures.view(np.uint64), sounds.view(np.uint64))
    assert time.process_time() - began < 20
    assert not repeated[: count - 500].any() and repeated[copies].mean() > 0.98
