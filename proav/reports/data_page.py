"""data/report.html of a run: its segments by source and label, what was rejected or left out, and scores.

It only reads what preprocessing left on disk; preprocessing decided what counts as rejected, silent or a
copy. Reports are ours, not the paper's. The clips to play are in `data_clips.py`.
"""

import math
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from proav import storage
from proav.config import Config
from proav.data.prepare.filtering import SUGGESTED, count_reasons, would_drop
from proav.data.sources.listings import SPLITS
from proav.data.store.shards import by_label
from proav.reports.data_clips import clip_sections, file_name
from proav.reports.kit.figures import histogram
from proav.reports.kit.page import (
    Markup,
    build_page,
    counted,
    element,
    facts,
    metrics_card,
    number,
    table,
    todo,
    warning,
)
from proav.reports.run_files import read_json, read_rejects, read_segments
from proav.runs.layout import RunFolder
from proav.runs.progress import duration

MAX_EXAMPLES = 3
MAX_LABELS = 60
LAG_MIN_SYNC = 0.3
"""Below this synchrony, sound and picture do not fit, and the lag of the best fit is random. Our choice."""
MAX_COMPARED = 200_000
"""Near copies are searched among at most this many segments while a page is written.

With more segments the page shows only what the filters have found.
"""
SHOWN_ELSEWHERE = {
    "shards",
    "index",
    "labels",
    "label_counts",
    "splits",
    "rejects",
    "rejects_by_reason",
    "dropped_by_reason",
    "filters",
    "statistics",
    "accounts",
}
"""Parts of the manifest that are lists of files, or that the page shows as tables already."""
CLIPPED_SHARE = 1e-3
"""A segment with a larger share of samples at full scale counts as clipped: one in a thousand can be heard.

Our choice.
"""
FILTERS = {
    "silent": ("min_rms_db", "Silent: loudness, dB, below"),
    "cancelled": ("min_rms_db", "Cancelled: silent because its channels cancel in the mix"),
    "clipped": ("max_clipped", "Clipped: share of samples above"),
    "black": ("max_black", "Black: share of pictures above"),
    "frozen": ("max_frozen", "Frozen: share of steps above"),
    "out_of_sync": ("min_sync", "Out of step: synchrony below"),
    "shot_cuts": ("avoid_shot_cuts", "Cut into shots shorter than a clip"),
    "duplicate": ("duplicates", "Copies, the same bytes"),
    "near_duplicate": ("duplicates", "Near copies, alike in picture and sound"),
}
"""The setting behind each reason, and its description on the page."""


def write_data_report(config: Config) -> str:
    """Writes <run_dir>/data/report.html from the shards and rejects of the run, and returns its path.

    The page names damaged shards. If nothing has been preprocessed yet, the page says so and names the
    command.
    """
    folder = config.data_folder
    segments, problems = read_segments(folder)
    rejects, reject_problems = read_rejects(folder)
    manifest, manifest_problem = read_json(storage.join(folder, "manifest.json"))
    problems += reject_problems + ([manifest_problem] if manifest_problem else [])
    header = [*_header(config, segments, rejects), [warning(text) for text in problems]]
    sections = [
        ("rejects", "Rejects", _rejects(rejects)),
        ("manifest", "Manifest", _manifest(config, manifest)),
    ]
    if segments.num_rows:
        finished = manifest is not None and "dropped" in segments.column_names
        clips = (
            clip_sections(config, folder, segments)
            if finished
            else [("segments", "Segments", [_unfinished(config)])]
        )
        sections = [
            clips[0],
            ("labels", "Labels and splits", _labels(by_label(segments, config.data.labels or None))),
            ("scores", "Scores", _scores(segments)),
            *([("filters", "Filters", _filters(config, segments, manifest))] if finished else []),
            *clips[1:],
            *sections,
        ]
    path = storage.join(folder, "report.html")
    storage.write_text(path, build_page(f"{config.name}: data", header, sections))
    return path


