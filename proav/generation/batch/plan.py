"""The samples that a job makes: those that are wanted and not there yet.

A plan is made in one pass, in order of the index. It holds only the batches that are to be made, compressed.
So a listing of a million rows takes seconds and little memory. Not here: whether inputs exist, and their
decoding (`making.py`).
"""

import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from proav.config import Config
from proav.diffusion import DDPM, RectifiedFlow, make_process
from proav.diffusion.solvers import DEFAULTS
from proav.diffusion.tasks import TASKS, check_trained
from proav.errors import UserError
from proav.generation.batch.listed import SETTING, checked_seconds, known_labels, label_of, listed_rows
from proav.generation.batch.manifest import (
    OF_EARLIER_VERSIONS,
    ManifestDraft,
    SampleFiles,
    list_parts,
    sample_path,
    stored_rows,
)
from proav.generation.given_files import streams_read
from proav.generation.given_vectors import told_by_prompts
from proav.generation.given_windows import given_rows
from proav.generation.long_clips import WHOLE_FILE
from proav.generation.sampling_settings import SamplingSettings, changed_settings
from proav.geometry import ClipGeometry
from proav.runs.checkpoint import Checkpoint
from proav.vectors import check_vector_names

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


def make_plan(
    folder: str, wanted: Iterable[dict], shared: dict, batch_size: int, *, defaults: dict | None = None
) -> Plan:
    """Compares what is wanted with what is there, and merges the parts that a killed job has left.

    Rows of samples that will be replaced are removed from the manifest. Rows beyond the last wanted index
    stay. A batch begins at each multiple of batch_size. So a resumed job makes the same batches as one that
    was not stopped, and the same clips.

    folder: of the samples.
    wanted: of `wanted_rows`.
    shared: of `shared_values`.
    batch_size: most samples of a batch.
    defaults: of `unset_values`; None: a setting that is not set differs from its default spelled out.
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
                and _is_same(found, manifest_row(row, shared), defaults or {})
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


def unset_values(process: RectifiedFlow | DDPM) -> dict:
    """The values that a process takes for settings of the manifest's rows that are null."""
    shift = process.shift if isinstance(process, RectifiedFlow) else 1.0
    return {"solver": DEFAULTS[process.objective], "schedule_shift": shift}


def check_clips(config: Config, model: Config) -> None:
    """Raises UserError if a run asks for clips of another size, length or rate than its model makes.

    config: of the job. model: of the checkpoint.
    """
    for key, own in model.clip:
        asked = getattr(config.clip, key)
        if asked != own:
            raise UserError(
                f"clip.{key}={asked}: the model of this run makes clips with clip.{key}={own}. The planes of "
                "MDSA have the frames, rows and columns that it was trained on. Another size needs a model "
                "of its own (another run_dir=DIR), which can start from this one (mdsa.init_from, "
                f"stdit.init_from; docs/training.md). Write clip.{key}={own}. generate.seconds=30 makes "
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
        of the given window, which may be none. Without a window the checkpoint's labels take turns. If
        generate.prompts take turns, it is generate.label or none.
    seconds: the length of the clip, or WHOLE_FILE; missing if it is that of a window.
    given: {"path", "start_seconds"} of the file that is given, or {"segment_id", "start_frame"} of the window
        of the run's data; missing for a task that is given nothing.
    span, stream: of the listing's row, if the task asks for a span. A span is [begin, end] in seconds, or the
        text of a cell that holds no two times.
    texts, vectors: those of the listing's row, or the text of generate.prompts whose turn it is, see
        `given_vectors.py`; missing if there are none.

    Prints a line if a model that takes vectors is given none. Raises UserError for a mistake in the listing
    or in the prompts, for an unknown label, and for a task that the checkpoint was not trained for.
    """
    settings, shapes = config.generate, checkpoint.config.stdit.vector_shapes
    check_trained(settings.task, checkpoint.config)
    check_vector_names(settings.encoders, shapes)
    try:
        label = label_of(settings.label or "", known_labels(checkpoint))
    except UserError as error:
        raise UserError(f"generate.{error}") from None
    if settings.listing is not None:
        any_told = False
        for row in listed_rows(config, checkpoint, label):
            any_told = any_told or "texts" in row or "vectors" in row
            yield row
        if shapes and not any_told:
            print(
                f"generate: NO VECTORS: the model takes {', '.join(shapes)}, and no row of "
                f"{SETTING}={settings.listing} gives any. To give it some, fill a column of that name"
            )
        return
    prompted = told_by_prompts(settings.prompts, shapes, settings.encoders)
    _report_prompts(config, checkpoint.config)
    shared = {}
    if settings.seconds is not None:
        _check_windows_last(config, checkpoint.config)
        try:
            shared = {"seconds": checked_seconds(checkpoint.config, settings.task, settings.seconds)}
        except UserError as error:
            raise UserError(f"generate.{error}") from None
    own_label = {"label": label} if label or prompted else {}
    told = prompted or [{}]
    if streams_read(settings.task):
        for index, row in enumerate(given_rows(config, checkpoint)):
            told_now = told[index % len(told)]
            yield {"index": index, "seed": config.seed} | row | own_label | told_now | shared
        return
    labels = [label] if own_label else list(checkpoint.labels) or [None]
    for index in range(settings.num_samples):
        row = {"index": index, "seed": config.seed, "label": labels[index % len(labels)]}
        yield row | told[index % len(told)] | shared


def _report_prompts(config: Config, model: Config) -> None:
    """Prints a line if a model that takes vectors is given none, and one if some prompts have no turn.

    config: of the job, which has no listing. model: of the checkpoint.
    """
    settings, names = config.generate, ", ".join(model.stdit.vector_shapes)
    if names and not settings.prompts and not streams_read(settings.task):
        print(
            f"generate: NO VECTORS: the model takes {names}, and these clips are made without. To give it "
            f"texts, write generate.prompts=[TEXT,...], or {SETTING}=FILE with a column of that name"
        )
    if (unused := len(settings.prompts) - settings.num_samples) > 0:
        print(
            f"generate: the last {unused:,} of {len(settings.prompts):,} prompts have no turn: "
            f"generate.num_samples={settings.num_samples}"
        )


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


def _is_same(found: dict, wanted: dict, defaults: dict) -> bool:
    """Whether a sample is the wanted one. If a row of an earlier version lacks a setting, the default is
    assumed. defaults: of `unset_values`."""
    found = OF_EARLIER_VERSIONS | found
    may_lack = {"number", "seconds", "texts", "vectors", "encoders", "settings", "audio_guidance_scale"}
    return all(
        found.get(key) == wanted.get(key)
        or _effective(found, key, defaults) == _effective(wanted, key, defaults)
        for key in wanted.keys() | may_lack
    )


def _effective(row: dict, key: str, defaults: dict) -> object:
    """A value of a manifest's row; if it is not set, the value that then takes effect."""
    value = row.get(key)
    if value is not None:
        return value
    return row.get("guidance_scale") if key == "audio_guidance_scale" else defaults.get(key)
