"""data/report.html of a run: how many segments, of which sources and labels, what was rejected and why, and a few to look at.

It reads what preprocessing left on disk and decides nothing: what counts as rejected or silent was decided there. Reports are ours, not the paper's.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from proav import storage
from proav.config import Config
from proav.data.shards import SegmentStore
from proav.errors import UserError
from proav.media.container import Clip
from proav.report_page.figures import histogram
from proav.report_page.page import Markup, build_page, counted, duration, element, facts, metrics_card, number, table, todo, warning
from proav.report_page.run_files import ClipPlayers, read_json, read_rejects, read_segments

MAX_SEGMENTS_SHOWN = 9
MAX_EXAMPLES = 3
MAX_LABELS = 60
SHOWN_ELSEWHERE = {"shards", "index", "labels", "label_counts", "splits", "rejects_by_reason"}
"""Parts of the manifest that the page shows as tables already, or that are lists of files."""
CLIPPED_SHARE = 1e-3
"""A segment with more than this share of its samples at full scale counts as clipped: one in a thousand can be heard. Our choice."""


def write_data_report(config: Config) -> str:
    """Writes <run_dir>/data/report.html from the shards and rejects of the run, and returns its path.

    Damaged shards are named in the page. Where nothing was preprocessed yet, the page says so and names the command.
    """
    folder = storage.join(config.run_folder, "data")
    segments, problems = read_segments(folder)
    rejects, reject_problems = read_rejects(folder)
    manifest, manifest_problem = read_json(storage.join(folder, "manifest.json"))
    problems += reject_problems + ([manifest_problem] if manifest_problem else [])
    header = [*_header(config, segments, rejects), [warning(text) for text in problems]]
    sections = [("rejects", "Rejects", _rejects(rejects)), ("manifest", "Manifest", _manifest(config, manifest))]
    if segments.num_rows:
        sections = [
            ("segments", "Segments", _segments(config, folder, segments, manifest)),
            ("labels", "Labels and splits", _labels(segments)),
            ("durations", "Lengths and loudness", _durations(segments)),
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
    return f"python ray_jobs/preprocess.py --config {storage.join(config.run_folder, 'config.yaml')}"


def _header(config: Config, segments: pa.Table, rejects: pa.Table) -> list[Markup]:
    title = [element("p", "proav data set", class_="eyebrow"), element("h1", config.name)]
    if not segments.num_rows and not rejects.num_rows:
        return [*title, todo("Nothing has been preprocessed yet:", _command(config))]
    count = counted(segments.num_rows, "segment")
    lead = f"{count} of {counted(num_sources(segments), 'source')}, {duration(float(segment_seconds(segments).sum()))} of picture and sound."
    reasons = rejects.column("reason").to_pylist()
    held_out = in_split(segments, "validation")
    labels = {label for label in pc.unique(segments.column("label")).to_pylist() if label}
    sum_of = lambda values: number(int(pc.sum(values).as_py() or 0))
    rows = [
        ("Geometry", f"{config.clip.width}×{config.clip.height} pixels at {config.clip.fps} fps, sound at {config.clip.sample_rate / 1000:g} kHz"),
        ("Labels", number(len(labels))),
        ("Held out for validation", f"{counted(held_out.num_rows, 'segment')} of {counted(num_sources(held_out), 'source')}"),
        ("Rejected", counted(rejects.num_rows, "source or segment", "sources and segments")),
        ("Rejected for want of sound", number(reasons.count("no_audio"))),
        ("Files not found", number(reasons.count("not_found"))),
        ("Kept, without a sound track", sum_of(pc.invert(segments.column("has_audio")))),
        ("Kept, silent (below −60 dB)", sum_of(segments.column("silent"))),
        ("Kept, clipped sound", sum_of(pc.greater(segments.column("clipped"), CLIPPED_SHARE))),
    ]
    return [*title, element("p", lead, class_="lead"), facts(rows)]


def _labels(segments: pa.Table) -> list[Markup]:
    groups = segments.group_by(["label", "split"]).aggregate([("source_id", "count_distinct"), ("num_frames", "count")]).to_pylist()
    by_label: dict[str, list[int]] = {}
    for group in groups:
        counts = by_label.setdefault(group["label"] or "without a label", [0, 0, 0, 0])
        added = (group["num_frames_count"], group["source_id_count_distinct"], 0, 0)
        counts[:] = [old + new for old, new in zip(counts, added, strict=True)]
        counts[2 if group["split"] == "train" else 3] += group["num_frames_count"]
    rows = [[label, *counts] for label, counts in sorted(by_label.items(), key=lambda item: (-item[1][0], item[0]))]
    content = [table(["Label", "Segments", "Sources", "Train", "Held out"], rows[:MAX_LABELS], caption="Segments by label and split")]
    if len(rows) > MAX_LABELS:
        content.insert(0, element("p", f"The {MAX_LABELS} most frequent of {number(len(rows))} labels.", class_="note"))
    sides = [set(pc.unique(in_split(segments, split).column("source_id")).to_pylist()) for split in ("train", "validation")]
    both = sides[0] & sides[1]
    if both:
        content.insert(0, warning(f"{counted(len(both), 'source')} on both sides of the split, such as {min(both)}."))
    return content


def _durations(segments: pa.Table) -> list[Markup]:
    seconds = segment_seconds(segments)
    shortest, longest = f"{seconds.min():.3g}", f"{seconds.max():.3g}"
    text = f"Segments last {shortest} to {longest} seconds" if shortest != longest else f"All segments last {longest} seconds"
    loudness = 20 * np.log10(np.maximum(segments.column("rms").to_numpy(), 1e-5))
    loud_text = f"Loudness of segments, root mean square: {loudness.min():.0f} to {loudness.max():.0f} dB of full scale"
    motion = segments.column("motion").to_numpy()
    least, most = number(float(motion.min())), number(float(motion.max()))
    motion_text = f"Motion of segments, mean difference of a pixel to the frame before: {least} to {most} of full scale"
    drawings = [
        ("Segments by length", seconds, "seconds", text),
        ("Segments by loudness", loudness, "dB of full scale (all below −100 stand there)", loud_text),
        ("Segments by motion", motion, "mean change of a pixel, full scale 1", motion_text),
    ]
    cards = [
        element("figure", element("figcaption", element("strong", name)), histogram(values, unit=unit, description=words), class_="card figure")
        for name, values, unit, words in drawings
    ]
    return [element("p", f"{text}.", class_="note"), element("div", cards, class_="grid")]


def _rejects(rejects: pa.Table) -> list[Markup]:
    if not rejects.num_rows:
        return [element("p", "Nothing was rejected.")]
    by_reason: dict[str, list[dict]] = {}
    for row in rejects.to_pylist():
        by_reason.setdefault(str(row["reason"]), []).append(row)
    rows = []
    for reason, members in sorted(by_reason.items(), key=lambda item: (-len(item[1]), item[0])):
        examples = [element("div", element("code", _file_name(row["source"])), f" {row['message']}") for row in members[:MAX_EXAMPLES]]
        rows.append([reason, len(members), Markup("".join(examples))])
    return [table(["Reason", "Count", "Examples"], rows, caption="Rejects by reason")]


def _file_name(source: str) -> str:
    return str(source).rstrip("/").rsplit("/", 1)[-1]


def _segments(config: Config, folder: str, segments: pa.Table, manifest: dict | None) -> list[Markup]:
    """Segments spread evenly over the set, their middle clip each: players with frames, mel spectrogram and waveform."""
    if manifest is None:
        return [todo("Segments are shown once preprocessing has finished:", _command(config))]
    try:
        store = SegmentStore(folder)
    except UserError as error:
        return [warning(f"The shards cannot be opened: {error}")]
    players = ClipPlayers(config)
    count = min(MAX_SEGMENTS_SHOWN, len(store))
    cards = [_segment(config, players, store, index * len(store) // count) for index in range(count)]
    note = f"{counted(count, 'segment')} of {number(segments.num_rows)}, spread evenly; the clip in the middle of each, as the models see it."
    return [element("p", note, class_="note"), element("div", cards, class_="grid")]


def _segment(config: Config, players: ClipPlayers, store: SegmentStore, index: int) -> Markup:
    row = store.rows[index]
    frames = min(config.clip.num_frames, row["num_frames"])
    start = (row["num_frames"] - frames) // 2
    title = row["label"] or "without a label"
    name = _file_name(row["source"])
    try:
        window = store.window(index, start, frames)
    except (UserError, OSError) as error:
        content = element("div", warning(f"Segment {row['id']} cannot be shown: {error}"), class_="text")
    else:
        clip = Clip(video=window["video"], audio=np.clip(window["audio"], -1, 1), fps=row["fps"], sample_rate=row["sample_rate"])
        content = players.from_clip(clip, window["mel"].astype(np.float32), description=f"Segment of {name}, {title}")
    tags = [name, f"from {row['start_seconds'] + start / row['fps']:.1f} s", row["split"], *(["silent"] if row["silent"] else [])]
    text = element("figcaption", element("h3", title), element("ul", [element("li", tag) for tag in tags], class_="tags"), class_="text")
    return element("figure", content, text, class_="card player")


def _manifest(config: Config, manifest: dict | None) -> list[Markup]:
    if manifest is None:
        return [todo("There is no manifest: preprocessing has not finished.", _command(config))]
    kept = {key: value for key, value in manifest.items() if key not in SHOWN_ELSEWHERE}
    return [metrics_card("manifest.json", kept, wide=True)]
