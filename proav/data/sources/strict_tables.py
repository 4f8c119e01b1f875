"""Plain tables, CSV or Parquet, read as strictly as settings: lists of what to prepare, or of clips to make.

Each column of a table is used, reported as unused, or refused. A cell is missing if it is empty (CSV), or
null or NaN (Parquet). Zero and false are values. A CSV may begin with `# comments`. The rows are used by
`listings.py` and by `proav/generation/batch/listed.py`.
"""

import contextlib
import csv
import difflib
import io
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import get_args

import pyarrow as pa
import pyarrow.parquet as pq

from proav import storage
from proav.config import DataConfig
from proav.errors import UserError
from proav.text import LABEL_SEPARATOR, one_form

OTHER_FORMATS = get_args(DataConfig.model_fields["listing_format"].annotation)[2:]
"""Formats of listings besides auto and table."""
FOR_PEOPLE = ("licence", "license", "source", "attribution", "changes")
"""Columns that say where a clip comes from. A table may have them; proav does not use them."""
OFTEN_MEANT = {
    **dict.fromkeys(("file", "filename", "file_name", "video", "video_path"), "path"),
    **dict.fromkeys(("begin", "onset"), "start_seconds"),
    **dict.fromkeys(("stop", "offset"), "end_seconds"),
    **dict.fromkeys(("class", "class_name", "category", "tag", "tags"), "labels"),
    "subset": "split",
}
"""Other programs' names of our columns, for error messages."""
PANDAS_INDEX = re.compile(r"__index_level_\d+__")
"""The column of row numbers that pandas stores in Parquet; it says nothing about a clip and is left out."""
FOR_MISSING = ("nan", "<na>", "nat")
"""What programs write for a missing value, in upper or lower case."""
MAX_SECONDS = 1e9
"""Longest time in a cell, 31 years. Seeking counts microseconds in 64 bits, which end at 9.2e12 s."""
MAX_WHOLE = 2**64 - 1
"""Largest whole number in a cell: that of a Parquet column. Noise takes seeds of any size."""


@dataclass(frozen=True)
class TableForm:
    """The columns that a kind of listing has, and the words for messages about it.

    setting: the key that names the listing.
    columns: the columns that are used. Others are allowed only if they are in `unused`, FOR_PEOPLE or
        `other_columns`.
    required: the columns that must be there.
    unused: columns of other kinds of listings, reported as unused.
    job: begins the printed lines.
    hint: ends the message for a table that lacks a required column.
    note: follows their names in the message for unknown columns, unless all are near one of `columns`.
    may_lose: whether that message offers to leave a column unused although its name is near one of `columns`.
    """

    setting: str = "data.listing"
    columns: tuple[str, ...] = ("path", "start_seconds", "end_seconds", "labels", "split")
    required: tuple[str, ...] = ("path",)
    unused: tuple[str, ...] = ()
    job: str = "sources"
    hint: str = f"; other formats: data.listing_format={'|'.join(OTHER_FORMATS)}"
    note: str = ""
    may_lose: bool = True

    @property
    def expected(self) -> str:
        """What a table may have, for messages."""
        wanted = ", ".join(name for name in self.columns if name not in self.required)
        must = ", ".join(self.required)
        return f"expected {must} and optionally {wanted}" if must else f"expected some of {wanted}"


SOURCES = TableForm()
"""Listings of what to prepare."""


def is_parquet(listing: str) -> bool:
    """Whether the file has the ending of a Parquet file."""
    return listing.lower().endswith((".parquet", ".pq"))


@contextlib.contextmanager
def open_text(listing: str, setting: str = SOURCES.setting) -> Iterator[io.TextIOWrapper]:
    """The lines of a text file. Raises UserError if they are not UTF-8 or not CSV, or if it is a folder.

    setting: the key that names the file, for the message.
    """
    _refuse_folder(listing, setting)
    filesystem, inner = storage.open_filesystem(listing)
    try:
        with (
            filesystem.open_input_stream(inner) as stream,
            io.TextIOWrapper(stream, encoding="utf-8-sig", newline="") as lines,
        ):
            yield lines
    except (UnicodeDecodeError, csv.Error) as error:
        said = " ".join(str(error).split())
        expected = "expected text in UTF-8, or Parquet"
        if isinstance(error, csv.Error):
            expected = 'expected CSV in which quotes are closed, with "" for a quote within quotes'
        raise UserError(f"cannot read {setting}={listing}: {said}; {expected}") from error


def _refuse_folder(listing: str, setting: str) -> None:
    """Raises UserError for a folder. Spark and Ray write tables as folders of files."""
    if storage.is_folder(listing):
        raise UserError(f"{setting}={listing} is a folder; expected one CSV or Parquet file: name the file")


