"""Listings of what to prepare: plain tables, and the listings of AudioSet, VGGSound and AIST++.

The last three need a folder of their videos, see `clip_files.py`. Rows are read as a stream, and the folder
of videos is listed once. A listed file that does not exist stays a row, with the path that was tried. It is
rejected in preprocessing. Formats, as their authors publish them:

  table     CSV with a header, or Parquet: the column path, and optionally start_seconds, end_seconds, labels
            (several are separated by ;) and split; `strict_tables.py` reads it
  audioset  `# comments`, then `video id, start_seconds, end_seconds, "mid,mid"`; the file's name gives the
            split: eval_segments.csv is validation, balanced_train_segments.csv and
            unbalanced_train_segments.csv are train
  vggsound  no header: `video id,start,"label",train|test`; every clip is 10 s long, test is validation
  aist      one performance a line, such as gBR_sBM_cAll_d04_mBR0_ch01; crossmodal_train.txt is train,
            crossmodal_val.txt and crossmodal_test.txt are validation

In every format, lines at the head of a text that begin with # are comments.
"""

import csv
import difflib
import functools
import io
import json
import os
import re
from collections.abc import Callable, Iterator

import pyarrow as pa

from proav import storage
from proav.config import DataConfig
from proav.data.sources.clip_files import CLIP_SCHEMA, VIDEO_ID, find_clips, list_videos
from proav.data.sources.folders import (
    AIST_GENRES,
    AIST_NAME,
    aist_sequence,
    found_table,
    normal_path,
    one_key_a_file,
    root_name,
)
from proav.data.sources.names import NamesOnDisk
from proav.data.sources.strict_tables import (
    cell,
    is_parquet,
    labels_of,
    open_text,
    seconds_of,
    table_records,
    text_of,
    without_comments,
)
from proav.errors import UserError
from proav.text import one_form

SPLITS = ("train", "validation")
VGGSOUND_SECONDS = 10.0
VGGSOUND_SPLITS = {"train": "train", "test": "validation"}


def read_listings(data: DataConfig) -> pa.Table:
    """The rows of all listings as FOUND_SCHEMA (`folders.py`); rows of one format keep their order.

    Raises UserError if a listing does not exist or cannot be read, if a row is wrong, or if the format needs
    data.videos or data.ontology.
    """
    paths, clips, videos, names = [], [], None, NamesOnDisk()
    folder = names.find(data.videos) if data.videos else None
    for listing in map(names.find, data.listing):
        if not storage.exists(listing):
            raise UserError(
                f"data.listing: no such file: {listing}; expected a CSV or Parquet file with a column path, "
                "or a listing of AudioSet or VGGSound"
            )
        kind = _recognize(listing) if data.listing_format == "auto" else data.listing_format
        if kind == "table":
            part = found_table(_table_rows(listing, folder, data.other_columns, names))
            paths.append(part)
        else:
            if folder is None:
                raise UserError(
                    f"data.listing={listing} names videos without their paths; "
                    "add data.videos=FOLDER, the folder where they are"
                )
            videos = list_videos(folder) if videos is None else videos
            if kind == "aist":
                part = found_table(_aist_rows(listing, folder, videos))
                paths.append(part)
            else:
                ontology = data.ontology and names.find(data.ontology)
                read_row = _vggsound_row if kind == "vggsound" else _audioset_reader(listing, ontology)
                part = found_table(_clip_rows(listing, read_row), CLIP_SCHEMA)
                clips.append(part)
        if not part.num_rows:
            raise UserError(f"data.listing={listing} has no rows; expected one row a clip at least")
    found = [one_key_a_file(pa.concat_tables(paths))] if paths else []
    if clips:
        clips = pa.concat_tables(clips).combine_chunks()
        found.append(find_clips(clips, folder, videos, named_by_id=data.named_by_id))
    notes = None if videos is None else videos.schema.metadata  # what was passed over
    return pa.concat_tables(found).replace_schema_metadata(notes)


