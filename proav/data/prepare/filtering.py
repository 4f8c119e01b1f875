"""Which segments of a data set are used: decided from the columns of its index alone.

Nothing is decoded again, so this takes seconds. The columns are measured by
`proav/signals/segment_scores.py` and `proav/signals/fingerprints.py`.

Letters: N segments, K candidate pairs.
"""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from proav.config import FilterConfig
from proav.signals.fingerprints import HASH_BYTES

REASONS = (
    "silent",
    "cancelled",
    "clipped",
    "black",
    "frozen",
    "out_of_sync",
    "shot_cuts",
    "duplicate",
    "near_duplicate",
)
"""The values of the column `dropped`, in the order in which they are tested. The first that applies counts.

Duplicates come last: if another filter leaves out one of two copies, the other copy stays.
"""
SUGGESTED = FilterConfig(
    min_rms_db=-60,
    max_clipped=0.01,
    max_black=0.5,
    max_frozen=0.5,
    min_sync=-0.1,
    avoid_shot_cuts=True,
    duplicates="near",
)
"""Thresholds to start from. The data set's page shows what each would leave out."""

NEAR_SHARE = 0.45
"""Two hashes are near if they differ in at most this share of the telling bits. The telling bits of a hash
are its ones or its zeros, whichever are fewer. Measured on real clips: at most 0.33 (picture) and 0.40
(sound) after encoding again at another size, quality, rate and level; at least 0.83 in sound for 22,000
unrelated pairs.
"""
MIN_TELLING_BITS = 16
"""A hash with fewer telling bits is of a black or flat picture, of silence or of a steady tone. It is never
near another.
"""
NUM_TABLES, KEY_BITS = 16, 24
"""A key is KEY_BITS random bits of a hash. Two segments are candidates if they agree in one of NUM_TABLES
keys of either hash. If 5 % of the bits of both hashes are flipped, 99.9 % of pairs are still candidates.
"""
MAX_NEIGHBOURS = 4
"""Segments of one key are ordered by the other hash, and each is compared with this many after it. So the
work is not quadratic if many segments share a key.
"""


def dropped(index: pa.Table, filters: FilterConfig, *, num_frames: int) -> pa.Array:
    """string [N]: "" if the segment is used, else the first of REASONS that applies.

    num_frames: the length of a window.
    """
    reasons = np.zeros(index.num_rows, np.int8)  # 0: used, else place in REASONS + 1
    for number, reason in enumerate(REASONS, start=1):
        open_rows = np.flatnonzero(reasons == 0)
        hit = open_rows[_applies(reason, index, filters, num_frames, open_rows)]
        reasons[hit] = number
    return pa.DictionaryArray.from_arrays(reasons, ["", *REASONS]).cast(pa.string())


def count_reasons(reasons: pa.Array | pa.ChunkedArray) -> dict[str, int]:
    """How many segments each reason leaves out, in the order of REASONS. Reasons with none are not named."""
    counts = {entry["values"]: entry["counts"] for entry in pc.value_counts(reasons).to_pylist()}
    return {reason: counts[reason] for reason in REASONS if counts.get(reason)}


def would_drop(index: pa.Table, filters: FilterConfig = SUGGESTED, *, num_frames: int) -> dict[str, int]:
    """How many of the segments each filter would leave out on its own."""
    rows = np.arange(index.num_rows)
    return {
        reason: int(np.count_nonzero(_applies(reason, index, filters, num_frames, rows)))
        for reason in REASONS
    }


def _applies(
    reason: str, index: pa.Table, filters: FilterConfig, num_frames: int, rows: np.ndarray
) -> np.ndarray:
    """bool [len(rows)]: which of these rows the filter of that reason leaves out.

    reason: one of REASONS.
    index: the data set's index, N rows.
    filters: the thresholds.
    num_frames: the length of a window.
    rows: int64, places in the index.
    """

    def column(name: str) -> np.ndarray:
        return index.column(name).to_numpy()[rows]

    nothing = np.zeros(len(rows), bool)
    match reason:
        case "silent" | "cancelled":
            if filters.min_rms_db is None:
                return nothing
            return (column("rms") < 10 ** (filters.min_rms_db / 20)) & (
                column("cancelled") == (reason == "cancelled")
            )
        case "clipped" | "black" | "frozen":
            most = getattr(filters, f"max_{reason}")
            return nothing if most is None else column(reason) > most
        case "out_of_sync":
            # written so that NaN is left out too
            return nothing if filters.min_sync is None else ~(column("sync") >= filters.min_sync)
        case "shot_cuts":
            return longest_shots(index)[rows] < num_frames if filters.avoid_shot_cuts else nothing
        case "duplicate":
            return (
                nothing
                if filters.duplicates == "keep"
                else repeats(index.column("checksum").take(pa.array(rows)))
            )
        case "near_duplicate":
            if filters.duplicates != "near":
                return nothing
            return near_repeats(
                *(
                    hash_words(index.column(name).take(pa.array(rows)))
                    for name in ("picture_hash", "sound_hash")
                )
            )
    raise AssertionError(reason)