def without_comments(lines: Iterable[str], comments: list[str] | None = None) -> Iterator[str]:
    """The lines after the empty lines and comments at the head; `comments` receives those comments."""

    def at_head(line: str) -> bool:
        is_comment = line.lstrip().startswith("#")
        if is_comment and comments is not None:
            comments.append(line)
        return is_comment or not line.strip()

    return itertools.dropwhile(at_head, lines)


def table_records(
    listing: str, other_columns: Sequence[str] = (), form: TableForm = SOURCES
) -> Iterator[dict]:
    """The rows of a table as {column: cell}, only the columns that proav uses. A cell may be missing.

    other_columns: further columns that the table may have; they are not used.
    form: which columns are used.

    Raises UserError if the table cannot be read, if a column is unknown or named twice, or if a cell that
    belongs to no named column is not empty.
    """
    return (_parquet_records if is_parquet(listing) else _csv_records)(listing, other_columns, form)


def cell(value: object) -> str | bool | int | float | Decimal | None:
    """A cell's value; text loses the spaces around it. None if missing. Raises UserError for a list."""
    # the most frequent types first: tables have millions of rows
    if isinstance(value, str):
        return value.strip() or None
    if value is None:
        return None
    if isinstance(value, bytes):
        try:
            return value.decode().strip() or None
        except UnicodeDecodeError:
            raise UserError(f"{value[:20]!r} is not UTF-8; expected a text or a number") from None
    if not isinstance(value, (bool, int, float, Decimal)):
        raise UserError(f"{value!r} is {type(value).__name__}; expected a text or a number")
    return None if value != value else value  # only NaN differs from itself


