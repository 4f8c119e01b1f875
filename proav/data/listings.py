"""Listings of what to prepare: plain tables, and those of AudioSet, VGGSound and AIST++ beside a folder of their videos.

The rows of a listing are read as a stream, and its folder of videos is listed once; what is listed and not there stays a row, with the path where
it was looked for, and is rejected when its turn comes. Formats as their authors publish them:

  table     CSV with a header or Parquet: path, and as wanted start_seconds, end_seconds, labels (several: with ; between), split
  audioset  `# comments`, then `video id, start_seconds, end_seconds, "mid,mid"`; the split is told by the file's name: eval_segments.csv is
            validation, balanced_train_segments.csv and unbalanced_train_segments.csv are train
  vggsound  no header: `video id,start,"label",train|test`; every clip is 10 s long, test is validation
  aist      one performance a line, gBR_sBM_cAll_d04_mBR0_ch01, in crossmodal_train.txt (train), crossmodal_val.txt and _test.txt (validation)
"""

import contextlib
import csv
import difflib
import functools
import io
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from proav import storage
from proav.config import DataConfig
from proav.data.clip_files import CLIP_SCHEMA, VIDEO_ID, find_clips, list_videos
from proav.data.folders import AIST_GENRES, AIST_NAME, aist_sequence, found_table, normal_path, one_key_a_file, root_name
from proav.errors import UserError

LABEL_SEPARATOR = ";"
"""Between several labels in a table's `labels` column; the first one of the vocabulary is the clip's label."""
TABLE_SPLITS = ("train", "validation")
VGGSOUND_SECONDS = 10.0
VGGSOUND_SPLITS = {"train": "train", "test": "validation"}


def read_listings(data: DataConfig) -> pa.Table:
    """The rows of all listings as FOUND_SCHEMA (proav/data/folders.py), those of a format in the order in which they are listed.

    Raises UserError: no such file, not readable, a row that cannot be, a format that needs data.videos or data.ontology.
    """
    paths, clips, videos = [], [], None
    for listing in data.listing:
        if not storage.exists(listing):
            raise UserError(
                f"data.listing: no such file: {listing}; expected a CSV or Parquet file with a column path, or a listing of AudioSet or VGGSound"
            )
        kind = _recognize(listing) if data.listing_format == "auto" else data.listing_format
        if kind == "table":
            part = found_table(_table_rows(listing, data.videos))
            paths.append(part)
        else:
            if data.videos is None:
                raise UserError(f"data.listing={listing} names videos without their paths; add data.videos=FOLDER, the folder where they are")
            videos = list_videos(data.videos) if videos is None else videos
            if kind == "aist":
                part = found_table(_aist_rows(listing, data.videos, videos))
                paths.append(part)
            else:
                read_row = _vggsound_row if kind == "vggsound" else _audioset_reader(listing, data.ontology)
                part = found_table(_clip_rows(listing, read_row), CLIP_SCHEMA)
                clips.append(part)
        if not part.num_rows:
            raise UserError(f"data.listing={listing} has no rows; expected one row a clip at least")
    found = [one_key_a_file(pa.concat_tables(paths))] if paths else []
    if clips:
        found.append(find_clips(pa.concat_tables(clips).combine_chunks(), data.videos, videos, named_by_id=data.named_by_id))
    return pa.concat_tables(found)


def _recognize(listing: str) -> str:
    """The format, told from the first line of the content."""
    if listing.lower().endswith((".parquet", ".pq")):
        return "table"
    with _open_text(listing) as lines:
        line = next((line.strip() for line in lines if line.strip()), "")
    fields = next(csv.reader([line], skipinitialspace=True), [])
    if "path" in fields:
        return "table"
    if AIST_NAME.fullmatch(line):
        return "aist"
    is_clip = len(fields) >= 3 and VIDEO_ID.fullmatch(fields[0]) and _is_number(fields[1])
    if is_clip and not _is_number(fields[2]):
        return "vggsound"
    return "audioset" if line.startswith("#") or is_clip else "table"


@contextlib.contextmanager
def _open_text(listing: str) -> Iterator[io.TextIOWrapper]:
    """The lines of a text file. Raises UserError where it is not UTF-8 or not CSV."""
    filesystem, inner = storage.open_filesystem(listing)
    try:
        with filesystem.open_input_stream(inner) as stream, io.TextIOWrapper(stream, encoding="utf-8-sig", newline="") as lines:
            yield lines
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot read data.listing={listing}: {' '.join(str(error).split())}; expected text in UTF-8, or Parquet") from error