def _recognize(listing: str) -> str:
    """The format, by the first line that is no comment. AudioSet's comments name the column YTID."""
    if is_parquet(listing):
        return "table"
    with open_text(listing) as lines:
        comments: list[str] = []
        line = next(without_comments(lines, comments), "").strip()
    fields = next(csv.reader([line], skipinitialspace=True), [])
    if "path" in fields:
        return "table"
    if AIST_NAME.fullmatch(line):
        return "aist"
    is_clip = len(fields) >= 3 and VIDEO_ID.fullmatch(fields[0]) and _is_number(fields[1])
    if is_clip and not _is_number(fields[2]):
        return "vggsound"
    of_audioset = is_clip or (comments and not line) or any("YTID" in text for text in comments)
    return "audioset" if of_audioset else "table"


def _table_rows(
    listing: str, videos: str | None, other_columns: tuple[str, ...], names: NamesOnDisk
) -> Iterator[tuple]:
    """Rows of a plain table as tuples of FOUND_SCHEMA.

    listing: the table's path.
    videos: the folder to which the table's paths are relative; None: the table's own folder.
    other_columns: further columns that the table may have; they are not used.
    names: finds the files' names on disk.

    Raises UserError that names the row.
    """
    root = normal_path(videos) if videos else normal_path(listing).rsplit("/", 1)[0]
    for number, record in enumerate(table_records(listing, other_columns), 1):
        try:
            yield _table_row(record, root, names)
        except UserError as error:
            raise UserError(f"data.listing={listing}, row {number}: {error}") from error


def _table_row(record: dict, root: str, names: NamesOnDisk) -> tuple:
    given = text_of(record.get("path"))
    if not given:
        raise UserError("the path is empty")
    path = listed_path(given, root, names)
    key = f"{root_name(root)}/{path[len(root) + 1 :]}" if path.startswith(root + "/") else path
    start, end = _stretch(cell(record.get("start_seconds")), cell(record.get("end_seconds")))
    split = text_of(record.get("split"))
    if split and split not in SPLITS:
        near = difflib.get_close_matches(split, SPLITS, n=1, cutoff=0.2)
        raise UserError(
            f"split={split!r}; expected train, validation or nothing"
            + (f"; did you mean {near[0]}?" if near else "")
        )
    return key, path, labels_of(record.get("labels")), split, start, end, 0.0, 0, None


def listed_path(given: str, root: str, names: NamesOnDisk) -> str:
    """A listed path made absolute; relative paths are relative to `root`. names: finds names on disk."""
    path = (
        given
        if storage.is_remote(given)
        else normal_path(given)
        if given.startswith(("/", "file://"))
        else storage.join(root, given)
    )
    return path if storage.is_remote(path) else names.find(os.path.normpath(path))


def _clip_rows(listing: str, read_row: Callable[[list[str]], tuple]) -> Iterator[tuple]:
    """read_row(fields) of every line that is no comment. Raises UserError that names the line."""
    with open_text(listing) as lines:
        rows = csv.reader(lines, skipinitialspace=True, strict=True)  # else an open quote swallows rows
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
    """A line of one of AudioSet's segment files as a tuple of CLIP_SCHEMA."""
    if len(row) != 4:
        raise UserError(f'{len(row)} fields; expected 4: video id, start_seconds, end_seconds, "mid,mid"')
    try:
        labels = [names[mid] for mid in row[3].replace(" ", "").split(",")]
    except KeyError as error:
        raise UserError(
            f"the label {error} is not among the {len(names)} of data.ontology; expected AudioSet's complete "
            "ontology.json or class_labels_indices.csv, of the same release"
        ) from None
    return _video_id(row[0]), *_stretch(row[1], row[2]), labels, split


def _vggsound_row(row: list[str]) -> tuple:
    """A line of VGGSound's file as a tuple of CLIP_SCHEMA."""
    if len(row) != 4 or row[3] not in VGGSOUND_SPLITS:
        wrong = f"{len(row)} fields" if len(row) != 4 else f"the last field is {row[3]!r}"
        raise UserError(f'{wrong}; expected 4 fields: video id, start in seconds, "label", train or test')
    start, _ = _stretch(row[1], None)
    return _video_id(row[0]), start, start + VGGSOUND_SECONDS, [one_form(row[2])], VGGSOUND_SPLITS[row[3]]


