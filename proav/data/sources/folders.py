"""Videos in local or remote folders: search, globs, and the meaning of folder and file names.

The names give label and split, see `DataConfig.layout`. No file is opened here. A folder of millions of files
is listed once, in pieces that become Arrow batches. Ids and the final split are decided in `finding.py`.
"""

import errno
import itertools
import json
import os
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs

from proav import storage
from proav.data.sources.names import NamesOnDisk
from proav.errors import UserError
from proav.text import one_form

VIDEO_SUFFIXES = (
    "3g2", "3gp", "asf", "avi", "dif", "divx", "dv", "dvr-ms", "f4v", "flv", "ismv", "m1v", "m2p", "m2t",
    "m2ts", "m2v", "m4v", "mj2", "mk3d", "mkv", "mov", "mp4", "mpe", "mpeg", "mpg", "mpv", "mts", "mxf",
    "nut", "ogm", "ogv", "qt", "rm", "rmvb", "tod", "tp", "trp", "ts", "vob", "vro", "webm", "wmv", "xvid",
)  # fmt: skip
"""Endings by which videos are found in folders and globs. A file that data.sources or a listing names itself
may have any ending.
"""

FOUND_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("path", pa.string()),
        ("labels", pa.list_(pa.string())),
        ("split", pa.string()),  # empty: not said
        ("start_seconds", pa.float64()),
        ("end_seconds", pa.float64()),  # null: to the end
        ("file_start_seconds", pa.float64()),
        ("num_bytes", pa.int64()),
        # rows of one group are never on both sides of a split; null: the key is the group
        ("group", pa.string()),
    ]
)
"""A source before its ids, label and split are decided."""
ROWS_PER_BATCH = 1 << 16
PASSED_OVER = b"proav.passed_over"
"""Metadata key of a table of sources: JSON, how many files of each unknown ending lie beside the videos."""

SPLIT_FOLDERS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "test", "testing", "eval"), "validation"),
}
"""Folder names that the layout split/label reads as splits, in upper or lower case."""
AIST_GENRES = {
    "BR": "Break", "PO": "Pop", "LO": "Lock", "MH": "Middle Hip-hop", "LH": "LA style Hip-hop",
    "HO": "House", "WA": "Waack", "KR": "Krump", "JS": "Street Jazz", "JB": "Ballet Jazz",
}  # fmt: skip
"""Genres of the AIST Dance Video Database, by the code in a file's name."""
AIST_NAME = re.compile(
    r"(g(" + "|".join(AIST_GENRES) + r")_s[A-Z]{2}_)c(?:All|\d\d)((?:_d\d\d)+_m[A-Z]{2}\d_ch\d\d)"
)
"""genre_situation_camera_dancers_music_choreography, as in gBR_sBM_c01_d04_mBR0_ch01."""


def found_table(rows: Iterable[tuple], schema: pa.Schema = FOUND_SCHEMA) -> pa.Table:
    """Tuples in the order of the schema's fields as a table.

    Only one batch of them is held as Python objects.
    """
    rows, batches = iter(rows), []
    while batch := list(itertools.islice(rows, ROWS_PER_BATCH)):
        arrays = [
            pa.array(column, field.type)
            for column, field in zip(zip(*batch, strict=True), schema, strict=True)
        ]
        batches.append(pa.record_batch(arrays, schema=schema))
    return pa.Table.from_batches(batches, schema)