def longest_shots(index: pa.Table) -> np.ndarray:
    """int64 [N]: frames of each segment's longest shot."""
    starts = index.column("shot_starts").combine_chunks()
    counts = np.asarray(pc.list_value_length(starts).fill_null(0), np.int64)
    frames = index.column("num_frames").to_numpy().astype(np.int64)
    ends = np.cumsum(counts + 1)  # a segment has its first shot, and one more for each cut
    firsts = ends - counts - 1
    begins = np.zeros(int(ends[-1]) if len(ends) else 0, np.int64)
    later = np.ones(len(begins), bool)
    later[firsts] = False
    begins[later] = starts.flatten().to_numpy()
    lengths = np.append(begins[1:], 0) - begins
    lengths[ends - 1] = frames - begins[ends - 1]
    return np.maximum.reduceat(lengths, firsts) if len(firsts) else np.zeros(0, np.int64)


def repeats(keys: pa.ChunkedArray) -> np.ndarray:
    """bool [N]: which values occur earlier in the column too."""
    codes = keys.combine_chunks().dictionary_encode().indices.to_numpy()
    _, first = np.unique(codes, return_index=True)
    repeated = np.ones(len(codes), bool)
    repeated[first] = False
    return repeated


def hash_words(column: pa.ChunkedArray) -> np.ndarray:
    """A column of 32-byte hashes as uint64 [N, 4]."""
    hashes = column.cast(pa.binary(HASH_BYTES)).combine_chunks()
    words = np.frombuffer(hashes.buffers()[1], np.uint64) if len(hashes) else np.zeros(0, np.uint64)
    return words.reshape(-1, HASH_BYTES // 8)[hashes.offset : hashes.offset + len(hashes)]


def near_repeats(pictures: np.ndarray, sounds: np.ndarray) -> np.ndarray:
    """bool [N]: segments whose picture and sound are both near those of an earlier one.

    Two segments also count as near if a chain of near segments connects them. Candidates come from
    locality-sensitive hashing; each pair is then checked exactly.

    pictures, sounds: hashes, uint64 [N, 4].
    """
    telling = np.stack([_telling_bits(pictures), _telling_bits(sounds)])
    rows = np.flatnonzero((telling >= MIN_TELLING_BITS).all(axis=0))
    hashes, limits = (pictures[rows], sounds[rows]), NEAR_SHARE * telling[:, rows]
    generator = np.random.default_rng(0)  # a fixed seed: the same index gives the same result
    groups = np.arange(len(rows))
    for _ in range(NUM_TABLES):
        keys = [_key(words, generator.choice(8 * HASH_BYTES, KEY_BITS, replace=False)) for words in hashes]
        for keyed, other in ((0, 1), (1, 0)):
            for pairs in _candidates(keys[keyed], keys[other]):
                pairs = pairs[:, groups[pairs[0]] != groups[pairs[1]]]
                # first the hash that did not give the key: it excludes more pairs
                for which in (other, keyed):
                    words, limit = hashes[which], limits[which]
                    differing = np.bitwise_count(words[pairs[0]] ^ words[pairs[1]]).sum(
                        axis=1, dtype=np.int64
                    )
                    pairs = pairs[:, differing <= np.minimum(limit[pairs[0]], limit[pairs[1]])]
                groups = _join(groups, pairs)
    repeated = np.zeros(len(pictures), bool)
    repeated[rows[groups < np.arange(len(rows))]] = True
    return repeated


def _telling_bits(words: np.ndarray) -> np.ndarray:
    ones = np.bitwise_count(words).sum(axis=1, dtype=np.int64)
    return np.minimum(ones, 8 * HASH_BYTES - ones)


def _key(words: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """uint64 [N]: the bits at these positions as a number."""
    key = np.zeros(len(words), np.uint64)
    for position in positions.tolist():
        key = (key << np.uint64(1)) | ((words[:, position // 64] >> np.uint64(position % 64)) & np.uint64(1))
    return key


def _candidates(keys: np.ndarray, second_keys: np.ndarray) -> Iterator[np.ndarray]:
    """Yields pairs of rows with the same key, int64 [2, K] at a time.

    The pairs are 1, 2, ... MAX_NEIGHBOURS apart in the order of the second key.
    """
    row_bits = max(1, (len(keys) - 1).bit_length())
    spare = 64 - KEY_BITS - row_bits
    assert spare >= 0, f"{len(keys)} segments"
    second = second_keys >> np.uint64(max(0, KEY_BITS - spare))
    ordered = np.sort(
        (keys << np.uint64(64 - KEY_BITS))
        | (second << np.uint64(row_bits))
        | np.arange(len(keys), dtype=np.uint64)
    )
    bucket = ordered >> np.uint64(64 - KEY_BITS)
    rows = (ordered & np.uint64((1 << row_bits) - 1)).astype(np.int64)
    for apart in range(1, min(MAX_NEIGHBOURS, len(rows) - 1) + 1):
        places = np.flatnonzero(bucket[apart:] == bucket[:-apart])
        if not len(places):
            return
        yield np.stack([rows[places], rows[places + apart]])


def _join(groups: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """`groups` after the groups of each pair are joined. A row's group is named by its smallest row."""
    while True:
        one, other = groups[pairs[0]], groups[pairs[1]]
        if np.array_equal(one, other):
            return groups
        least = np.minimum(one, other)
        groups = groups.copy()
        np.minimum.at(groups, one, least)
        np.minimum.at(groups, other, least)
        while not np.array_equal(groups[groups], groups):
            groups = groups[groups]
