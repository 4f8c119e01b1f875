"""What there is to prepare: folders, files, globs or a listing become rows, one a stretch of a source video, with ids, labels and splits.

No video is opened here and nothing is written; a file that turns out to be missing or broken is rejected later, with a reason.

Ids are a format, fixed for good. A source's key is "<name of the root folder>/<path below it>", where the root is the folder that was
given (for a file: the folder it is in; for a glob: the part before the first wildcard; for a listing: the listing's folder), so that
moving the root changes no id. A path of a listing that lies elsewhere is its own key. source id = the first 16 hexadecimal digits of
SHA-256 of the key; segment id = the same of "<key>@<start in whole milliseconds>".
"""

import csv
import difflib
import hashlib
import io
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from proav import storage
from proav.config import Config
from proav.errors import UserError

VIDEO_SUFFIXES = ("3gp", "asf", "avi", "flv", "m2ts", "m4v", "mkv", "mov", "mp4", "mpeg", "mpg", "mts", "mxf", "ogv", "ts", "webm", "wmv")
"""Files that are looked for in folders and globs; a file named by itself or in a listing may be called anything."""

SPLITS = ("train", "validation")
LABEL_SEPARATOR = ";"
"""Between several labels in a listing's `labels` column; the first one of the vocabulary is the clip's label."""


@dataclass(frozen=True)
class SourceRow:
    """A stretch of one source video: what to decode, and what is said of it."""

    id: str
    key: str
    path: str
    label: str = ""
    """Empty: none, or none of the vocabulary."""
    labels: tuple[str, ...] = ()
    """All labels given."""
    split: str = ""
    start_seconds: float = 0.0
    end_seconds: float | None = None
    num_bytes: int = 0
    """Size of the file, for even units of work; 0 where it is not known."""

    @property
    def digest(self) -> str:
        """Short hash of everything that decides what this row becomes; the path is not part of it."""
        return _short_hash(repr((self.key, self.label, self.split, self.start_seconds, self.end_seconds)))


def source_id(key: str) -> str:
    return _short_hash(key)


def segment_id(key: str, start_seconds: float) -> str:
    return _short_hash(f"{key}@{round(start_seconds * 1000)}")


def find_sources(config: Config) -> list[SourceRow]:
    """All rows to prepare, ordered by key and start, with labels and splits decided.

    Raises UserError: nothing configured, no such folder or file, no videos in it, an unreadable listing.
    """
    data = config.data
    if data.sources and data.listing:
        raise UserError(
            f"data.sources={list(data.sources)} and data.listing={data.listing} are both given; expected one: "
            "add data.listing=null or data.sources=[]"
        )
    if not data.sources and not data.listing:
        raise UserError("no videos are configured; write data.sources=[FOLDER] (folders, files or globs) or data.listing=FILE.csv")
    rows = _read_listing(data.listing) if data.listing else [row for source in data.sources for row in _expand(source)]
    rows = _check_unique(rows)
    rows = [replace(row, label=_choose_label(row.labels, data.labels)) for row in rows]
    if data.labels and not any(row.label for row in rows):
        found = sorted({label for row in rows for label in row.labels})
        raise UserError(f"data.labels={list(data.labels)}: no source has one of these labels; found: {', '.join(found[:12]) or 'no labels at all'}")
    return _assign_splits(rows, data.validation_fraction)


def _choose_label(labels: tuple[str, ...], vocabulary: tuple[str, ...]) -> str:
    return next((label for label in labels if not vocabulary or label in vocabulary), "")


def _assign_splits(rows: list[SourceRow], fraction: float) -> list[SourceRow]:
    """Sides for the rows that name none: validation where the id, read as a number in [0, 1), is below `fraction`.

    With two sources or more both sides get one (if 0 < fraction): should validation be empty, the lowest id goes there; should train be
    empty, the highest id goes there. So the split is a function of the set of ids alone.
    """
    undecided = sorted({row.id for row in rows if not row.split})
    named = {row.split for row in rows}
    sides = {identity: "validation" if int(identity, 16) / 16**16 < fraction else "train" for identity in undecided}
    present = named | set(sides.values())
    if fraction > 0 and len(undecided) >= 2:
        if "validation" not in present:
            sides[undecided[0]] = "validation"
        if "train" not in present:
            sides[undecided[-1]] = "train"
    return [row if row.split else replace(row, split=sides[row.id]) for row in rows]