def text_of(value: object) -> str:
    """A cell as text, empty if it is missing.

    2.0 becomes "2": pandas writes whole numbers as 2.0 if some values of the column are missing.
    """
    if isinstance(value, str):
        return value.strip()
    value = cell(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return "" if value is None else str(value)


def labels_of(value: object) -> list[str]:
    """The labels in a cell, each once, in the form NFC. Raises UserError for a text such as "nan"."""
    words = value if isinstance(value, list) else text_of(value).split(LABEL_SEPARATOR)
    labels = [one_form(text_of(word)) for word in words]
    for label in labels:
        check_not_missing(label, "labels", "a label")
    return list(dict.fromkeys(label for label in labels if label))


def check_not_missing(text: str, column: str, expected: str) -> None:
    """Raises UserError for a text such as "nan". expected: what the column holds, for the message."""
    if text.lower() in FOR_MISSING:
        raise UserError(
            f"{column}={text!r} is what programs write for a missing value; expected nothing or {expected}"
        )


def seconds_of(value: object, column: str) -> float | None:
    """The seconds in a cell; None if it is missing.

    Raises UserError for text, and for a number below 0 or above MAX_SECONDS.
    """
    value = cell(value)
    if value is None:
        return None
    try:
        seconds = -1.0 if isinstance(value, bool) or "_" in str(value) else float(value)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= MAX_SECONDS:
        raise UserError(
            f"{column}={_shortened(repr(value))}; expected seconds from 0 up to {MAX_SECONDS:,.0f}, "
            "or nothing"
        )
    return seconds


def whole_of(value: object, column: str, *, least: int) -> int | None:
    """The whole number in a cell; None if it is missing.

    3.0 is 3: pandas writes whole numbers as 3.0 if some values of the column are missing.
    Raises UserError for anything else, and for a number below `least` or above MAX_WHOLE.
    """
    text = text_of(value)
    if not text:
        return None
    number = re.fullmatch(r"0*([0-9]{1,20})(\.0*)?", text)  # 20 digits: Python reads at most 4,300
    if number is None or not least <= int(number[1]) <= MAX_WHOLE:
        raise UserError(
            f"{column}={_shortened(text)}; expected a whole number from {least} up to {MAX_WHOLE}, or nothing"
        )
    return int(number[1])


def _shortened(text: str) -> str:
    """The text for a message: its beginning if it is long."""
    return text if len(text) <= 40 else f"{text[:40]}... ({len(text):,} characters)"


def _csv_records(listing: str, other_columns: Sequence[str], form: TableForm) -> Iterator[dict]:
    with open_text(listing, form.setting) as lines:
        # strict: otherwise an unclosed quote would swallow the rows that follow
        rows = csv.reader(without_comments(lines), skipinitialspace=True, strict=True)
        names = [name.strip() for name in next(rows, [])]
        used = _used_columns(listing, [name for name in names if name], other_columns, form)
        places = [(name, names.index(name)) for name in used]
        nameless = [place for place, name in enumerate(names) if not name]
        number = 0
        for row in rows:
            if not row:
                continue
            number += 1
            if len(row) > len(names) or nameless:
                _check_nameless(row, names, f"{form.setting}={listing}, row {number}")
            yield {name: row[place] for name, place in places if place < len(row)}


def _check_nameless(row: list[str], names: list[str], where: str) -> None:
    """Raises UserError if a cell that belongs to no column is not empty. where: for the message."""
    for place, given in enumerate(row):
        if not given.strip() or (place < len(names) and names[place]):
            continue
        if place < len(names):
            raise UserError(
                f"{where}: {given!r} stands in column {place + 1}, which has no name; expected a name at its "
                "head, or no such column (pandas writes its row numbers: to_csv(index=False) leaves them out)"
            )
        raise UserError(
            f"{where}: {len(row)} cells for {len(names)} columns, {given!r} is in none of them; expected "
            f'quotes around a text with commas ("engine, idling"), or {LABEL_SEPARATOR} between labels'
        )


def _parquet_records(listing: str, other_columns: Sequence[str], form: TableForm) -> Iterator[dict]:
    _refuse_folder(listing, form.setting)
    filesystem, inner = storage.open_filesystem(listing)
    try:
        with filesystem.open_input_file(inner) as file, pq.ParquetFile(file) as parquet:
            names = [name for name in parquet.schema_arrow.names if not PANDAS_INDEX.fullmatch(name)]
            used = _used_columns(listing, names, other_columns, form)
            for batch in parquet.iter_batches(columns=used):
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and (error.errno is not None or storage.is_remote(listing)):
            raise  # of storage; errors of decoding a local file have no number
        said = " ".join(str(error).split())
        is_text = isinstance(error, UnicodeDecodeError)
        expected = "text in UTF-8" if is_text else "Parquet, or CSV under another name"
        raise UserError(f"cannot read {form.setting}={listing}: {said}; expected {expected}") from error


def _used_columns(
    listing: str, names: Sequence[str], other_columns: Sequence[str], form: TableForm
) -> list[str]:
    """The form's columns that the table has. Prints the unused ones; raises UserError for refused ones."""
    said_of = f"{form.setting}={listing}"
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"{said_of} has two columns {twice[0]}; expected each once: rename one")
    known = (*form.columns, *form.unused, *FOR_PEOPLE, *other_columns)
    unknown = [name for name in names if name not in known]
    near = {name: _nearest_column(name, names, form) for name in unknown}
    if missing := next((name for name in form.required if name not in names), None):
        meant = next(
            (f"; did you mean {missing} by {name}?" for name in unknown if near[name] == missing), ""
        )
        found = ", ".join(map(str, names)) or "nothing"
        apart = "; expected commas between columns" if len(names) == 1 and re.search("[;\t|]", found) else ""
        raise UserError(
            f"{said_of} has no column {missing}; found {found}{apart}{meant}; {form.expected}{form.hint}"
        )
    if unknown:
        said = ", ".join(name + (f" (did you mean {near[name]}?)" if near[name] else "") for name in unknown)
        left = [name for name in unknown if form.may_lose or not near[name]]
        quoted = (json.dumps(name, ensure_ascii=False) for name in left)
        words = ",".join(text[1:-1] if re.fullmatch(r'"[A-Za-z][\w-]*"', text) else text for text in quoted)
        those = "them" if left == unknown else ", ".join(left)
        note = "" if all(near.values()) else form.note
        unused = f", or write 'data.other_columns=[{words}]' to leave {those} unused" if left else ""
        raise UserError(
            f"{said_of} has columns that proav does not know: {said}{note}; {form.expected}; "
            f"rename them{unused}"
        )
    used = [
        name
        for name in form.columns
        if name in names and (name in form.required or name not in other_columns)
    ]
    unused = [name for name in names if name not in used]
    if unused:
        print(f"{form.job}: columns of {listing} that are not used: {', '.join(unused)}")
    return used


def _nearest_column(name: str, names: Sequence[str], form: TableForm) -> str | None:
    """The column that was probably meant, among those that the table does not have."""
    word, free = name.strip().lower(), [column for column in form.columns if column not in names]
    meant = OFTEN_MEANT.get(word)
    near = [column for column in free if column == meant or column.startswith(word + "_")]
    # a cutoff of 0.5 would find count near caption
    near = near or difflib.get_close_matches(word, free, n=1, cutoff=0.55)
    return near[0] if near else None