def _table_rows(listing: str, videos: str | None) -> Iterator[tuple]:
    """Rows of a plain table as FOUND_SCHEMA."""
    root = normal_path(videos) if videos else normal_path(listing).rsplit("/", 1)[0]
    for number, record in enumerate(_table_records(listing), 1):
        try:
            yield _table_row(record, root)
        except UserError as error:
            raise UserError(f"data.listing={listing}, row {number}: {error}") from error


def _table_row(record: dict, root: str) -> tuple:
    given = str(record["path"] or "").strip()
    if not given:
        raise UserError("the path is empty")
    path = given if storage.is_remote(given) else normal_path(given) if os.path.isabs(given) else storage.join(root, given)
    path = path if storage.is_remote(path) else os.path.normpath(path)
    key = f"{root_name(root)}/{path[len(root) + 1 :]}" if path.startswith(root + "/") else path
    start, end = _stretch(record.get("start_seconds"), record.get("end_seconds"))
    split = str(record.get("split") or "").strip()
    if split and split not in TABLE_SPLITS:
        near = difflib.get_close_matches(split, TABLE_SPLITS, n=1, cutoff=0.2)
        raise UserError(f"split={split!r}; expected train, validation or nothing" + (f"; did you mean {near[0]}?" if near else ""))
    return key, path, _labels(record.get("labels")), split, start, end, 0.0, 0, None


def _table_records(listing: str) -> Iterator[dict]:
    if not listing.lower().endswith((".parquet", ".pq")):
        with _open_text(listing) as lines:
            records = csv.DictReader(lines, skipinitialspace=True)
            _check_columns(listing, records.fieldnames or [])
            yield from records
        return
    filesystem, inner = storage.open_filesystem(listing)
    try:
        with filesystem.open_input_file(inner) as file, pq.ParquetFile(file) as parquet:
            _check_columns(listing, parquet.schema_arrow.names)
            for batch in parquet.iter_batches():
                yield from batch.to_pylist()
    except pa.ArrowException as error:
        raise UserError(f"cannot read data.listing={listing}: {' '.join(str(error).split())}; expected Parquet, or CSV under another name") from error


def _check_columns(listing: str, names: Sequence[str]) -> None:
    if "path" not in names:
        raise UserError(
            f"data.listing={listing} has no column path; found {', '.join(map(str, names)) or 'nothing'}; "
            "expected path and, as wanted, start_seconds, end_seconds, labels, split; other formats: data.listing_format=audioset|vggsound|aist"
        )


def _clip_rows(listing: str, read_row: Callable[[list[str]], tuple]) -> Iterator[tuple]:
    """read_row(fields) of every line that is no comment."""
    with _open_text(listing) as lines:
        rows = csv.reader(lines, skipinitialspace=True)
        for row in rows:
            if row and not row[0].startswith("#"):
                try:
                    yield read_row(row)
                except UserError as error:
                    raise UserError(f"data.listing={listing}, line {rows.line_num}: {error}") from error


def _audioset_reader(listing: str, ontology: str | None) -> Callable[[list[str]], tuple]:
    name, names = listing.rsplit("/", 1)[-1].lower(), _read_ontology(listing, ontology)
    split = "validation" if name.startswith("eval") else "train" if "train" in name else ""
    return lambda row: _audioset_row(row, names, split)


def _audioset_row(row: list[str], names: dict[str, str], split: str) -> tuple:
    """A line of one of AudioSet's segment files as CLIP_SCHEMA."""
    if len(row) != 4:
        raise UserError(f'{len(row)} fields; expected 4: video id, start_seconds, end_seconds, "mid,mid"')
    try:
        labels = [names[mid] for mid in row[3].replace(" ", "").split(",")]
    except KeyError as error:
        raise UserError(
            f"the label {error} is not among the {len(names)} of data.ontology; expected AudioSet's ontology.json or class_labels_indices.csv, "
            "whole, of the same release"
        ) from None
    return _video_id(row[0]), *_stretch(row[1], row[2]), labels, split