def _check_unique(rows: Iterable[SourceRow]) -> list[SourceRow]:
    """Repeated rows once, in order. Raises UserError where two files share a key, a source is on both sides, or its stretches overlap."""
    by_stretch: dict[tuple, SourceRow] = {}
    by_key: dict[str, SourceRow] = {}
    paths: dict[str, str] = {}
    for row in rows:
        key = paths.setdefault(row.path, row.key)  # the same file below two roots: the first root names it
        row = row if key == row.key else replace(row, key=key, id=source_id(key))
        first = by_key.setdefault(key, row)
        if first.path != row.path:
            raise UserError(
                f"{first.path} and {row.path} would both be called {key}; "
                "expected folders of different names: rename one, or give the folder above both"
            )
        if row.split and first.split and row.split != first.split:
            raise UserError(f"{row.path} is listed for {first.split} and for {row.split}; expected a source on one side only")
        by_stretch.setdefault((key, row.start_seconds, row.end_seconds), row)
    ordered = sorted(by_stretch.values(), key=lambda row: (row.key, row.start_seconds))
    for before, row in zip(ordered, ordered[1:], strict=False):
        if before.key == row.key and (before.end_seconds is None or row.start_seconds < before.end_seconds):
            until = "its end" if before.end_seconds is None else f"{before.end_seconds:g} s"
            raise UserError(
                f"{row.path} is listed from {before.start_seconds:g} s to {until} and again from {row.start_seconds:g} s; "
                "expected stretches that do not overlap"
            )
    named = {row.key: row.split for row in ordered if row.split}  # one row naming a side decides for the whole source
    return [row if row.split else replace(row, split=named.get(row.key, "")) for row in ordered]


def _expand(source: str) -> list[SourceRow]:
    """One entry of data.sources."""
    info = storage.file_info(source)
    if info.type == pafs.FileType.File:
        folder, name = source.rstrip("/").rsplit("/", 1) if "/" in source else (".", source)
        return [_row(folder, name, source, info.size)]
    if info.type == pafs.FileType.Directory:
        files = files_below(source)
        videos = [file for file in files if _is_video(file[0])]
        if not videos:
            there = f"{len(files)} other files are there" if files else "the folder is empty"
            raise UserError(f"no videos in {source}: {there}; looked for {', '.join(VIDEO_SUFFIXES)}")
        return [_row(source, relative, path, size, label_from_folder=True) for relative, path, size in videos]
    if not re.search(r"[*?\[]", source):
        raise UserError(f"data.sources: no such file or folder: {source}; expected existing folders, files or globs, such as data.sources=[videos]")
    return _expand_glob(source)


def _expand_glob(source: str) -> list[SourceRow]:
    scheme, _, inner = source.rpartition("://")
    parts = inner.split("/")
    first = next(index for index, part in enumerate(parts) if re.search(r"[*?\[]", part))
    root = (f"{scheme}://" if scheme else "") + ("/".join(parts[:first]) or ("/" if inner.startswith("/") else "."))
    if not storage.is_folder(root):
        raise UserError(f"data.sources={source}: no such folder: {root}")
    pattern = re.compile(_glob_to_regex("/".join(parts[first:])))
    matches = [file for file in files_below(root) if pattern.fullmatch(file[0])]
    videos = [file for file in matches if _is_video(file[0])]
    if not videos:
        raise UserError(f"data.sources={source}: no videos match ({len(matches)} other files do); looked for {', '.join(VIDEO_SUFFIXES)}")
    return [_row(root, relative, path, size, label_from_folder=True) for relative, path, size in videos]


def _glob_to_regex(pattern: str) -> str:
    """`**` crosses folders, `*` and `?` do not, [abc] is a set."""
    tokens = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    pieces = re.findall(r"\*\*/|\*\*|\*|\?|\[[^\]]*\]|[^*?\[]+|\[", pattern)
    return "".join(
        tokens.get(piece) or ("[^" + piece[2:] if piece.startswith("[!") else piece if len(piece) > 2 and piece[0] == "[" else re.escape(piece))
        for piece in pieces
    )


