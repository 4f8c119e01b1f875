"""The samples that a job makes: those that are wanted and not there yet.

A plan is made in one pass, in order of the index. It holds only the batches that are to be made, compressed.
So a listing of a million rows takes seconds and little memory. Not here: whether inputs exist, and their
decoding (`making.py`).
"""

import functools
import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from proav import storage
from proav.config import Config
from proav.data.sources.folders import normal_path
from proav.data.sources.listings import listed_path
from proav.data.sources.names import NamesOnDisk
from proav.data.sources.strict_tables import TableForm, seconds_of, table_records, text_of, whole_of
from proav.diffusion import make_process
from proav.diffusion.tasks import TASKS, check_trained
from proav.errors import UserError
from proav.generation.batch.manifest import ManifestDraft, SampleFiles, list_parts, sample_path, stored_rows
from proav.generation.given_files import streams_read
from proav.generation.given_vectors import told_of
from proav.generation.given_windows import given_rows
from proav.generation.inputs import frames_needed
from proav.generation.long_clips import WHOLE_FILE, check_length, wanted_frames, windows_needed
from proav.generation.sampling_settings import SamplingSettings, changed_settings
from proav.geometry import ClipGeometry
from proav.runs.checkpoint import Checkpoint
from proav.text import LABEL_SEPARATOR, one_form
from proav.vectors import check_vector_names

SETTING = "generate.listing"
COMPRESSION_LEVEL = 1
"""zlib's. Rows of a batch are much alike; more effort would gain little."""


@dataclass
class Plan:
    """What a job has to do.

    batches: `pack`ed rows of `wanted_rows`, at most generate.batch_size each, in order of the index.
    num_wanted: samples that are asked for.
    num_done: wanted samples that are there, or whose input could not be used.
    errors: how many inputs could not be used, by reason.
    num_replaced: samples to make anew: of other settings or another checkpoint, or their file is missing.
    """

    batches: list[bytes] = field(default_factory=list)
    num_wanted: int = 0
    num_done: int = 0
    errors: Counter = field(default_factory=Counter)
    num_replaced: int = 0


def pack(rows: Sequence[dict]) -> bytes:
    return zlib.compress(json.dumps(rows).encode(), COMPRESSION_LEVEL)


def unpack(packed: bytes) -> list[dict]:
    return json.loads(zlib.decompress(packed))


def make_plan(folder: str, wanted: Iterable[dict], shared: dict, batch_size: int) -> Plan:
    """Compares what is wanted with what is there, and merges the parts that a killed job has left.

    Rows of samples that will be replaced are removed from the manifest. Rows beyond the last wanted index
    stay. A batch begins at each multiple of batch_size. So a resumed job makes the same batches as one that
    was not stopped, and the same clips.

    folder: of the samples.
    wanted: of `wanted_rows`.
    shared: of `shared_values`.
    batch_size: most samples of a batch.
    """
    parts = list_parts(folder)
    plan, files, stored = Plan(), SampleFiles(folder), stored_rows(folder, parts)
    found, found_line = next(stored, (None, ""))
    batch: list[dict] = []
    with ManifestDraft(folder) as draft:
        for row in wanted:
            index = row["index"]
            if index % batch_size == 0 and batch:
                plan.batches.append(pack(batch))
                batch = []
            plan.num_wanted += 1
            is_there = found is not None and found["index"] == index
            if (
                is_there
                and _is_same(found, manifest_row(row, shared))
                and ("error" in found or found["path"] in files)
            ):
                plan.num_done += 1
                plan.errors.update([found["error"]] if "error" in found else [])
                draft.write(found_line)
            else:
                plan.num_replaced += is_there
                batch.append(row)
            if is_there:
                found, found_line = next(stored, (None, ""))
        if batch:
            plan.batches.append(pack(batch))
        while found is not None:
            draft.write(found_line)
            found, found_line = next(stored, (None, ""))
        if plan.num_replaced or parts:
            draft.publish(parts)
    return plan


def manifest_row(row: dict, shared: dict) -> dict:
    """The manifest's row of a sample: its own values, and those that all samples of a job share.

    Instead of given vectors it holds their checksums.
    """
    index, own = row["index"], dict(row)
    if "vectors" in row:
        digests = {name: hashlib.sha256(text.encode()) for name, text in row["vectors"].items()}
        own["vectors"] = {name: digest.hexdigest()[:16] for name, digest in digests.items()}
    return {"index": index, "path": sample_path("", index).lstrip("/"), **own, **shared}


def shared_values(config: Config, checkpoint: Checkpoint) -> dict:
    """The values of the manifest's rows that all samples of a job share.

    settings: as in `changed_settings`; missing if nothing differs from the checkpoint.
    """
    changed = changed_settings(checkpoint.config, config)
    return {
        **SamplingSettings.from_config(config).filled(make_process(checkpoint.config)).to_dict(),
        "precision": config.generate.precision,
        **({"encoders": config.generate.encoders} if config.generate.encoders else {}),
        **({"settings": changed} if changed else {}),
        "checkpoint": checkpoint.hash,
        "clips_trained": checkpoint.clips,
    }


def check_clips(config: Config, model: Config) -> None:
    """Raises UserError if a run asks for clips of another size, length or rate than its model makes.

    config: of the job. model: of the checkpoint.
    """
    for key, own in model.clip:
        asked = getattr(config.clip, key)
        if asked != own:
            raise UserError(
                f"clip.{key}={asked}: the model of this run makes clips with clip.{key}={own}. The planes of "
                "MDSA have the frames, rows and columns that it was trained on, so another size needs a "
                f"model of its own (another run_dir=DIR). Write clip.{key}={own}. generate.seconds=30 makes "
                "longer clips, window by window (docs/sampling.md)"
            )


