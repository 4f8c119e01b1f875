"""The end of preprocessing: the records of all units become index.parquet and manifest.json, with counts of everything that was kept and not.

The manifest holds no time and no absolute path: the same sources and settings give the same manifest. Reading it is `shards.read_manifest`.
"""

import hashlib
import importlib.metadata
import json
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa

from proav import storage
from proav.config import Config
from proav.data.plan import data_settings
from proav.data.shards import FORMAT, INDEX_SCHEMA, index_bytes, manifest_hash, read_rejects, read_shard_index
from proav.data.sources import SPLITS, SourceRow
from proav.errors import UserError
from proav.geometry import ClipGeometry

VERSIONED = ("proav", "av", "numpy", "pillow", "pyarrow", "torch", "torchaudio")


def finish(config: Config, data_dir: str, sources: Sequence[SourceRow], records: Sequence[dict]) -> dict:
    """Writes index.parquet and, last, manifest.json; returns the manifest.

    Raises UserError where no source could be used: the reasons counted, and where their table is.
    """
    shards = [shard for record in records for shard in record["shards"]]
    rejects = read_rejects(data_dir)
    reasons = dict(sorted(Counter(rejects.column("reason").to_pylist()).items(), key=lambda item: (-item[1], item[0])))
    if not shards:
        counted = ", ".join(f"{reason}: {count}" for reason, count in reasons.items())
        raise UserError(
            f"none of the {len(sources)} sources can be used ({counted}); "
            f"each one's reason is in {storage.join(data_dir, 'rejects')}/*.parquet; after mending them delete {data_dir}"
        )
    index = _read_index(data_dir, [shard["name"] for shard in shards])
    content = index_bytes(index)
    storage.write_bytes(storage.join(data_dir, "index.parquet"), content)
    used = set(index.column("source_id").to_pylist())
    manifest = {
        "format": FORMAT,
        "kind": "segments",
        "labels": _vocabulary(config, index),
        "counts": {
            "sources": len({source.id for source in sources}),
            "sources_used": len(used),
            "sources_without_label": len({source.id for source in sources if not source.label}),
            "segments": index.num_rows,
            "frames": int(np.sum(index.column("num_frames").to_numpy(), dtype=np.int64)),
            "seconds": round(float(_seconds(index).sum()), 3),
            "silent_segments": int(np.count_nonzero(index.column("silent").to_numpy(zero_copy_only=False))),
            "clipped_segments": int(np.count_nonzero(index.column("clipped").to_numpy() > 1e-3)),
            "rejects": rejects.num_rows,
            "bytes": sum(shard["bytes"] for shard in shards),
        },
        "splits": {split: _tally(index, "split", split) for split in SPLITS},
        "label_counts": {label: _tally(index, "label", label) for label in sorted(set(index.column("label").to_pylist()))},
        "rejects_by_reason": reasons,
        "statistics": {name: _spread(index.column(name).to_numpy()) for name in ("rms", "peak", "mean_luma", "motion")},
        "geometry": {**ClipGeometry.from_config(config).__dict__, "segment_seconds": config.data.segment_seconds},
        "settings": data_settings(config),
        "versions": {name: importlib.metadata.version(name) for name in VERSIONED},
        "shards": shards,
        "index": {"rows": index.num_rows, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()},
        "units": len(records),
    }
    manifest["hash"] = manifest_hash(manifest)
    storage.write_text(storage.join(data_dir, "manifest.json"), json.dumps(manifest, indent=1))
    return manifest


def summary(manifest: dict, data_dir: str) -> list[str]:
    """What the job prints: what is there, and loudly what is not."""
    counts = manifest["counts"]
    splits = ", ".join(f"{tally['segments']} {name} (of {tally['sources']} sources)" for name, tally in manifest["splits"].items())
    labels = ", ".join(f"{label or '(none)'} {tally['segments']}" for label, tally in manifest["label_counts"].items())
    lines = [
        f"{counts['segments']:,} segments, {counts['seconds'] / 60:.1f} minutes, {counts['bytes'] / 1e6:.1f} MB in {data_dir}: {splits}",
        f"labels: {labels}",
    ]
    if counts["rejects"]:
        reasons = ", ".join(f"{reason} {count}" for reason, count in manifest["rejects_by_reason"].items())
        lines.append(f"REJECTED: {counts['rejects']} sources or parts of them ({reasons}); see {storage.join(data_dir, 'rejects')}/*.parquet")
    if counts["silent_segments"]:
        lines.append(
            f"SILENT: {counts['silent_segments']} of {counts['segments']} segments hold no sound above -60 dB; they are kept (column `silent`)"
        )
    unseen = [label for label in manifest["labels"] if label not in manifest["label_counts"]]
    if unseen:
        lines.append(f"NO CLIPS for the labels {', '.join(unseen)} of data.labels")
    if manifest["labels"] and counts["sources_without_label"]:
        lines.append(f"NO LABEL: {counts['sources_without_label']} of {counts['sources']} sources have none of the vocabulary's labels")
    return lines


def _vocabulary(config: Config, index: pa.Table) -> list[str]:
    return list(config.data.labels) or sorted(set(index.column("label").to_pylist()) - {""})


def _read_index(data_dir: str, names: Sequence[str]) -> pa.Table:
    with ThreadPoolExecutor(8) as pool:
        tables = list(pool.map(lambda name: read_shard_index(storage.join(data_dir, "segments", name)), names))
    return pa.concat_tables(tables).cast(INDEX_SCHEMA).combine_chunks()


def _seconds(index: pa.Table) -> np.ndarray:
    return index.column("num_frames").to_numpy() / index.column("fps").to_numpy()


def _tally(index: pa.Table, column: str, value: str) -> dict:
    chosen = index.filter(pa.compute.equal(index.column(column), value))
    return {
        "sources": len(set(chosen.column("source_id").to_pylist())),
        "segments": chosen.num_rows,
        "seconds": round(float(_seconds(chosen).sum()), 3),
    }


def _spread(values: np.ndarray) -> dict:
    low, middle, high = np.percentile(values, (5, 50, 95)).tolist()
    return {"p05": round(low, 6), "median": round(middle, 6), "p95": round(high, 6), "mean": round(float(values.mean(dtype=np.float64)), 6)}