def files_below(folder: str) -> list[tuple[str, str, int]]:
    """(path relative to the folder, path, bytes) of every file that is not hidden, sorted; empty where there is no such folder."""
    filesystem, inner = storage.open_filesystem(folder)
    infos = filesystem.get_file_info(pafs.FileSelector(inner, recursive=True, allow_not_found=True))
    skip = len(inner.rstrip("/")) + 1
    remote = storage.is_remote(folder)
    found = [(info.path[skip:], info.path, info.size or 0) for info in infos if info.type == pafs.FileType.File]
    files = [(relative, storage.join(folder, relative) if remote else path, size) for relative, path, size in found]
    return sorted(file for file in files if not any(part.startswith(".") for part in file[0].split("/")))


def _row(root: str, relative: str, path: str, size: int, *, label_from_folder: bool = False) -> SourceRow:
    key = f"{_root_name(root)}/{relative}"
    folders = relative.split("/")[:-1]
    labels = (folders[0],) if label_from_folder and folders else ()
    return SourceRow(id=source_id(key), key=key, path=_normal_path(path), labels=labels, num_bytes=size)


def _root_name(root: str) -> str:
    return _normal_path(root).rstrip("/").rsplit("/", 1)[-1]


def _normal_path(path: str) -> str:
    return path if storage.is_remote(path) else os.path.abspath(path.removeprefix("file://"))


def _is_video(path: str) -> bool:
    return path.rsplit(".", 1)[-1].lower() in VIDEO_SUFFIXES


def _read_listing(listing: str) -> list[SourceRow]:
    if not storage.exists(listing):
        raise UserError(f"data.listing: no such file: {listing}; expected a CSV or Parquet file with a column path")
    records = _listing_records(listing)
    if not records:
        raise UserError(f"data.listing={listing} has no rows")
    if "path" not in records[0]:
        raise UserError(
            f"data.listing={listing} has no column path; found {', '.join(map(str, records[0]))}; "
            "expected path and, as wanted, start_seconds, end_seconds, labels, split"
        )
    folder = _normal_path(listing).rsplit("/", 1)[0]
    return [_listing_row(record, folder, f"data.listing={listing}, row {number}") for number, record in enumerate(records, 1)]


def _listing_records(listing: str) -> list[dict]:
    content = storage.read_bytes(listing)
    try:
        if listing.lower().endswith((".parquet", ".pq")):
            return pq.read_table(io.BytesIO(content)).to_pylist()
        return list(csv.DictReader(io.StringIO(content.decode("utf-8-sig")), skipinitialspace=True))
    except (pa.ArrowException, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot read data.listing={listing}: {' '.join(str(error).split())}; expected CSV (UTF-8) or Parquet") from error


def _listing_row(record: dict, folder: str, where: str) -> SourceRow:
    given = str(record.get("path") or "").strip()
    if not given:
        raise UserError(f"{where}: the path is empty")
    path = given if storage.is_remote(given) else _normal_path(given) if os.path.isabs(given) else storage.join(folder, given)
    path = path if storage.is_remote(path) else os.path.normpath(path)
    key = f"{_root_name(folder)}/{path[len(folder) + 1 :]}" if path.startswith(folder + "/") else path
    start, end = _seconds(record, "start_seconds", where), _seconds(record, "end_seconds", where)
    if end is not None and end <= (start or 0.0):
        raise UserError(f"{where}: end_seconds={end:g} is not after start_seconds={start or 0.0:g}")
    split = str(record.get("split") or "").strip()
    if split and split not in SPLITS:
        near = difflib.get_close_matches(split, SPLITS, n=1, cutoff=0.2)
        raise UserError(f"{where}: split={split!r}; expected train, validation or nothing" + (f"; did you mean {near[0]}?" if near else ""))
    return SourceRow(
        id=source_id(key), key=key, path=path, labels=_labels(record.get("labels")), split=split, start_seconds=start or 0.0, end_seconds=end
    )


def _labels(value) -> tuple[str, ...]:
    words = value if isinstance(value, list) else str(value or "").split(LABEL_SEPARATOR)
    return tuple(dict.fromkeys(word for word in (str(word).strip() for word in words) if word))


def _seconds(record: dict, column: str, where: str) -> float | None:
    value = record.get(column)
    if value is None or str(value).strip() == "":
        return None
    try:
        seconds = float(value)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise UserError(f"{where}: {column}={value!r}; expected seconds from 0 up, or nothing")
    return seconds


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]