def wanted_rows(config: Config, checkpoint: Checkpoint) -> Iterator[dict]:
    """The samples that a configuration asks for, in order of the index.

    A sample is a dict:

    index: from 0 up.
    seed: of the run, or of the listing's row.
    number: the noise is a function of (seed, number). It is missing unless the listing's row has a seed of
        its own: it then counts the row's samples from 0 up. Otherwise the index takes its place.
    label: of the listing's row, or else generate.label. Without a listing it is generate.label, or else that
        of the given window, which may be none. Without a window the checkpoint's labels take turns.
    seconds: the length of the clip, or WHOLE_FILE; missing if it is that of a window.
    given: {"path", "start_seconds"} of the file that is given, or {"segment_id", "start_frame"} of the window
        of the run's data; missing for a task that is given nothing.
    texts, vectors: those of the listing's row, see `given_vectors.py`; missing if it has none.

    Raises UserError for a mistake in the listing, for an unknown label, and for a task that the checkpoint
    was not trained for or that takes no listing.
    """
    settings = config.generate
    check_trained(settings.task, checkpoint.config)
    check_vector_names(settings.encoders, checkpoint.config.stdit.vector_shapes)
    try:
        label = _label(settings.label or "", known_labels(checkpoint))
    except UserError as error:
        raise UserError(f"generate.{error}") from None
    if settings.listing is not None:
        if TASKS[settings.task].asks_span:
            raise UserError(
                f"generate.task={settings.task} takes no {SETTING}, which has no spans; without it, windows "
                "of the run's data are given, with spans as in training"
            )
        yield from _listed_rows(config, checkpoint, label)
        return
    shared = {}
    if settings.seconds is not None:
        _check_windows_last(config, checkpoint.config)
        try:
            shared = {"seconds": checked_seconds(checkpoint.config, settings.task, settings.seconds)}
        except UserError as error:
            raise UserError(f"generate.{error}") from None
    if streams_read(settings.task):
        for index, row in enumerate(given_rows(config, checkpoint)):
            yield {"index": index, "seed": config.seed} | row | ({"label": label} if label else {}) | shared
        return
    labels = [label] if label is not None else list(checkpoint.labels) or [None]
    for index in range(settings.num_samples):
        yield {"index": index, "seed": config.seed, "label": labels[index % len(labels)]} | shared


def _check_windows_last(config: Config, model: Config) -> None:
    """Raises UserError if the clips to make are longer than the windows that are given to them.

    config: of the job. model: of the checkpoint.
    """
    settings, window = config.generate, ClipGeometry.from_config(model).seconds
    if not TASKS[settings.task].given:
        return
    if settings.seconds == WHOLE_FILE:
        raise UserError(f"generate.seconds={WHOLE_FILE} needs {SETTING}=FILE, which names the files")
    if settings.seconds > window:
        raise UserError(
            f"generate.seconds={settings.seconds:g}: windows given for generate.task={settings.task} have "
            f"{window:g} s; expected at most that, or files that last as long, by {SETTING}=FILE"
        )


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
    own, beside = ("path", "start_seconds"), ("label", "seconds", "seed", "count", *vectors)
    of_sources = ("end_seconds", "labels", "split")
    if streams_read(task):
        return TableForm(SETTING, (*own, *beside), ("path",), of_sources, "generate", "")
    return TableForm(SETTING, beside, (), (*own, *of_sources), "generate", "")


def _listed_rows(config: Config, checkpoint: Checkpoint, default: str | None) -> Iterator[dict]:
    """Rows of `wanted_rows` by a listing. default: label of rows without one."""
    names = NamesOnDisk()
    listing = names.find(config.generate.listing)
    if not storage.exists(listing):
        raise UserError(f"{SETTING}: no such file: {listing}; expected a CSV or Parquet file")
    labels, shapes = known_labels(checkpoint), checkpoint.config.stdit.vector_shapes
    length = functools.cache(functools.partial(checked_seconds, checkpoint.config, config.generate.task))
    form = table_form(config.generate.task, shapes)
    root, index = normal_path(listing).rsplit("/", 1)[0], 0
    for number, record in enumerate(table_records(listing, config.data.other_columns, form), 1):
        try:
            row = {"seed": config.seed, "label": _label(text_of(record.get("label")), labels) or default}
            row |= told_of(record, shapes, config.generate.encoders)
            if form.required:
                row["given"] = _given(record, root, names)
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


def _seconds(value: object) -> float | str | None:
    """The cell of the column seconds; None if it is missing."""
    try:
        return WHOLE_FILE if text_of(value) == WHOLE_FILE else seconds_of(value, "seconds")
    except UserError as error:
        raise UserError(f"{error}, or {WHOLE_FILE}") from error


def _label(text: str, labels: dict[str, str]) -> str | None:
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


def _is_same(found: dict, wanted: dict) -> bool:
    """Whether a sample is the wanted one. If a row of an earlier version lacks a setting, the default is
    assumed."""
    found = _OF_EARLIER_VERSIONS | found
    keys = wanted.keys() | {"number", "seconds", "texts", "vectors", "encoders", "settings"}
    return all(found.get(key) == wanted.get(key) for key in keys)


_OF_EARLIER_VERSIONS = SamplingSettings().to_dict() | {"precision": "fp32"}
