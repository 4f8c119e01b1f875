"""The end of preprocessing: the records of all units become index.parquet and manifest.json.

The manifest counts everything that was kept and everything that was not. Here the filters decide which
segments are used. If they change later, only this part runs again, and nothing is decoded. The manifest holds
no date and no absolute path. So the same sources, settings and library versions give the same manifest.
`proav/data/store/shards.py` reads it.
"""

import hashlib
import importlib.metadata
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from proav import storage
from proav.config import Config
from proav.data.prepare.filtering import dropped
from proav.data.prepare.plan import data_settings
from proav.data.sources.folders import passed_over, told_endings
from proav.data.sources.listings import SPLITS
from proav.data.store.parquet import read_whole
from proav.data.store.schema import ACCOUNT_SCHEMA, FORMAT, INDEX_SCHEMA, UNIT_SCHEMA
from proav.data.store.shards import by_label, index_bytes, manifest_hash, read_rejects
from proav.errors import UserError
from proav.geometry import ClipGeometry

VERSIONED = ("proav", "av", "numpy", "pillow", "pyarrow", "torch", "torchaudio")
SPREAD = ("rms", "peak", "clipped", "mean_luma", "motion", "black", "frozen", "sync")
"""Scores whose distribution is in the manifest."""
UNITS_PER_CHUNK = 64
"""Units that are combined at a time. Rows in thousands of small chunks take twice the memory. So does
combining all of them at once.
"""
SETTING_OF = {
    "silent": "min_rms_db",
    "cancelled": "min_rms_db",
    "clipped": "max_clipped",
    "black": "max_black",
    "frozen": "max_frozen",
    "out_of_sync": "min_sync",
    "shot_cuts": "avoid_shot_cuts",
}
"""The filter that gives each reason. The filter of duplicates is not here: the first copy always stays."""


def finish(config: Config, data_dir: str, sources: pa.Table, records: Sequence[dict]) -> dict:
    """Writes index.parquet and, last, manifest.json.

    config: of the run.
    data_dir: the data set's folder.
    sources: a table with the columns id and label of SOURCE_SCHEMA. Its metadata says what was passed over.
    records: of all units, in the plan's order.

    Returns the manifest. Raises UserError with counted reasons if no source can be used, or if the filters
    leave no segment in use.
    """
    rejects = read_rejects(data_dir)
    if not any(record["shards"] for record in records):
        counted = _counts_text(rejects.column("reason"))
        raise UserError(
            f"none of the {_num_sources(sources)} sources can be used ({counted}); "
            f"each one's reason is in {storage.join(data_dir, 'rejects')}/*.parquet; after mending them "
            f"delete {data_dir}"
        )
    index = _read_units(data_dir, [record["name"] for record in records])
    index = index.append_column(
        "dropped", dropped(index, config.filters, num_frames=config.clip.num_frames)
    ).cast(INDEX_SCHEMA)
    if not pc.any(pc.equal(index.column("dropped"), "")).as_py():
        reasons, values = index.column("dropped"), config.filters.model_dump(mode="json")
        names = dict.fromkeys(SETTING_OF[reason] for reason in _counts(reasons) if reason in SETTING_OF)
        raise UserError(
            f"the filters leave none of the {index.num_rows} segments in use ({_counts_text(reasons)}); "
            f"loosen {', '.join(f'filters.{name}={json.dumps(values[name])}' for name in names)}"
        )
    content = index_bytes(index)
    storage.write_bytes(storage.join(data_dir, "index.parquet"), content)
    noted = _num_noted(data_dir, records)
    manifest = _contents(config, sources, records, rejects, index, noted) | {
        "index": {
            "rows": index.num_rows,
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
        },
        "units": len(records),
    }
    manifest["hash"] = manifest_hash(manifest)
    storage.write_text(storage.join(data_dir, "manifest.json"), json.dumps(manifest, indent=1))
    return manifest


