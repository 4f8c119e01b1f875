"""Files of videos as they lie in folders, local or remote: search, globs, and what folders' and files' names say of label and split.

Nothing is opened here. A folder of millions of files is listed once, in pieces that become Arrow batches.
"""

import itertools
import os
import re
from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs

from proav import storage
from proav.errors import UserError

VIDEO_SUFFIXES = ("3gp", "asf", "avi", "flv", "m2ts", "m4v", "mkv", "mov", "mp4", "mpeg", "mpg", "mts", "mxf", "ogv", "ts", "webm", "wmv")
"""Files that are looked for in folders and globs; a file named by itself or in a listing may be called anything."""

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
        ("group", pa.string()),  # rows of one group are never on both sides of a split; null: the key is the group
    ]
)
"""What a source is before ids, label and split are settled."""
ROWS_PER_BATCH = 1 << 16

SPLIT_FOLDERS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "test", "testing", "eval"), "validation"),
}
"""What the layout split/label takes for a split, in any case."""
AIST_GENRES = {
    "BR": "Break",
    "PO": "Pop",
    "LO": "Lock",
    "MH": "Middle Hip-hop",
    "LH": "LA style Hip-hop",
    "HO": "House",
    "WA": "Waack",
    "KR": "Krump",
    "JS": "Street Jazz",
    "JB": "Ballet Jazz",
}
"""Genres of the AIST Dance Video Database by the code in a file's name."""
AIST_NAME = re.compile(r"(g(" + "|".join(AIST_GENRES) + r")_s[A-Z]{2}_)c(?:All|\d\d)((?:_d\d\d)+_m[A-Z]{2}\d_ch\d\d)")
"""genre_situation_camera_dancers_music_choreography, as in gBR_sBM_c01_d04_mBR0_ch01."""


def found_table(rows: Iterable[tuple], schema: pa.Schema = FOUND_SCHEMA) -> pa.Table:
    """Tuples in the order of the schema's fields as a table; only one batch of them is held as Python objects."""
    rows, batches = iter(rows), []
    while batch := list(itertools.islice(rows, ROWS_PER_BATCH)):
        arrays = [pa.array(column, field.type) for column, field in zip(zip(*batch, strict=True), schema, strict=True)]
        batches.append(pa.record_batch(arrays, schema=schema))
    return pa.Table.from_batches(batches, schema)


def find_in_folders(sources: Iterable[str], layout: str) -> pa.Table:
    """The videos below folders, files and globs as FOUND_SCHEMA; a file that is named twice is there twice.

    layout: what the folders' names say, see `DataConfig.layout`. Raises UserError: nothing there, no videos, a name that does not fit the layout.
    """
    return one_key_a_file(found_table(itertools.chain.from_iterable(_expand(source, layout) for source in sources)))


def one_key_a_file(found: pa.Table) -> pa.Table:
    """Gives the same file below two roots the key of the first root. Raises UserError where two files would share a key."""
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
        one, other = sorted(paths.dictionary[int(index)].as_py() for index in np.flatnonzero(codes == shared)[:2])
        raise UserError(
            f"{one} and {other} would both be called {keys.dictionary[shared]}; "
            "expected folders of different names: rename one, or give the folder above both"
        )
    return found


def files_below(folder: str) -> list[tuple[str, str, int]]:
    """(path relative to the folder, path, bytes) of every file that is not hidden, sorted; empty where there is no such folder."""
    root = normal_path(folder)
    return sorted((relative, storage.join(root, relative), size) for relative, size in walk(folder))


def walk(folder: str) -> Iterator[tuple[str, int]]:
    """(path relative to the folder, bytes) of every file that is not hidden, in no order; nothing where there is no such folder."""
    if storage.is_remote(folder):
        filesystem, inner = storage.open_filesystem(folder)
        skip = len(inner.rstrip("/")) + 1
        for info in filesystem.get_file_info(pafs.FileSelector(inner, recursive=True, allow_not_found=True)):
            relative = info.path[skip:]
            if info.type == pafs.FileType.File and not any(part.startswith(".") for part in relative.split("/")):
                yield relative, info.size or 0
        return
    unreadable: list[str] = []
    if os.path.isdir(normal_path(folder)):
        yield from _walk_local(normal_path(folder), "", frozenset(), unreadable)
    if unreadable:
        print(f"LEFT OUT: {len(unreadable)} files whose names are not UTF-8, such as {unreadable[0]!r}; rename them to use them")


def normal_path(path: str) -> str:
    return path if storage.is_remote(path) else os.path.abspath(path.removeprefix("file://"))


