"""What there is to prepare: folders, files, globs or listings become one Arrow table.

A row is a stretch of a source video, with its ids, labels and split. No video is opened here and nothing is
written. A missing or broken file is rejected later, with a reason, by `proav/data/prepare/unit.py`. All work
is done on columns: two million rows take seconds and a few hundred MB. Folders are read in `folders.py`,
listings in `listings.py`.

The format of ids never changes:
    key of a source: "<name of the root folder>/<path below it>", so that moving the root changes no id.
    root: the folder that was given. For a file: the folder it is in. For a glob: the part before the first
        wildcard. For a listing: its folder, or data.videos.
    exceptions: a listed path outside the root is its own key. A video of AudioSet or VGGSound has the key
        "youtube/<video id>", whatever its files are called.
    source id: the first 16 hexadecimal digits of SHA-256 of the key.
    segment id: the same digits of "<key>@<start in whole milliseconds>".
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from proav.config import Config
from proav.data.sources.folders import ROWS_PER_BATCH, find_in_folders, passed_over, told_endings
from proav.data.sources.listings import SPLITS, read_listings
from proav.errors import UserError

SOURCE_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("key", pa.string()),
        ("path", pa.string()),
        ("label", pa.string()),  # empty: none, or none of the vocabulary
        ("labels", pa.list_(pa.string())),  # all that are given
        ("split", pa.string()),
        ("start_seconds", pa.float64()),
        ("end_seconds", pa.float64()),  # null: to the end
        # where in the source its file begins: 30 if the file was cut out of a video at 30 s
        ("file_start_seconds", pa.float64()),
        ("num_bytes", pa.int64()),  # of the file, for units of work of equal size; 0 if not known
        ("digest", pa.string()),  # of everything that decides what a row becomes; the path is not part of it
    ]
)


@dataclass(frozen=True, slots=True)
class SourceRow:
    """A stretch of one source video: what to decode, its label and its split. Fields: SOURCE_SCHEMA."""

    id: str
    key: str
    path: str
    label: str = ""
    labels: tuple[str, ...] = ()
    split: str = ""
    start_seconds: float = 0.0
    end_seconds: float | None = None
    file_start_seconds: float = 0.0
    num_bytes: int = 0


def rows_of(sources: pa.Table) -> list[SourceRow]:
    """The rows of a table of sources, or of a part of it."""
    values = sources.drop_columns(["digest"]).to_pylist()
    return [SourceRow(**{**row, "labels": tuple(row["labels"])}) for row in values]


def source_id(key: str) -> str:
    """The id of the source with this key."""
    return _short_hash(key)


def segment_id(key: str, start_seconds: float) -> str:
    """The id of the segment that begins at this time in the source with this key."""
    return _short_hash(f"{key}@{round(start_seconds * 1000)}")


def find_sources(config: Config) -> pa.Table:
    """All stretches to prepare, each once, ordered by key and start, with labels and splits decided.

    Prints what is repeated, left out or not there.

    Returns a table of SOURCE_SCHEMA, one chunk a column; `folders.passed_over` reads its metadata. Raises
    UserError if nothing is configured, if a folder or file does not exist or holds no videos, if a listing
    cannot be read, if two files would have one key, if a source is in both splits, or if stretches overlap.
    """
    data = config.data
    if data.sources and data.listing:
        raise UserError(
            f"data.sources={list(data.sources)} and data.listing={list(data.listing)} are both given; "
            "expected one: add data.listing=null or data.sources=[]"
        )
    if not data.sources and not data.listing:
        raise UserError(
            "no videos are configured; write data.sources=[FOLDER] (folders, files or globs) or "
            "data.listing=FILE.csv"
        )
    if data.listing:
        found = read_listings(data)
    else:
        found = find_in_folders(data.sources, data.layout, labels=data.labels)
    notes = found.schema.metadata  # what was passed over
    if beside := passed_over(found):
        count = sum(beside.values())
        print(f"sources: PASSED OVER: {count:,} files without the ending of a video ({told_endings(beside)})")
    found = _drop_repeats(found, keep_first=data.conflicts == "first")
    label = _choose_labels(found.column("labels"), data.labels)
    split = _assign_splits(found, data.validation_fraction)
    columns = {name: found.column(name) for name in found.column_names}
    columns |= {"label": label, "split": split, "id": _ids(found.column("key"))}
    columns["digest"] = _digests(columns)
    sources = pa.table([columns[name] for name in SOURCE_SCHEMA.names], schema=SOURCE_SCHEMA).combine_chunks()
    sources = sources.replace_schema_metadata(notes)
    del found, columns, label, split
    # the driver runs for hours: give back the memory that sorting took
    pa.default_memory_pool().release_unused()
    return sources


def _drop_repeats(found: pa.Table, *, keep_first: bool) -> pa.Table:
    """Each stretch once, ordered by key and start. A stretch that is listed again adds only its labels.

    A row that names a split decides for all rows of its source. If rows of a source name different splits or
    overlap, UserError is raised. With keep_first, the rows listed later are left out instead.
    """
    end = pc.fill_null(found.column("end_seconds"), np.inf)
    order = pc.sort_indices(
        pa.table(
            {
                "key": found.column("key"),
                "start": found.column("start_seconds"),
                "end": end,
                "place": np.arange(found.num_rows),
            }
        ),
        sort_keys=[
            ("key", "ascending"),
            ("start", "ascending"),
            ("end", "ascending"),
            ("place", "ascending"),
        ],
    )
    found, place, end = found.take(order).combine_chunks(), order.to_numpy(), end.take(order).to_numpy()
    start, source = found.column("start_seconds").to_numpy(), _runs(found.column("key"))

    sides = pc.index_in(found.column("split"), value_set=pa.array(SPLITS)).fill_null(-1).to_numpy()
    side_of = np.full(source[-1] + 1 if len(source) else 0, -1)
    named = np.flatnonzero(sides >= 0)
    named = named[np.argsort(place[named])[::-1]]  # the row listed first is assigned last, so it counts
    side_of[source[named]] = sides[named]
    wrong_side = (sides >= 0) & (sides != side_of[source])
    if wrong_side.any() and not keep_first:
        row = int(np.flatnonzero(wrong_side)[0])
        one, other = (SPLITS[side] for side in (side_of[source[row]], sides[row]))
        raise UserError(
            f"{found.column('path')[row]} is listed for {one} and for {other}; "
            "expected a source on one side only, "
            "or data.conflicts=first to keep the side that is listed first"
        )
    same = (source[1:] == source[:-1]) & (start[1:] == start[:-1]) & (end[1:] == end[:-1])
    repeated = np.concatenate([[False], same]) if len(source) else np.zeros(0, bool)
    if wrong_side.any():
        repeated &= ~wrong_side
    found = _merge_labels(found, repeated)
    keep = ~(repeated | wrong_side)
    overlapping = _overlapping(keep, source, start, end, place, found, keep_first=keep_first)
    keep[overlapping] = False
    for count, what in (
        (
            int(repeated.sum()),
            "rows repeat a stretch that is listed already; each stretch is taken once, with the labels of "
            "all its rows",
        ),
        (int(wrong_side.sum()), "rows LEFT OUT: their video is listed for the other split before"),
        (len(overlapping), "rows LEFT OUT: they overlap with a stretch that is listed before"),
    ):
        if count:
            print(f"sources: {count:,} {what}")
    split = pa.array(["", *SPLITS]).take(pa.array(side_of[source] + 1))
    return found.set_column(found.column_names.index("split"), "split", split).filter(pa.array(keep))


def _overlapping(
    keep: np.ndarray,
    source: np.ndarray,
    start: np.ndarray,
    end: np.ndarray,
    place: np.ndarray,
    found: pa.Table,
    *,
    keep_first: bool,
):
    """Rows to leave out, so that the kept stretches of a source do not overlap. The first listed stay.

    All arrays have an entry for each row of `found`, sorted by source and start.

    keep: bool, rows that have been kept so far.
    source: int64, the number of the row's source.
    start, end: seconds; inf for an open end.
    place: where the row was listed.
    found: the rows, for the message.
    keep_first: if False, the first overlap raises UserError.
    """
    rows = np.flatnonzero(keep)
    # rows are sorted, so if any rows of a source overlap, two neighbours overlap
    meets = np.flatnonzero((source[rows[1:]] == source[rows[:-1]]) & (start[rows[1:]] < end[rows[:-1]]))
    if len(meets) and not keep_first:
        before, row = rows[meets[0]], rows[meets[0] + 1]
        until = "its end" if np.isinf(end[before]) else f"{end[before]:g} s"
        raise UserError(
            f"{found.column('path')[int(row)]} is listed from {start[before]:g} s to {until} and again from "
            f"{start[row]:g} s; expected stretches that do not overlap, or data.conflicts=first to keep the "
            "one that is listed first"
        )
    left_out = []
    for one in np.unique(source[rows[meets]]):
        first, last = np.searchsorted(source, [one, one + 1])
        kept: list[int] = []
        for row in sorted(np.flatnonzero(keep[first:last]) + first, key=lambda row: place[row]):
            if any(start[row] < end[other] and start[other] < end[row] for other in kept):
                left_out.append(row)
            else:
                kept.append(row)
    return np.array(left_out, np.int64)


def _merge_labels(found: pa.Table, repeated: np.ndarray) -> pa.Table:
    """Gives the first row of each repeated stretch the labels of all its rows."""
    merged: dict[int, dict[str, None]] = {}
    heads = (
        np.maximum.accumulate(np.where(repeated, 0, np.arange(len(repeated)))) if len(repeated) else repeated
    )
    labels = found.column("labels").combine_chunks()
    for row in np.flatnonzero(repeated):
        head = int(heads[row])
        merged.setdefault(head, dict.fromkeys(labels[head].as_py())).update(
            dict.fromkeys(labels[int(row)].as_py())
        )
    if not merged:
        return found
    source = np.arange(len(labels))
    source[list(merged)] = len(labels) + np.arange(len(merged))
    labels = pa.concat_arrays(
        [labels, pa.array([list(names) for names in merged.values()], labels.type)]
    ).take(pa.array(source))
    return found.set_column(found.column_names.index("labels"), "labels", labels)


def _choose_labels(labels: pa.ChunkedArray, vocabulary: tuple[str, ...]) -> pa.Array:
    """The first of each row's labels that is in the vocabulary, else an empty string.

    If the vocabulary is empty, the first label counts. Raises UserError if no row has a label of the
    vocabulary.
    """
    lists = labels.combine_chunks()
    names, rows = lists.flatten(), pc.list_parent_indices(lists).to_numpy()
    known = (
        np.flatnonzero(
            pc.is_in(names, value_set=pa.array(vocabulary, pa.string())).to_numpy(zero_copy_only=False)
        )
        if vocabulary
        else None
    )
    if vocabulary and not len(known):
        found = sorted(name for name in pc.unique(names).to_pylist() if name)
        raise UserError(
            f"data.labels={list(vocabulary)}: no source has one of these labels; found: "
            f"{', '.join(found[:12]) or 'no labels at all'}"
        )
    known = np.arange(len(names)) if known is None else known
    labelled, first = np.unique(rows[known], return_index=True)
    place = np.full(len(lists), -1)
    place[labelled] = known[first]
    return pc.fill_null(names.take(pa.array(np.maximum(place, 0), mask=place < 0)), "")


def _assign_splits(found: pa.Table, fraction: float) -> pa.Array:
    """Decides the split of the rows that name none.

    A group is a source, or all cameras' views of one dance. Its rows are validation if its hash, read as a
    number in [0, 1), is below `fraction`. If fraction > 0 and there are two groups or more, neither split
    stays empty: an empty validation split gets the group with the lowest hash, an empty train split the group
    with the highest. So the split is a function of the set of groups alone.
    """
    given = found.column("split").combine_chunks()
    undecided = np.flatnonzero(pc.equal(given, "").to_numpy(zero_copy_only=False))
    if not len(undecided):
        return given
    groups = (
        pc.coalesce(found.column("group"), found.column("key"))
        .take(pa.array(undecided))
        .combine_chunks()
        .dictionary_encode()
    )
    hashes = np.array([int(_short_hash(group), 16) for group in groups.dictionary.to_pylist()], np.uint64)
    is_validation = hashes / 2.0**64 < fraction
    named = set(pc.unique(given).to_pylist())
    if fraction > 0 and len(hashes) >= 2:
        if "validation" not in named and not is_validation.any():
            is_validation[np.argmin(hashes)] = True
        if "train" not in named and is_validation.all():
            is_validation[np.argmax(hashes)] = False
    sides = pc.index_in(given, value_set=pa.array(SPLITS)).fill_null(-1).to_numpy().copy()
    sides[undecided] = is_validation[groups.indices.to_numpy()]
    return pa.array(SPLITS).take(pa.array(sides))


def _runs(sorted_values: pa.ChunkedArray) -> np.ndarray:
    """0, 0, 1, 1, 1, 2, ...: the number of each row's run of equal values."""
    values = sorted_values.combine_chunks()
    if not len(values):
        return np.zeros(0, np.int64)
    changes = pc.not_equal(values[1:], values[:-1]).to_numpy(zero_copy_only=False)
    return np.concatenate([[0], np.cumsum(changes)])