def find_in_folders(sources: Iterable[str], layout: str, *, labels: Sequence[str] = ()) -> pa.Table:
    """The videos below folders, files and globs as FOUND_SCHEMA. A file that is named twice is there twice.

    sources: folders, files and globs.
    layout: what the folders' names say, see `DataConfig.layout`.
    labels: the vocabulary. A folder train or test is a label if the vocabulary names it.

    Raises UserError if a source does not exist or holds no videos, if a name does not fit the layout, or if
    the layout takes folders of splits for labels.
    """
    places = [_place(source) for source in sources]
    by_root = _roots_are_splits(places)
    if by_root and layout == "label":
        they = "are" if all(place.source == place.root for place in places) else "are in"
        raise UserError(
            f"data.sources={[place.source for place in places]} {they} folders of splits, and their files "
            "would be mixed and split anew; write data.layout=split/label to keep the splits"
        )
    unread = _below_unread_splits(places, by_root=by_root)
    if unread and layout not in NAME_LAYOUTS:
        print(
            f"sources: SPLIT NOT READ: {len(unread):,} entries of data.sources, such as {unread[0]}, lie in "
            "folders named test, validation or the like; no split is read there, and they are split like "
            "others. data.layout=split/label expects the folder above; a listing's column split works for any"
        )
    others = PassedOver()
    rows = itertools.chain.from_iterable(_rows_of(place, layout, others, by_root=by_root) for place in places)
    found = others.noted_in(found_table(rows))
    if layout == "label":
        _refuse_splits_as_labels(found, labels)
    return one_key_a_file(found)


def one_key_a_file(found: pa.Table) -> pa.Table:
    """If a file lies below two roots, all its rows get the key and group of its first row.

    Raises UserError if two files would share a key.
    """
    paths = found.column("path").combine_chunks().dictionary_encode()
    codes = paths.indices.to_numpy()
    firsts = np.unique(codes, return_index=True)[1]
    for name in ("key", "group"):
        column = found.column(name).combine_chunks().take(pa.array(firsts[codes]))
        found = found.set_column(found.column_names.index(name), name, column)
    keys = found.column("key").take(pa.array(firsts)).combine_chunks().dictionary_encode()
    if len(keys.dictionary) < len(firsts):
        codes = keys.indices.to_numpy()
        shared = int(np.flatnonzero(np.bincount(codes) > 1)[0])
        one, other = sorted(
            paths.dictionary[int(index)].as_py() for index in np.flatnonzero(codes == shared)[:2]
        )
        raise UserError(
            f"{one} and {other} would both be called {keys.dictionary[shared]}; "
            "expected folders of different names: rename one, or give the folder above both"
        )
    return found


def files_below(folder: str) -> list[tuple[str, str, int]]:
    """(path relative to the folder, path, bytes) of every file that is not hidden, sorted.

    Empty if there is no such folder.
    """
    root = normal_path(folder)
    return sorted((relative, storage.join(root, relative), size) for relative, size in walk(folder))


def walk(folder: str) -> Iterator[tuple[str, int]]:
    """(path relative to the folder, bytes) of every file that is not hidden, in any order.

    Yields nothing if there is no such folder. Raises UserError for a local folder that may not be read.
    """
    if storage.is_remote(folder):
        filesystem, inner = storage.open_filesystem(folder)
        skip = len(inner.rstrip("/")) + 1
        for info in filesystem.get_file_info(pafs.FileSelector(inner, recursive=True, allow_not_found=True)):
            relative = info.path[skip:]
            if info.type == pafs.FileType.File and not any(
                part.startswith(".") for part in relative.split("/")
            ):
                yield relative, info.size or 0
        return
    unreadable: list[str] = []
    if os.path.isdir(normal_path(folder)):
        yield from _walk_local(normal_path(folder), "", frozenset(), unreadable)
    if unreadable:
        print(
            f"LEFT OUT: {len(unreadable)} files whose names are not UTF-8, such as {unreadable[0]!r}; "
            "rename them to use them"
        )


def normal_path(path: str) -> str:
    """A local path as an absolute one; a remote path as it is."""
    return path if storage.is_remote(path) else os.path.abspath(path.removeprefix("file://"))


def root_name(root: str) -> str:
    """The last part of a folder's path."""
    return normal_path(root).rstrip("/").rsplit("/", 1)[-1]


def is_video(path: str) -> bool:
    """Whether the file has the ending of a video, in upper or lower case."""
    _, dot, ending = path.rpartition(".")
    return bool(dot) and ending.lower() in VIDEO_SUFFIXES