def _vggsound_row(row: list[str]) -> tuple:
    """A line of VGGSound's file as CLIP_SCHEMA."""
    if len(row) != 4 or row[3] not in VGGSOUND_SPLITS:
        wrong = f"{len(row)} fields" if len(row) != 4 else f"the last field is {row[3]!r}"
        raise UserError(f'{wrong}; expected 4 fields: video id, start in seconds, "label", train or test')
    start, _ = _stretch(row[1], None)
    return _video_id(row[0]), start, start + VGGSOUND_SECONDS, [row[2]], VGGSOUND_SPLITS[row[3]]


def _aist_rows(listing: str, folder: str, videos: pa.Table) -> Iterator[tuple]:
    """Rows of a split file of AIST++ as FOUND_SCHEMA: every camera's video of every performance that it lists."""
    split = "train" if "train" in listing.rsplit("/", 1)[-1] else "validation"
    files: dict[str, list[tuple[str, int]]] = {}
    for relative, num_bytes in zip(videos.column("relative").to_pylist(), videos.column("num_bytes").to_pylist(), strict=True):
        name = AIST_NAME.search(relative.rsplit("/", 1)[-1])
        if name:
            files.setdefault(aist_sequence(name), []).append((relative, num_bytes))
    num_listed = num_missing = 0
    with _open_text(listing) as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            name = AIST_NAME.fullmatch(line.strip())
            if not name:
                raise UserError(f"data.listing={listing}, line {number}: {line.strip()!r} is no name of AIST++, such as gBR_sBM_cAll_d04_mBR0_ch01")
            sequence = aist_sequence(name)
            num_listed, num_missing = num_listed + 1, num_missing + (sequence not in files)
            for relative, num_bytes in files.get(sequence, [(f"{sequence}.mp4", 0)]):
                path = storage.join(normal_path(folder), relative)
                yield f"{root_name(folder)}/{relative}", path, [AIST_GENRES[name[2]]], split, 0.0, None, 0.0, num_bytes, sequence
    print(f"sources: {num_listed - num_missing:,} of the {num_listed:,} performances in {listing} are in {folder}, {num_missing:,} are not")


def _read_ontology(listing: str, ontology: str | None) -> dict[str, str]:
    """Names of AudioSet's labels by their ids."""
    expected = "expected AudioSet's ontology.json (a list of {id, name, ...}) or class_labels_indices.csv (index,mid,display_name)"
    if ontology is None:
        raise UserError(
            f"data.listing={listing} is AudioSet's, its labels are ids such as /m/09x0r; add data.ontology=FILE for their names: {expected}"
        )
    if not storage.exists(ontology):
        raise UserError(f"data.ontology: no such file: {ontology}; {expected}")
    try:
        text = storage.read_bytes(ontology).decode("utf-8-sig")
        if text.lstrip().startswith("["):
            return {entry["id"]: entry["name"] for entry in json.loads(text)}
        return {row["mid"]: row["display_name"] for row in csv.DictReader(io.StringIO(text), skipinitialspace=True)}
    except (UnicodeDecodeError, json.JSONDecodeError, csv.Error, KeyError, TypeError) as error:
        raise UserError(f"cannot read data.ontology={ontology}: {type(error).__name__} {error}; {expected}") from error


def _video_id(text: str) -> str:
    if not VIDEO_ID.fullmatch(text):
        raise UserError(f"{text!r} is no video id; expected 11 letters, digits, - and _")
    return text


def _labels(value: str | Iterable[str] | None) -> list[str]:
    words = value if isinstance(value, list) else str(value or "").split(LABEL_SEPARATOR)
    return list(dict.fromkeys(word for word in (str(word).strip() for word in words) if word))


@functools.lru_cache(1 << 16)  # in a listing of millions, most stretches begin where others do
def _stretch(start: object, end: object) -> tuple[float, float | None]:
    start_seconds, end_seconds = _seconds(start, "start_seconds") or 0.0, _seconds(end, "end_seconds")
    if end_seconds is not None and end_seconds <= start_seconds:
        raise UserError(f"end_seconds={end_seconds:g} is not after start_seconds={start_seconds:g}")
    return start_seconds, end_seconds


def _seconds(value: object, column: str) -> float | None:
    if value is None or value == "" or str(value).isspace():
        return None
    try:
        seconds = float(value)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise UserError(f"{column}={value!r}; expected seconds from 0 up, or nothing")
    return seconds


def _is_number(text: str) -> bool:
    return re.fullmatch(r"\s*\d+(\.\d*)?\s*", text) is not None