def _contents(
    config: Config,
    sources: pa.Table,
    records: Sequence[dict],
    rejects: pa.Table,
    index: pa.Table,
    noted: int,
) -> dict:
    """What the manifest says of a data set, except for its index file.

    config, sources, records: as in `finish`.
    rejects: all rejects.
    index: all segments; `dropped` says which are in use.
    noted: how many sources have a note on other tracks.
    """
    used = index.select(["source_id", "labels", "split", "num_frames", "fps", "silent"]).filter(
        pc.equal(index.column("dropped"), "")
    )
    shards = [shard for record in records for shard in record["shards"]]
    labels = _vocabulary(config, index)
    return {
        "format": FORMAT,
        "kind": "segments",
        "labels": labels,
        "counts": {
            "sources": _num_sources(sources),
            "sources_used": pc.count_distinct(used.column("source_id")).as_py(),
            "sources_without_label": _num_without_label(sources),
            "segments": index.num_rows,
            "segments_used": used.num_rows,
            "frames": _total(index, "num_frames"),
            "seconds": _seconds(index),
            "silent_segments": pc.sum(index.column("silent")).as_py(),
            "silent_segments_used": pc.sum(used.column("silent")).as_py(),
            "cancelled_segments": pc.sum(index.column("cancelled")).as_py(),
            "clipped_segments": pc.sum(pc.greater(index.column("clipped"), 1e-3)).as_py(),
            "rejects": rejects.num_rows,
            "sources_with_other_tracks": noted,
            "bytes": sum(shard["bytes"] for shard in shards),
        },
        "seconds": {
            key: round(sum(record["seconds"][key] for record in records), 3)
            for key in ("declared", "used", "rejected")
        },
        "splits": {split: _tally(used.filter(pc.equal(used.column("split"), split))) for split in SPLITS},
        "label_counts": _tallies(by_label(used, labels), "label"),
        "rejects_by_reason": _counts(rejects.column("reason")),
        "passed_over": passed_over(sources),
        "filters": config.filters.model_dump(mode="json"),
        "dropped_by_reason": _counts(index.column("dropped")),
        "statistics": {name: _spread(index.column(name).to_numpy()) for name in SPREAD},
        "geometry": {
            **ClipGeometry.from_config(config).__dict__,
            "segment_seconds": config.data.segment_seconds,
        },
        "settings": data_settings(config),
        "versions": {name: importlib.metadata.version(name) for name in VERSIONED},
        "shards": shards,
        "rejects": [record["rejects"] for record in records if record["rejects"]],
        "accounts": [record["accounts"] for record in records],
    }


def summary(manifest: dict, data_dir: str) -> list[str]:
    """The lines that the job prints, beginning with what the data set holds.

    A line that begins in capitals names what is left out or may need attention.
    """
    counts = manifest["counts"]
    splits = ", ".join(
        f"{tally['segments']} {name} (of {tally['sources']} sources)"
        for name, tally in manifest["splits"].items()
    )
    labels = [f"{label or '(none)'} {tally['segments']}" for label, tally in manifest["label_counts"].items()]
    more = f" and {len(labels) - 12} more" if len(labels) > 12 else ""
    lines = [
        f"{counts['segments']:,} segments, {counts['seconds'] / 60:.1f} minutes, "
        f"{counts['bytes'] / 1e6:.1f} MB in {data_dir}; used: {splits}",
        f"labels: {', '.join(labels[:12])}{more}",
    ]
    seconds = manifest["seconds"]
    lines.append(
        f"seconds of the sources: {seconds['declared']:,.1f} by their headers or packets, of which "
        f"{seconds['used']:,.1f} are in segments "
        f"and {seconds['rejected']:,.1f} in rejects; what is missing is "
        "less than a frame, or 0.1 s, at their ends"
    )
    if counts["rejects"]:
        reasons = ", ".join(f"{reason} {count}" for reason, count in manifest["rejects_by_reason"].items())
        lines.append(
            f"REJECTED: {counts['rejects']} sources or parts of them ({reasons}); "
            f"see {storage.join(data_dir, 'rejects')}/*.parquet"
        )
    if beside := manifest.get("passed_over"):
        count = sum(beside.values())
        lines.append(
            f"PASSED OVER: {count:,} files without the ending of a video ({told_endings(beside)})"
            "; one that is a video is used if data.sources or a listing names the file itself"
        )
    if counts["sources_with_other_tracks"]:
        lines.append(
            f"OTHER TRACKS: {counts['sources_with_other_tracks']} sources have programmes or tracks that "
            "are not used; "
            f"see the column note of {storage.join(data_dir, 'sources')}/*.parquet, and data.picture_track, "
            "data.sound_track"
        )
    if manifest["dropped_by_reason"]:
        reasons = ", ".join(f"{reason} {count}" for reason, count in manifest["dropped_by_reason"].items())
        lines.append(
            f"FILTERED: {counts['segments'] - counts['segments_used']} of {counts['segments']} segments "
            f"are not used ({reasons})"
        )
    without_limit = manifest["filters"]["min_rms_db"] is None
    # manifests of earlier versions count only all
    silent = counts.get("silent_segments_used", counts["silent_segments"])
    if silent and without_limit:
        lines.append(
            f"SILENT: {silent} of {counts['segments']} segments hold no sound above "
            "-60 dB; they are used: filters.min_rms_db=-60 leaves them out"
        )
    if counts["cancelled_segments"]:
        lines.append(
            f"CANCELLED: in {counts['cancelled_segments']} of {counts['segments']} segments the sound of the "
            "channels cancels in the mix to mono"
            + ("; filters.min_rms_db=-60 leaves out those that become silent" if without_limit else "")
        )
    unseen = [label for label in manifest["labels"] if label not in manifest["label_counts"]]
    if unseen:
        more = f" and {len(unseen) - 12} more" if len(unseen) > 12 else ""
        names = f"{', '.join(unseen[:12])}{more}"
        # without data.labels the vocabulary is that of all segments, so it has labels without a used one
        lines.append(
            f"NO CLIPS for the labels {names} of data.labels"
            if manifest["settings"]["data.labels"]
            else f"NO CLIPS for the labels {names}: the filters leave out all that there are"
        )
    if manifest["labels"] and counts["sources_without_label"]:
        lines.append(
            f"NO LABEL: {counts['sources_without_label']} of {counts['sources']} sources have none of the "
            "vocabulary's labels"
        )
    return lines