def _walk_local(
    folder: str, prefix: str, above: frozenset, unreadable: list[str]
) -> Iterator[tuple[str, int]]:
    """(relative path, bytes) of each file below `folder`.

    folder: on this machine.
    prefix: its path relative to the folder where the walk began, empty or ending in /.
    above: (device, inode) of the folders above it, so that a circle of links ends.
    unreadable: receives the paths that are not UTF-8.

    What is deleted meanwhile is left out, as are links that lead nowhere. Raises UserError for a folder that
    may not be read.
    """
    try:
        status = os.stat(folder)
        here = (status.st_dev, status.st_ino)
        if here in above:  # a link to a folder above: its files are found there
            return
        entries = os.scandir(folder)
    except OSError as error:
        _raise_unless_gone(error, folder)
        return
    with entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            relative = prefix + entry.name
            try:
                is_folder, is_file = entry.is_dir(), entry.is_file()
                size = entry.stat().st_size if is_file else 0
            except OSError as error:
                _raise_unless_gone(error, entry.path if entry.is_symlink() else folder)
                continue
            if is_folder:
                yield from _walk_local(entry.path, relative + "/", above | {here}, unreadable)
            elif is_file:  # no pipes, no sockets, no links that lead nowhere
                if relative.isascii() or _is_utf8(relative):
                    yield relative, size
                else:
                    unreadable.append(relative)


def _raise_unless_gone(error: OSError, path: str) -> None:
    """Raises the error, or UserError for a folder or link that may not be read.

    Returns if there is nothing: it was deleted meanwhile, or a link leads nowhere or to itself.
    """
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
        return
    if isinstance(error, PermissionError):
        raise UserError(
            f"cannot search {path}: {error.strerror}; expected that all folders of videos may be read; "
            f"as the owner type: chmod -R a+rX {shlex.quote(path)}, or move the videos to a folder without it"
        ) from error
    raise error


def _is_utf8(name: str) -> bool:
    return not any("\udc80" <= letter <= "\udcff" for letter in name)


@dataclass(frozen=True)
class _Place:
    """One entry of data.sources: the file `name` in the folder `root`, or what matches `pattern` below it."""

    source: str
    root: str
    name: str = ""
    num_bytes: int = 0
    pattern: re.Pattern | None = None


def _place(given: str) -> _Place:
    if not given:
        raise UserError("data.sources has an empty entry; expected folders, files or globs: leave it out")
    source = NamesOnDisk().find(given)
    info = storage.file_info(source)
    if info.type == pafs.FileType.File:
        path = normal_path(source)
        folder, name = path.rstrip("/").rsplit("/", 1) if storage.is_remote(path) else os.path.split(path)
        return _Place(source, folder, name, info.size)
    if info.type == pafs.FileType.Directory:
        return _Place(source, source, pattern=re.compile(".*", re.DOTALL))
    if not re.search(r"[*?\[]", source):
        raise UserError(
            f"data.sources: no such file or folder: {source}; "
            "expected existing folders, files or globs, such as data.sources=[videos]"
        )
    scheme, _, inner = source.rpartition("://")
    parts = inner.split("/")
    first = next(index for index, part in enumerate(parts) if re.search(r"[*?\[]", part))
    root = (f"{scheme}://" if scheme else "") + (
        "/".join(parts[:first]) or ("/" if inner.startswith("/") else ".")
    )
    root = NamesOnDisk().find(root)
    if not storage.is_folder(root):
        raise UserError(f"data.sources={source}: no such folder: {root}")
    try:
        pattern = re.compile(_glob_to_regex(one_form("/".join(parts[first:]))))
    except re.error as error:
        raise UserError(
            f"data.sources={source}: {error.msg}; expected sets such as [0-9], [abc] or [!abc]: "
            "write the lower end of a range first"
        ) from None
    return _Place(source, root, pattern=pattern)