def root_name(root: str) -> str:
    return normal_path(root).rstrip("/").rsplit("/", 1)[-1]


def is_video(path: str) -> bool:
    return path.rsplit(".", 1)[-1].lower() in VIDEO_SUFFIXES


def _walk_local(folder: str, prefix: str, above: frozenset, unreadable: list[str]) -> Iterator[tuple[str, int]]:
    status = os.stat(folder)
    here = (status.st_dev, status.st_ino)
    if here in above:  # a link to a folder above: everything there has its place already
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            relative = prefix + entry.name
            if entry.is_dir():
                yield from _walk_local(entry.path, relative + "/", above | {here}, unreadable)
            elif entry.is_file():  # no broken links, pipes, sockets
                if relative.isascii() or _is_utf8(relative):
                    yield relative, entry.stat().st_size
                else:
                    unreadable.append(relative)


def _is_utf8(name: str) -> bool:
    return not any("\udc80" <= letter <= "\udcff" for letter in name)


def _expand(source: str, layout: str) -> Iterator[tuple]:
    """Rows of one entry of data.sources."""
    info = storage.file_info(source)
    if info.type == pafs.FileType.File:
        folder, name = source.rstrip("/").rsplit("/", 1) if "/" in source else (".", source)
        return iter([_row(folder, name, info.size, layout if layout == "aist" else "file")])
    if info.type == pafs.FileType.Directory:
        return _videos(source, source, re.compile(".*", re.DOTALL), layout)
    if not re.search(r"[*?\[]", source):
        raise UserError(f"data.sources: no such file or folder: {source}; expected existing folders, files or globs, such as data.sources=[videos]")
    scheme, _, inner = source.rpartition("://")
    parts = inner.split("/")
    first = next(index for index, part in enumerate(parts) if re.search(r"[*?\[]", part))
    root = (f"{scheme}://" if scheme else "") + ("/".join(parts[:first]) or ("/" if inner.startswith("/") else "."))
    if not storage.is_folder(root):
        raise UserError(f"data.sources={source}: no such folder: {root}")
    return _videos(source, root, re.compile(_glob_to_regex("/".join(parts[first:]))), layout)


def _videos(source: str, root: str, pattern: re.Pattern, layout: str) -> Iterator[tuple]:
    num_videos = num_others = 0
    for relative, size in walk(root):
        if not pattern.fullmatch(relative):
            continue
        if is_video(relative):
            num_videos += 1
            yield _row(root, relative, size, layout)
        else:
            num_others += 1
    if not num_videos:
        there = f"{num_others} other files are there" if num_others else "the folder is empty"
        there = there if source == root else f"no videos match ({num_others} other files do)"
        raise UserError(f"data.sources: no videos in {source}: {there}; looked for {', '.join(VIDEO_SUFFIXES)}")


def _glob_to_regex(pattern: str) -> str:
    """`**` crosses folders, `*` and `?` do not, [abc] is a set."""
    tokens = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    pieces = re.findall(r"\*\*/|\*\*|\*|\?|\[[^\]]*\]|[^*?\[]+|\[", pattern)
    return "".join(
        tokens.get(piece) or ("[^" + piece[2:] if piece.startswith("[!") else piece if len(piece) > 2 and piece[0] == "[" else re.escape(piece))
        for piece in pieces
    )


def _row(root: str, relative: str, size: int, layout: str) -> tuple:
    key, group = f"{root_name(root)}/{relative}", None
    folders, labels, split = relative.split("/")[:-1], (), ""
    if layout == "label":
        labels = folders[:1]
    elif layout == "split/label":
        split = SPLIT_FOLDERS.get(folders[0].lower(), "") if folders else ""
        labels = folders[1:2] if split else folders[:1]
    elif layout == "aist":
        name = AIST_NAME.search(relative.rsplit("/", 1)[-1])
        if not name:
            raise UserError(
                f"data.layout=aist: {relative} of {root} is not named as AIST++ names its videos; expected genre, situation, camera, dancer, music "
                "and choreography, such as gBR_sBM_c01_d04_mBR0_ch01.mp4; use data.layout=label for folders that are named by label"
            )
        labels, group = [AIST_GENRES[name[2]]], aist_sequence(name)
    return key, storage.join(normal_path(root), relative), labels, split, 0.0, None, 0.0, size, group


def aist_sequence(name: re.Match) -> str:
    """One performance, whichever camera filmed it: gBR_sBM_cAll_d04_mBR0_ch01."""
    return f"{name[1]}cAll{name[3]}"