def segment_seconds(segments: pa.Table) -> np.ndarray:
    """Length of each segment in seconds."""
    return segments.column("num_frames").to_numpy() / np.maximum(segments.column("fps").to_numpy(), 1)


def num_sources(segments: pa.Table) -> int:
    return pc.count_distinct(segments.column("source_id")).as_py()


def in_split(segments: pa.Table, split: str) -> pa.Table:
    return segments.filter(pc.equal(segments.column("split"), split))


def _command(config: Config) -> str:
    return f"python ray_jobs/preprocess.py --config {RunFolder(config).config_file}"


def _header(config: Config, segments: pa.Table, rejects: pa.Table) -> list[Markup]:
    title = [element("p", "proav data set", class_="eyebrow"), element("h1", config.name)]
    if not segments.num_rows and not rejects.num_rows:
        return [*title, todo("Nothing has been preprocessed yet:", _command(config))]
    count = counted(segments.num_rows, "segment")
    lead = (
        f"{count} of {counted(num_sources(segments), 'source')}, "
        f"{duration(float(segment_seconds(segments).sum()))} of picture and sound."
    )
    rejected_for = lambda reason: number(pc.sum(pc.equal(rejects.column("reason"), reason)).as_py() or 0)
    held_out = in_split(segments, "validation")
    labels = set(pc.unique(by_label(segments, config.data.labels or None).column("label")).to_pylist()) - {""}
    sum_of = lambda values: number(int(pc.sum(values).as_py() or 0))
    in_use = (
        pc.sum(pc.equal(segments.column("dropped"), "")).as_py()
        if "dropped" in segments.column_names
        else None
    )
    rows = [
        ("In use", number(in_use)) if in_use is not None else ("In use", None),
        ("Left out by filters", number(segments.num_rows - in_use))
        if in_use is not None
        else ("Left out by filters", None),
        (
            "Geometry",
            f"{config.clip.width}×{config.clip.height} pixels at {config.clip.fps} fps, "
            f"sound at {config.clip.sample_rate / 1000:g} kHz",
        ),
        ("Labels", number(len(labels))),
        (
            "Held out for validation",
            f"{counted(held_out.num_rows, 'segment')} of {counted(num_sources(held_out), 'source')}",
        ),
        ("Rejected", counted(rejects.num_rows, "source or segment", "sources and segments")),
        (
            "Seconds rejected",
            number(
                round(
                    float(
                        pc.sum(
                            pc.subtract(rejects.column("end_seconds"), rejects.column("start_seconds"))
                        ).as_py()
                        or 0
                    ),
                    1,
                )
            ),
        ),
        ("Rejected without sound", rejected_for("no_audio")),
        ("Files not found", rejected_for("not_found")),
        ("Stored, without a sound track", sum_of(pc.invert(segments.column("has_audio")))),
        ("Stored, silent (below −60 dB)", sum_of(segments.column("silent"))),
        ("Stored, channels cancel in the mix", sum_of(segments.column("cancelled"))),
        ("Stored, clipped sound", sum_of(pc.greater(segments.column("clipped"), CLIPPED_SHARE))),
    ]
    return [*title, element("p", lead, class_="lead"), facts(rows)]