def _rows_of(place: _Place, layout: str, passed_over: "PassedOver", *, by_root: bool) -> Iterator[tuple]:
    """Rows of one entry of data.sources, as tuples of FOUND_SCHEMA.

    place: the entry.
    layout: see `DataConfig.layout`.
    passed_over: receives the files that are no videos.
    by_root: whether the given folders are splits.

    Raises UserError if the entry has no videos.
    """
    side = split_of_folder(root_name(place.root)) if by_root else ""
    if place.pattern is None:
        layout = layout if layout in NAME_LAYOUTS else "file"
        yield _row(place.root, place.name, place.num_bytes, layout, side)
        return
    num_videos, others, num_unread = 0, PassedOver(), 0
    for relative, size in walk(place.root):
        if not place.pattern.fullmatch(one_form(relative)):
            continue
        if is_video(relative):
            num_videos += 1
            num_unread += layout not in NAME_LAYOUTS and _has_unread_split(relative, layout)
            yield _row(place.root, relative, size, layout, side)
        else:
            others.add(relative)
    if not num_videos:
        there = f"{others.total()} other files are there" if others.total() else "the folder is empty"
        there = there if place.source == place.root else f"no videos match ({others.total()} other files do)"
        raise UserError(
            f"data.sources: no videos in {place.source}: {there}; looked for {', '.join(VIDEO_SUFFIXES)}"
            + (f"; what is there: {others.told()}" if others.total() else "")
        )
    passed_over.join(others)
    if num_unread:
        print(
            f"sources: SPLIT NOT READ: {num_unread:,} videos of {place.source} lie in folders named test, "
            f"validation or the like where data.layout={layout} reads no split; they are split like others. "
            "data.layout=split/label expects such folders at the top; a listing's column split works for any"
        )


class PassedOver:
    """Counts the files that do not have the ending of a video, by ending."""

    def __init__(self) -> None:
        self._endings: Counter[str] = Counter()

    def add(self, path: str) -> None:
        stem, dot, ending = path.rsplit("/", 1)[-1].rpartition(".")
        self._endings["." + ending.lower() if dot and stem else "none"] += 1

    def join(self, other: "PassedOver") -> None:
        self._endings += other._endings

    def total(self) -> int:
        return self._endings.total()

    def told(self) -> str:
        return told_endings(self._by_number())

    def noted_in(self, table: pa.Table) -> pa.Table:
        """The table with the counts in its metadata, for the summary of the run."""
        return table.replace_schema_metadata({PASSED_OVER: json.dumps(self._by_number())})

    def _by_number(self) -> dict[str, int]:
        return dict(sorted(self._endings.items(), key=lambda item: (-item[1], item[0])))


def passed_over(table: pa.Table) -> dict[str, int]:
    """How many files of each ending were passed over when the table was made, the most frequent first."""
    return json.loads((table.schema.metadata or {}).get(PASSED_OVER, b"{}"))


def told_endings(counts: dict[str, int]) -> str:
    """The counts as text, such as `.txt 9, .foo 5`; at most eight endings are named."""
    more = f" and {len(counts) - 8} endings more" if len(counts) > 8 else ""
    return ", ".join(f"{ending} {count:,}" for ending, count in list(counts.items())[:8]) + more


def split_of_folder(name: str) -> str:
    """The side of the split that a folder's name means; empty if none."""
    return SPLIT_FOLDERS.get(name.lower(), "")


def _roots_are_splits(places: Iterable[_Place]) -> bool:
    """Whether folders of both sides are given, such as data.sources=[set/train,set/test]."""
    return len({split_of_folder(root_name(place.root)) for place in places} - {""}) == 2


def _below_unread_splits(places: Sequence[_Place], *, by_root: bool) -> list[str]:
    """The entries in folders of the validation side that nothing reads, if others are in those of training.

    Folders above all entries do not count. by_root: whether the roots' own names are read.
    """
    paths = [normal_path(place.root).split("/") for place in places]
    num_common = len(os.path.commonprefix(paths))
    sides = [{split_of_folder(folder) for folder in path[num_common:]} for path in paths]
    if not {"train", "validation"} <= set().union(*sides):
        return []
    return [
        place.source
        for place, side in zip(places, sides, strict=True)
        if "validation" in side and not (by_root and split_of_folder(root_name(place.root)))
    ]


def _has_unread_split(relative: str, layout: str) -> bool:
    """Whether a folder has the name of a split, but the layout does not look for one at that depth."""
    folders = relative.split("/")[:-1]
    first = 1 if layout == "label" or (folders and split_of_folder(folders[0])) else 0
    return any(split_of_folder(folder) == "validation" for folder in folders[first:])