def _ids(keys: pa.ChunkedArray) -> pa.Array:
    coded = keys.combine_chunks().dictionary_encode()
    return (
        pa.chunked_array([_hashes(batch) for batch in _batches(coded.dictionary)], pa.string())
        .combine_chunks()
        .take(coded.indices)
    )


def _digests(columns: dict) -> pa.ChunkedArray:
    """Hashes of key, label, split, labels and stretch; times in whole milliseconds."""
    start, end = (
        pc.round(pc.multiply(columns[name], 1000)).cast(pa.int64()).cast(pa.string())
        for name in ("start_seconds", "end_seconds")
    )
    labels = pc.binary_join(columns["labels"], "\x1f")
    text = pc.binary_join_element_wise(
        *(columns[name] for name in ("key", "label", "split")), labels, start, pc.fill_null(end, ""), "\x1e"
    )
    return pa.chunked_array([_hashes(batch) for batch in _batches(_one_chunk(text))], pa.string())


def _hashes(texts: pa.Array) -> pa.Array:
    return pa.array([_short_hash(text) for text in texts.to_pylist()], pa.string())


def _one_chunk(values: pa.Array | pa.ChunkedArray) -> pa.Array:
    return values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values


def _batches(values: pa.Array) -> Iterator[pa.Array]:
    for first in range(0, len(values), ROWS_PER_BATCH):
        yield values[first : first + ROWS_PER_BATCH]


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]