def _vocabulary(config: Config, index: pa.Table) -> list[str]:
    return list(config.data.labels) or sorted(
        pc.unique(index.column("labels").combine_chunks().flatten()).to_pylist()
    )


def _read_units(data_dir: str, names: Sequence[str]) -> pa.Table:
    def read(name: str) -> pa.Table:
        path = storage.join(data_dir, "units", f"{name}.parquet")
        return read_whole(path).replace_schema_metadata(None)

    parts = []
    with ThreadPoolExecutor(8) as pool:
        for first in range(0, len(names), UNITS_PER_CHUNK):
            parts.append(
                pa.concat_tables(pool.map(read, names[first : first + UNITS_PER_CHUNK]))
                .cast(UNIT_SCHEMA)
                .combine_chunks()
            )
    return pa.concat_tables(parts)


def _num_noted(data_dir: str, records: Sequence[dict]) -> int:
    """How many sources have a note on other tracks. A source may have several stretches, in several units."""
    unread = set(ACCOUNT_SCHEMA.names) - {"source_id", "note"}

    def noted_in(record: dict) -> pa.Array:
        path = storage.join(data_dir, "sources", record["accounts"]["name"])
        accounts = read_whole(path, without=unread)
        has_note = pc.not_equal(pc.fill_null(accounts.column("note"), ""), "")
        return pc.unique(accounts.column("source_id").filter(has_note))

    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(noted_in, [record for record in records if record["noted"]]))
    return pc.count_distinct(pa.concat_arrays(ids)).as_py() if ids else 0


def _num_without_label(sources: pa.Table) -> int:
    """How many sources have no stretch with a label of the vocabulary."""
    has_label = pc.not_equal(sources.column("label"), "")
    labelled = pc.count_distinct(sources.column("id").filter(has_label)).as_py()
    return _num_sources(sources) - labelled


def _num_sources(sources: pa.Table) -> int:
    return pc.count_distinct(sources.column("id")).as_py()


def _counts(reasons: pa.ChunkedArray) -> dict[str, int]:
    """How often each reason occurs, the most frequent first. The empty text is no reason."""
    found = {entry["values"]: entry["counts"] for entry in pc.value_counts(reasons).to_pylist()}
    found.pop("", None)
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def _counts_text(reasons: pa.ChunkedArray) -> str:
    return ", ".join(f"{reason}: {count}" for reason, count in _counts(reasons).items())


def _total(index: pa.Table, column: str) -> int:
    return int(np.sum(index.column(column).to_numpy(), dtype=np.int64))


def _seconds(index: pa.Table) -> float:
    return round(float(np.sum(index.column("num_frames").to_numpy() / index.column("fps").to_numpy())), 3)


def _tally(index: pa.Table) -> dict:
    return {
        "sources": pc.count_distinct(index.column("source_id")).as_py(),
        "segments": index.num_rows,
        "seconds": _seconds(index),
    }


def _tallies(index: pa.Table, column: str) -> dict[str, dict]:
    """`_tally` for each value of a column, in one pass, sorted by value."""
    ordered = index.select([column, "source_id", "num_frames", "fps"]).sort_by(column)
    values = ordered.column(column).combine_chunks()
    if not len(values):
        return {}
    changes = np.flatnonzero(pc.not_equal(values[1:], values[:-1]).to_numpy(zero_copy_only=False)) + 1
    edges = [0, *changes.tolist(), len(values)]
    return {
        values[first].as_py(): _tally(ordered.slice(first, end - first))
        for first, end in zip(edges, edges[1:], strict=False)
    }


def _spread(values: np.ndarray) -> dict:
    values = values[np.isfinite(values)]
    if not len(values):
        return {}
    low, middle, high = np.percentile(values, (5, 50, 95)).tolist()
    return {
        "p05": round(low, 6),
        "median": round(middle, 6),
        "p95": round(high, 6),
        "mean": round(float(values.mean(dtype=np.float64)), 6),
    }