def _labels(segments: pa.Table) -> list[Markup]:
    stored = dict(
        zip(
            *(counts.to_pylist() for counts in pc.value_counts(segments.column("label")).flatten()),
            strict=True,
        )
    )
    used = (
        segments.filter(pc.equal(segments.column("dropped"), ""))
        if "dropped" in segments.column_names
        else segments
    )
    groups = (
        used.group_by(["label", "split"])
        .aggregate([("source_id", "count_distinct"), ("num_frames", "count")])
        .to_pylist()
    )
    by_label = {label: [count, 0, 0, 0, 0] for label, count in stored.items()}
    for group in groups:
        counts, side = by_label[group["label"]], 3 if group["split"] == "train" else 4
        for place, added in (
            (1, group["num_frames_count"]),
            (2, group["source_id_count_distinct"]),
            (side, group["num_frames_count"]),
        ):
            counts[place] += added
    rows = [
        [label or "without a label", *counts]
        for label, counts in sorted(by_label.items(), key=lambda item: (-item[1][1], item[0]))
    ]
    heads = ["Label", "Segments stored", "In use", "Of sources", "Train", "Held out"]
    content = [table(heads, rows[:MAX_LABELS], caption="Segments by label and split")]
    if len(rows) > MAX_LABELS:
        content.insert(
            0, element("p", f"The {MAX_LABELS} most frequent of {number(len(rows))} labels.", class_="note")
        )
    sides = [set(pc.unique(in_split(segments, split).column("source_id")).to_pylist()) for split in SPLITS]
    both = sides[0] & sides[1]
    if both:
        content.insert(
            0, warning(f"{counted(len(both), 'source')} on both sides of the split, such as {min(both)}.")
        )
    return content


def _scores(segments: pa.Table) -> list[Markup]:
    """Histograms of everything that is measured for each segment."""
    column = lambda name: segments.column(name).to_numpy()
    seconds, loudness = segment_seconds(segments), 20 * np.log10(np.maximum(column("rms"), 1e-5))
    shortest, longest = f"{seconds.min():.3g}", f"{seconds.max():.3g}"
    text = (
        f"Segments last {shortest} to {longest} seconds"
        if shortest != longest
        else f"All segments last {longest} seconds"
    )
    cuts = np.asarray(pc.list_value_length(segments.column("shot_starts")).fill_null(0))
    in_step = column("sync") > LAG_MIN_SYNC
    drawings = [
        ("Length", seconds, "seconds", None),
        ("Loudness", loudness, "dB of full scale, root mean square", None),
        ("Clipped sound", column("clipped"), "share of samples at full scale", _share_edges),
        ("Light", column("mean_luma"), "mean luma, white is 1", None),
        ("Motion", column("motion"), "mean change of a pixel from frame to frame", None),
        ("Frozen pictures", column("frozen"), "share of steps without change", _share_edges),
        ("Black pictures", column("black"), "share of pictures", _share_edges),
        ("Shot cuts", cuts, "cuts in a segment", _count_edges),
        ("Synchrony", column("sync"), "correlation of onsets of sound with jerks of picture", None),
    ]
    cards = [
        _score_card(name, values[np.isfinite(values)], unit, edges_of)
        for name, values, unit, edges_of in drawings
    ]
    if in_step.any():
        lag_text = [f", where synchrony is above {LAG_MIN_SYNC}"]
        words = (
            f"Lag of the sound of {counted(int(in_step.sum()), 'segment')} "
            f"with synchrony above {LAG_MIN_SYNC}, in seconds"
        )
        drawing = histogram(
            column("sync_lag")[in_step],
            unit="seconds, positive: sound late",
            description=words,
            edges=np.linspace(-0.5, 0.5, 21),
        )
        cards.append(
            element(
                "figure",
                element("figcaption", element("strong", "Lag of the sound"), lag_text),
                drawing,
                class_="card figure",
            )
        )
    undefined = int(np.count_nonzero(np.isnan(column("sync"))))
    note = (
        f" {counted(undefined, 'segment')} without events in picture or sound: synchrony is undefined there."
        if undefined
        else ""
    )
    return [element("p", f"{text}.{note}", class_="note"), element("div", cards, class_="grid")]


def _share_edges(values: np.ndarray) -> np.ndarray:
    return np.linspace(0, values.max(), min(24, max(6, int(math.sqrt(len(values))))) + 1)


def _count_edges(values: np.ndarray) -> np.ndarray:
    """Edges around whole numbers; a bin holds several numbers if there are many."""
    step = math.ceil(values.max() / 24)
    return np.arange(0.5, values.max() + step + 0.5, step)