def _refuse_splits_as_labels(found: pa.Table, vocabulary: Sequence[str]) -> None:
    """Raises UserError if folders that would become labels have names of splits.

    "train" is also a vehicle: it is refused only if all folders have names of splits. A name in the
    vocabulary is always a label.
    """
    labels = set(pc.unique(found.column("labels").combine_chunks().flatten()).to_pylist())
    splits = sorted(label for label in labels if split_of_folder(label) and label not in vocabulary)
    if any(split_of_folder(label) == "validation" for label in splits) or (splits and labels == set(splits)):
        names = splits + sorted(labels - set(splits))
        shown = max(8, len(splits))
        some = ",".join(names[:shown] + ["..."] * (len(names) > shown))
        raise UserError(
            f"the folders {', '.join(splits)} of data.sources would be labels, and their files split anew; "
            "write data.layout=split/label if they are splits, "
            f"or name them in data.labels=[{some}] if they are labels"
        )


def _glob_to_regex(pattern: str) -> str:
    """A glob as a regular expression: `**` crosses folders, `*` and `?` do not, [abc] and [!abc] are sets.

    A ] that comes first in a set belongs to it. A [ that no ] closes stands for itself.
    """
    tokens = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    pieces = re.findall(r"\*\*/|\*\*|\*|\?|\[[!^]?+\]?+[^\]/]*\]|[^*?\[]+|\[", pattern)
    return "".join(
        tokens.get(piece)
        or (_set_to_regex(piece[1:-1]) if piece[0] == "[" and len(piece) > 1 else re.escape(piece))
        for piece in pieces
    )


def _set_to_regex(inside: str) -> str:
    """The set of a glob, without its brackets, as a regular expression. A set never matches /."""
    negated = inside[0] in "!^"
    ends = re.findall(r"(.)(?:-(.))?", inside[negated:], re.DOTALL)
    ranges = (re.escape(low) + (f"-{re.escape(high)}" if high else "") for low, high in ends)
    return f"(?!/)[{'^' if negated else ''}{''.join(ranges)}]"


def _row(root: str, relative: str, size: int, layout: str, side: str) -> tuple:
    """A tuple of FOUND_SCHEMA for one file.

    root: the folder that was given.
    relative: the file's path below it.
    size: of the file, in bytes.
    layout: see `DataConfig.layout`.
    side: the root's split, for files whose folders below the root name none.

    Raises UserError if the name does not fit the layout.
    """
    key, group = f"{root_name(root)}/{relative}", None
    folders, labels, split = [one_form(folder) for folder in relative.split("/")[:-1]], (), side
    if layout == "label":
        labels = folders[:1]
    elif layout == "split/label":
        named = split_of_folder(folders[0]) if folders else ""
        labels, split = folders[1:2] if named else folders[:1], named or side
    elif layout in NAME_LAYOUTS:
        try:
            labels, group = NAME_LAYOUTS[layout](relative.rsplit("/", 1)[-1])
        except ValueError as error:
            raise UserError(
                f"data.layout={layout}: {relative} of {root} is not named as {error}; "
                "use data.layout=label for folders that are named by label"
            ) from None
    return key, storage.join(normal_path(root), relative), labels, split, 0.0, None, 0.0, size, group


def _read_aist_name(name: str) -> tuple[list[str], str]:
    found = AIST_NAME.search(name)
    if not found:
        raise ValueError(
            "AIST++ names its videos; expected genre, situation, camera, dancer, music "
            "and choreography, such as gBR_sBM_c01_d04_mBR0_ch01.mp4"
        )
    return [AIST_GENRES[found[2]]], aist_sequence(found)


def aist_sequence(name: re.Match) -> str:
    """The name of a performance without its camera, such as gBR_sBM_cAll_d04_mBR0_ch01."""
    return f"{name[1]}cAll{name[3]}"


NAME_LAYOUTS = {"aist": _read_aist_name}
"""Layouts that read file names: a function returns (labels, group) of a name, or raises ValueError."""
