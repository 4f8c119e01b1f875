"""The rows of `generate.listing` as samples of a plan, and the words that settings share with its columns.

A mistake in the listing is reported with its row before anything is made. What a row names may still not fit
(a file that is broken, a span beyond the clip): that is found out when the row is made (`making.py`). Not
here: samples without a listing (`plan.py`), what a cell of vectors may hold (`proav/generation`).
"""

import functools
from collections.abc import Iterable, Iterator

from proav import storage
from proav.config import Config
from proav.data.sources.folders import normal_path
from proav.data.sources.listings import listed_path
from proav.data.sources.names import NamesOnDisk
from proav.data.sources.strict_tables import TableForm, seconds_of, table_records, text_of, whole_of
from proav.diffusion.tasks import TASKS
from proav.errors import UserError
from proav.generation.given_files import streams_read
from proav.generation.given_vectors import told_of
from proav.generation.inputs import STREAMS, frames_needed
from proav.generation.long_clips import WHOLE_FILE, check_length, wanted_frames, windows_needed
from proav.runs.checkpoint import Checkpoint
from proav.text import LABEL_SEPARATOR, one_form

SETTING = "generate.listing"


def checked_seconds(config: Config, task: str, seconds: float | str) -> float | str:
    """`seconds`, if a model of this configuration makes clips of that length by a task; else UserError.

    For a task that continues a given clip, the clip is taken to have only the frames that a window needs.
    config: of the model.
    seconds: or WHOLE_FILE, for a task that is given a stream for the whole clip.
    """
    if seconds != WHOLE_FILE:
        num_frames = wanted_frames(config, seconds, 1)
        there = max(frames_needed(config, task).values()) if TASKS[task].extends else 0
        num_windows, shown = windows_needed(config, task, num_frames, there), f"{seconds:g}"
    elif TASKS[task].given:
        num_windows, shown = 2, seconds  # files may need more than one window
    else:
        raise UserError(
            f"seconds={seconds}: task={task} is given no picture or sound for the whole clip; "
            "expected a number, or task=a2v or v2a"
        )
    try:
        check_length(config, task, num_windows)
    except UserError as error:
        raise UserError(f"seconds={shown}: {error}") from error
    return seconds


def known_labels(checkpoint: Checkpoint) -> dict[str, str]:
    """{label in its comparable form (`text.one_form`): label} of a checkpoint."""
    return {one_form(label): label for label in checkpoint.labels}


def table_form(task: str, vectors: Iterable[str] = ()) -> TableForm:
    """The columns of generate.listing for a task. vectors: names of those that the model takes."""
    given, spanned, vectors = ("path", "start_seconds"), ("span", "stream"), tuple(vectors)
    # `labels` is refused rather than unused: a listing that names its labels so would lose them all
    beside, of_sources = ("label", "seconds", "seed", "count", *vectors), ("end_seconds", "split")
    if not streams_read(task):
        columns, required, unused = beside, (), (*given, *spanned, *of_sources)
    elif not TASKS[task].asks_span:
        columns, required, unused = (*given, *beside), ("path",), (*spanned, *of_sources)
    else:
        columns, required, unused = (*given, *spanned, *beside), ("path", "span"), of_sources
    takes = f"takes the vectors {', '.join(vectors)}" if vectors else "takes no vectors, so no texts"
    note = f"; the model {takes} (stdit.vectors)"
    return TableForm(SETTING, columns, required, unused, "generate", "", note, may_lose=False)


def listed_rows(config: Config, checkpoint: Checkpoint, default: str | None) -> Iterator[dict]:
    """Rows of `plan.wanted_rows` by a listing. default: label of rows without one."""
    names = NamesOnDisk()
    listing = names.find(config.generate.listing)
    if not storage.exists(listing):
        raise UserError(f"{SETTING}: no such file: {listing}; expected a CSV or Parquet file")
    labels, shapes = known_labels(checkpoint), checkpoint.config.stdit.vector_shapes
    length = functools.cache(functools.partial(checked_seconds, checkpoint.config, config.generate.task))
    form = table_form(config.generate.task, shapes)
    # data.other_columns is also for data.listing, where the same names may mean nothing
    others = [name for name in config.data.other_columns if name not in form.columns]
    root, index = normal_path(listing).rsplit("/", 1)[0], 0
    for number, record in enumerate(table_records(listing, others, form), 1):
        try:
            row = {"seed": config.seed, "label": label_of(text_of(record.get("label")), labels) or default}
            row |= told_of(record, shapes, config.generate.encoders)
            if form.required:
                row["given"] = _given(record, root, names)
            if TASKS[config.generate.task].asks_span:
                row |= {"span": _span(record.get("span")), "stream": _stream(record.get("stream"))}
            seconds = _seconds(record.get("seconds"))
            if seconds is not None or config.generate.seconds is not None:
                row["seconds"] = length(config.generate.seconds if seconds is None else seconds)
            seed = whole_of(record.get("seed"), "seed", least=0)
            count = whole_of(record.get("count"), "count", least=1) or 1
        except UserError as error:
            raise UserError(f"{SETTING}={listing}, row {number}: {error}") from error
        for copy in range(count):
            own = {} if seed is None else {"seed": seed, "number": copy}
            yield {"index": index} | row | own
            index += 1
    if not index:
        raise UserError(f"{SETTING}={listing} has no rows; expected one for each input")


def _given(record: dict, root: str, names: NamesOnDisk) -> dict:
    path = text_of(record.get("path"))
    if not path:
        raise UserError("the path is empty")
    start = seconds_of(record.get("start_seconds"), "start_seconds") or 0.0
    return {"path": listed_path(path, root, names), "start_seconds": start}


def _span(value: object) -> list[float] | str:
    """Begin and end in the cell of the column span: a list, or a text such as 0.4,0.8 or [0.4, 0.8].

    A cell that holds no two times is returned as text, and whoever makes the row says so.
    """
    text = str(value) if isinstance(value, list) else text_of(value)
    parts = value if isinstance(value, list) else text.removeprefix("[").removesuffix("]").split(",")
    try:
        times = [seconds_of(part, "span") for part in parts]
    except UserError:
        return text
    return times if len(times) == 2 and None not in times else text


def _stream(value: object) -> str:
    """The cell of the column stream: what is made in the span."""
    stream = text_of(value) or "both"
    if stream not in STREAMS:
        raise UserError(f"stream={stream!r}; expected one of {', '.join(STREAMS)}, or nothing")
    return stream


def _seconds(value: object) -> float | str | None:
    """The cell of the column seconds; None if it is missing."""
    try:
        return WHOLE_FILE if text_of(value) == WHOLE_FILE else seconds_of(value, "seconds")
    except UserError as error:
        raise UserError(f"{error}, or {WHOLE_FILE}") from error


def label_of(text: str, labels: dict[str, str]) -> str | None:
    """The checkpoint's spelling of a label, or of several with ; between them; None for an empty text."""
    if not text:
        return None
    if (label := labels.get(one_form(text))) is not None:
        return label
    parts = [part.strip() for part in text.split(LABEL_SEPARATOR)]
    found = [labels.get(one_form(part)) for part in parts if part]
    if None in found or not found:
        known = ", ".join(labels.values()) or "none"
        raise UserError(f"label={text!r} is unknown to the checkpoint; expected one of: {known}")
    return LABEL_SEPARATOR.join(dict.fromkeys(found))