def _score_card(
    name: str, values: np.ndarray, unit: str, edges_of: Callable[[np.ndarray], np.ndarray] | None
) -> Markup:
    """The histogram of a score.

    name, unit: of the score, for texts.
    values: the score of each segment, finite.
    edges_of: for a score that is mostly 0: gives the edges for its other values. None for all other scores.
    """
    shown = values[values > 0] if edges_of else values
    zeros = f", 0 in {number(len(values) - len(shown))} of {number(len(values))}" if edges_of else None
    caption = element("figcaption", element("strong", name), zeros)
    if not len(shown):
        return element("figure", caption, class_="card figure")
    low, middle, high = (
        number(round(float(value), 4)) for value in (shown.min(), np.median(shown), shown.max())
    )
    words = f"{name} of {counted(len(shown), 'segment')} ({unit}): {low} to {high}, median {middle}"
    return element(
        "figure",
        caption,
        histogram(shown, unit=unit, description=words, edges=edges_of and edges_of(shown)),
        class_="card figure",
    )


def _filters(config: Config, segments: pa.Table, manifest: dict) -> list[Markup]:
    """Each filter's setting, what it leaves out, and what it alone would leave out at a suggested value."""
    chosen, found = manifest.get("filters", {}), count_reasons(segments.column("dropped"))
    few = segments.num_rows <= MAX_COMPARED
    tried = would_drop(
        segments,
        SUGGESTED if few else SUGGESTED.model_copy(update={"duplicates": "exact"}),
        num_frames=config.clip.num_frames,
    )
    rows = []
    for reason, (setting, what) in FILTERS.items():
        value, start = chosen.get(setting), getattr(SUGGESTED, setting)
        off = value is None or value is False or value == "keep"  # 0 is a limit
        off = off or (reason == "near_duplicate" and value == "exact")
        would = tried[reason] if few or reason != "near_duplicate" else "not counted"
        unbroken = lambda name, text: element(name, text, style="white-space: nowrap")
        row = [
            what,
            unbroken("code", f"filters.{setting}"),
            unbroken("span", "off" if off else _setting(value)),
            found.get(reason, 0),
        ]
        rows.append([*row, unbroken("span", _setting("exact" if reason == "duplicate" else start)), would])
    note = [
        "A segment that several filters would leave out is counted under the first. Filters are settings of "
        "preprocess: with other filters it runs again ",
        "in seconds and decodes nothing. The last two columns are a value to start from, and what it would "
        "leave out on its own.",
    ]
    heads = ["Filter", "Setting", "Set to", "Left out", "To start from", "Would leave out"]
    return [element("p", note, class_="note"), table(heads, rows, caption="Filters and what they leave out")]


def _setting(value: float | bool | str) -> str:
    """A setting's value as it is written on a command line."""
    return f"{value:g}" if isinstance(value, float) else str(value).lower()


def _rejects(rejects: pa.Table) -> list[Markup]:
    if not rejects.num_rows:
        return [element("p", "Nothing was rejected.")]
    counts = {
        entry["values"]: entry["counts"] for entry in pc.value_counts(rejects.column("reason")).to_pylist()
    }
    rows = []
    for reason, count in sorted(counts.items(), key=lambda item: (-item[1], str(item[0]))):
        members = (
            rejects.filter(pc.equal(rejects.column("reason"), reason)).slice(0, MAX_EXAMPLES).to_pylist()
        )
        examples = [
            element("div", element("code", file_name(row["source"])), f" {row['message']}") for row in members
        ]
        rows.append([reason, count, Markup("".join(examples))])
    return [table(["Reason", "Count", "Examples"], rows, caption="Rejects by reason")]


def _unfinished(config: Config) -> Markup:
    return todo("Segments are shown once preprocessing has finished:", _command(config))


def _manifest(config: Config, manifest: dict | None) -> list[Markup]:
    if manifest is None:
        return [todo("There is no manifest: preprocessing has not finished.", _command(config))]
    kept = {key: value for key, value in manifest.items() if key not in SHOWN_ELSEWHERE}
    return [metrics_card("manifest.json", kept, wide=True)]