def _aist_rows(listing: str, folder: str, videos: pa.Table) -> Iterator[tuple]:
    """Rows of a split file of AIST++ as tuples of FOUND_SCHEMA.

    Each listed performance gives a row for the video of every camera.
    """
    split = "train" if "train" in listing.rsplit("/", 1)[-1] else "validation"
    files: dict[str, list[tuple[str, int]]] = {}
    for relative, num_bytes in zip(
        videos.column("relative").to_pylist(), videos.column("num_bytes").to_pylist(), strict=True
    ):
        name = AIST_NAME.search(relative.rsplit("/", 1)[-1])
        if name:
            files.setdefault(aist_sequence(name), []).append((relative, num_bytes))
    num_listed = num_missing = 0
    with open_text(listing) as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip() or line.startswith("#"):
                continue
            name = AIST_NAME.fullmatch(line.strip())
            if not name:
                raise UserError(
                    f"data.listing={listing}, line {number}: {line.strip()!r} is no name of AIST++, "
                    "such as gBR_sBM_cAll_d04_mBR0_ch01"
                )
            sequence = aist_sequence(name)
            num_listed, num_missing = num_listed + 1, num_missing + (sequence not in files)
            for relative, num_bytes in files.get(sequence, [(f"{sequence}.mp4", 0)]):
                path = storage.join(normal_path(folder), relative)
                yield (
                    f"{root_name(folder)}/{relative}",
                    path,
                    [AIST_GENRES[name[2]]],
                    split,
                    0.0,
                    None,
                    0.0,
                    num_bytes,
                    sequence,
                )
    print(
        f"sources: {num_listed - num_missing:,} of the {num_listed:,} performances in {listing} are in "
        f"{folder}, {num_missing:,} are not"
    )


def _read_ontology(listing: str, ontology: str | None) -> dict[str, str]:
    """Names of AudioSet's labels by their ids. Raises UserError if the ontology is missing or unreadable."""
    expected = (
        "expected AudioSet's ontology.json (a list of {id, name, ...}) or class_labels_indices.csv "
        "(index,mid,display_name)"
    )
    if ontology is None:
        raise UserError(
            f"data.listing={listing} is a listing of AudioSet, whose labels are ids such as /m/09x0r; "
            f"add data.ontology=FILE for their names: {expected}"
        )
    if not storage.exists(ontology):
        raise UserError(f"data.ontology: no such file: {ontology}; {expected}")
    try:
        text = storage.read_bytes(ontology).decode("utf-8-sig")
        if text.lstrip().startswith("["):
            return {entry["id"]: one_form(entry["name"]) for entry in json.loads(text)}
        names = {}
        for row in csv.DictReader(io.StringIO(text), skipinitialspace=True, strict=True):
            if None in row:
                raise UserError(
                    f"data.ontology={ontology} has more cells than columns at {row['mid']}; expected quotes "
                    'around a name with commas, such as "Male speech, man speaking"'
                )
            names[row["mid"]] = one_form(row["display_name"])
        return names
    except (ValueError, csv.Error, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"cannot read data.ontology={ontology}: {type(error).__name__} {error}; {expected}"
        ) from error


def _video_id(text: str) -> str:
    if not VIDEO_ID.fullmatch(text):
        raise UserError(f"{text!r} is no video id; expected 11 letters, digits, - and _")
    return text


@functools.lru_cache(1 << 16, typed=True)  # in a listing of millions, most times occur many times
def _stretch(start: object, end: object) -> tuple[float, float | None]:
    start_seconds, end_seconds = seconds_of(start, "start_seconds") or 0.0, seconds_of(end, "end_seconds")
    if end_seconds is not None and end_seconds <= start_seconds:
        raise UserError(f"end_seconds={end_seconds:g} is not after start_seconds={start_seconds:g}")
    return start_seconds, end_seconds


def _is_number(text: str) -> bool:
    return re.fullmatch(r"\s*\d+(\.\d*)?\s*", text) is not None
