"""Verifies that a finished data set is whole: nothing is missing, doubled, truncated or wrongly silent.

Every byte of segments, rejects, accounts, index and vectors is read again. A plain function checks one shard,
so a caller may distribute the shards over processes; `preprocess.py` does so with Ray. No source is decoded
again.
"""

import hashlib
from collections.abc import Callable, Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from proav import storage
from proav.data.prepare.plan import read_plan
from proav.data.prepare.unit import read_record, row_checksum
from proav.data.store.parquet import DamagedShard, RowReader, open_parquet
from proav.data.store.schema import FULL_SCALE
from proav.data.store.shards import read_accounts, read_manifest, read_rejects
from proav.data.store.vectors import read_vectors_manifest
from proav.errors import UserError
from proav.media.cutting import end_slack_seconds

RMS_TOLERANCE = 1e-6
"""float32 rounding of a root mean square of at most 1, with a margin."""
TIME_TOLERANCE = 1e-3
"""Seconds. Times are compared to the millisecond, as in ids."""


def verify(data_dir: str, *, each: Callable[[Callable, list], Iterable] = map) -> dict:
    """Checks a finished data set against its plan, its manifest and its own columns.

    Every file of segments, rejects, accounts, index and vectors has its checksum. Of segments, rejects and
    accounts no other file is there. Of units/ only the records are read, and of plan.parquet one column.

    Every row has the stated number of pictures, sound samples and mel frames, the stated checksum and the
    stated loudness. Every id and every place occurs once. Every planned source has segments or a reason why
    not. Its segments and rejects follow one another and cover its seconds. At the end of a stretch at most a
    frame or 0.1 s, whichever is longer, may be missing.

    data_dir: the data set's folder.
    each: applies a function to a list, like map; results may come in any order.

    Returns {"sources", "shards", "rows", "rejects", "bytes", "silent",
    "seconds": {"declared", "used", "rejected"}}. Raises DamagedShard that names what is wrong and what to do.
    """
    manifest = read_manifest(data_dir)
    problems = [
        problem
        for found in each(check_shard, [(data_dir, shard) for shard in manifest["shards"]])
        for problem in found
    ]
    kinds = (
        ("segments", "segments", manifest["shards"]),
        ("rejects", "rejects", manifest["rejects"]),
        ("accounts", "sources", manifest["accounts"]),
    )
    for name, folder, entries in kinds:
        known = {entry["name"] for entry in entries}
        there = {path.rsplit("/", 1)[-1] for path in storage.list_files(storage.join(data_dir, folder))}
        problems += [
            f"{storage.join(data_dir, folder, extra)} is not in the manifest's {name}"
            for extra in sorted(there - known)
        ]
    for folder, entries in (("rejects", manifest["rejects"]), ("sources", manifest["accounts"])):
        problems += [
            problem
            for entry in entries
            for problem in _check_file(storage.join(data_dir, folder, entry["name"]), entry)
        ]
    problems += _check_file(storage.join(data_dir, "index.parquet"), manifest["index"])
    problems += _check_vectors(data_dir)
    problems += (
        []
        if problems
        else [
            *_check_records(data_dir, manifest),
            *_check_rows(data_dir, manifest),
            *_check_seconds(data_dir, manifest),
        ]
    )
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise DamagedShard(
            f"{'; '.join(problems[:3])}{more}; "
            "delete these files and run preprocess again: it makes what is missing"
        )
    counts = manifest["counts"]
    return {
        "sources": counts["sources"],
        "shards": len(manifest["shards"]),
        "rows": counts["segments"],
        "rejects": counts["rejects"],
        "bytes": counts["bytes"],
        "silent": counts["silent_segments"],
        "seconds": manifest["seconds"],
    }


def check_shard(task: tuple[str, dict]) -> list[str]:
    """What is wrong with one shard; [] if nothing is.

    task: the data set's folder, and the shard's entry in the manifest.
    """
    data_dir, entry = task
    path = storage.join(data_dir, "segments", entry["name"])
    problems = _check_file(path, entry)
    if problems:
        return problems
    try:
        reader = RowReader(storage.join(data_dir, "segments"), cache_bytes=0)
        columns = (
            "num_frames",
            "fps",
            "sample_rate",
            "rms",
            "checksum",
            "frame_offsets",
            "mel_shape",
            "video",
            "audio",
            "mel",
        )
        rows = (reader.read(entry["name"], number, columns) for number in range(entry["rows"]))
        return [
            f"{path}, row {number}: {problem}"
            for number, row in enumerate(rows)
            for problem in _check_row(row)
        ]
    except UserError as error:
        return [str(error)]


def _check_row(row: dict) -> list[str]:
    frames, offsets = row["num_frames"], row["frame_offsets"]
    sound = np.frombuffer(row["audio"], np.int16)
    problems = []
    if len(offsets) != frames + 1 or offsets[-1] != len(row["video"]):
        problems.append(
            f"{len(row['video'])} bytes of pictures where {offsets[-1]} for {frames} frames are stated"
        )
    if len(sound) * row["fps"] != frames * row["sample_rate"]:
        problems.append(f"{len(sound)} sound samples for {frames} frames")
    if row["mel_shape"][0] != frames or 2 * int(np.prod(row["mel_shape"])) != len(row["mel"]):
        problems.append(f"mel frames {row['mel_shape']} in {len(row['mel'])} bytes for {frames} frames")
    rms = (
        np.sqrt(np.mean(np.square(sound.astype(np.float32) / FULL_SCALE, dtype=np.float64)))
        if len(sound)
        else 0.0
    )
    if abs(rms - row["rms"]) > RMS_TOLERANCE:
        problems.append(f"its sound has a root mean square of {rms:.6f}, not of {row['rms']:.6f} as stated")
    if row_checksum(row["video"], row["audio"], row["mel"]) != row["checksum"]:
        problems.append("its content does not have its checksum")
    return problems


def _check_file(path: str, entry: dict) -> list[str]:
    try:
        digest, _ = storage.file_sha256(path)
    except FileNotFoundError:
        return [f"{path} is missing"]
    if digest != entry["sha256"]:
        return [f"{path} has changed since it was written"]
    rows = open_parquet(path).metadata.num_rows
    return [] if rows == entry["rows"] else [f"{path} has {rows} rows, not {entry['rows']}"]


def _check_vectors(data_dir: str) -> list[str]:
    """What is wrong with the files of stored vectors. Those of an interrupted job have no manifest yet."""
    folder = storage.join(data_dir, "vectors")
    names = {
        path.rsplit("/", 2)[-2] for path in storage.list_files(folder) if path.endswith("/manifest.json")
    }
    return [
        problem
        for name in sorted(names)
        for shard in read_vectors_manifest(data_dir, name)["shards"]
        for problem in _check_file(storage.join(folder, name, shard["name"]), shard)
    ]


def _check_records(data_dir: str, manifest: dict) -> list[str]:
    """Differences between the units' own records and the manifest."""
    records = [read_record(path) for path in storage.list_files(storage.join(data_dir, "units"))]
    problems = (
        []
        if len(records) == manifest["units"]
        else [f"{storage.join(data_dir, 'units')} has {len(records)} records, not {manifest['units']}"]
    )
    written = hashlib.sha256(
        repr(sorted(shard["sha256"] for record in records for shard in record["shards"])).encode()
    ).digest()
    if (
        written
        != hashlib.sha256(repr(sorted(shard["sha256"] for shard in manifest["shards"])).encode()).digest()
    ):
        problems.append(
            f"the records in {storage.join(data_dir, 'units')} and the manifest name different shards"
        )
    return problems


def _check_rows(data_dir: str, manifest: dict) -> list[str]:
    """Ids and places that do not occur exactly once, and planned sources that are not accounted for."""
    index = open_parquet(storage.join(data_dir, "index.parquet")).read(
        columns=["id", "source_id", "shard", "row"]
    )
    problems = []
    if doubled := index.num_rows - pc.count_distinct(index.column("id")).as_py():
        problems.append(
            f"{doubled} segments of {storage.join(data_dir, 'index.parquet')} share the id of another"
        )
    places = index.group_by("shard").aggregate([("row", "count"), ("row", "count_distinct"), ("row", "max")])
    stated = {shard["name"]: shard["rows"] for shard in manifest["shards"]}
    listed = {
        place["shard"]: place["row_count"]
        for place in places.to_pylist()
        if place["row_count"] == place["row_count_distinct"] == place["row_max"] + 1
    }
    wrong = sorted(
        shard
        for shard in stated.keys() | set(places.column("shard").to_pylist())
        if stated.get(shard) != listed.get(shard)
    )
    problems += [f"the index does not list the rows of {shard} once each" for shard in wrong]
    planned = pc.unique(read_plan(data_dir, "source_id").column("source_id"))
    kept = pa.concat_arrays(
        [pc.unique(index.column("source_id")), pc.unique(read_rejects(data_dir).column("source_id"))]
    )
    for missing, said in (
        (_without(planned, kept), "planned sources have neither a segment nor a reason"),
        (_without(kept, planned), "sources were never planned"),
    ):
        if len(missing):
            problems.append(f"{len(missing)} {said} (such as {missing[0].as_py()})")
    return problems


def _check_seconds(data_dir: str, manifest: dict) -> list[str]:
    """Sources whose seconds the segments and rejects do not cover, or cover twice."""
    index = open_parquet(storage.join(data_dir, "index.parquet")).read(
        columns=["source_id", "start_seconds", "num_frames", "fps"]
    )
    accounts, rejects = read_accounts(data_dir), read_rejects(data_dir)
    planned = read_plan(data_dir).num_rows
    if accounts.num_rows != planned:
        return [
            f"{storage.join(data_dir, 'sources')} accounts for {accounts.num_rows} of {planned} planned "
            "stretches"
        ]
    seconds = pc.divide(index.column("num_frames").cast(pa.float64()), index.column("fps").cast(pa.float64()))
    index = index.append_column("end_seconds", pc.add(index.column("start_seconds"), seconds))
    rejects = rejects.set_column(
        rejects.column_names.index("end_seconds"),
        "end_seconds",
        pc.coalesce(rejects.column("end_seconds"), rejects.column("start_seconds")),
    )
    columns = ["source_id", "start_seconds", "end_seconds"]
    tables = [table.select(columns).replace_schema_metadata(None) for table in (accounts, index, rejects)]
    ids, starts, ends = (
        pa.chunked_array([chunk for table in tables for chunk in table.column(name).chunks])
        for name in columns
    )
    names = ids.combine_chunks().dictionary_encode()
    source, start, end = names.indices.to_numpy(), starts.to_numpy(), ends.to_numpy()
    is_span = np.arange(len(source)) >= accounts.num_rows
    # each stretch is followed by its segments and rejects
    order = np.lexsort((is_span, np.round(1000 * start), source))
    source, start, end, is_span = source[order], start[order], end[order], is_span[order]
    stretch = np.cumsum(~is_span) - 1  # the number of each row's stretch
    first = np.flatnonzero(~is_span)
    before = np.where(is_span, np.append(0, end[:-1]), start)  # where the row before ends
    before[first[first + 1 < len(end)] + 1] = start[first[first + 1 < len(end)]]
    slack = end_slack_seconds(manifest["geometry"]["fps"]) + TIME_TOLERANCE
    apart = np.where(is_span, start - before, 0.0)
    last = np.append(first[1:], len(end)) - 1
    left = end[first] - np.where(last > first, end[last], start[first])
    wrong = np.unique(
        np.concatenate(
            [
                stretch[(apart > slack) | (apart < -TIME_TOLERANCE)],
                np.flatnonzero((left > slack) | (left < -TIME_TOLERANCE)),
            ]
        )
    )
    wrong = (
        np.unique(np.concatenate([wrong, stretch[source != source[first][stretch]]])) if len(first) else wrong
    )
    problems = []
    if len(wrong):
        at = first[wrong[0]]
        name = names.dictionary[int(source[at])].as_py()
        problems.append(
            f"{len(wrong)} sources have seconds that are in neither segments nor rejects, or are there twice "
            f"(such as {name} from {start[at]:g} to {end[at]:g} s)"
        )
    totals = {
        "declared": float(np.sum(end[first] - start[first])),
        "used": float(pc.sum(seconds).as_py() or 0.0),
        "rejected": float(
            pc.sum(pc.subtract(rejects.column("end_seconds"), rejects.column("start_seconds"))).as_py() or 0.0
        ),
    }
    for key, value in totals.items():
        if abs(value - manifest["seconds"][key]) > TIME_TOLERANCE + 1e-9 * value:
            problems.append(
                f"{value:.3f} s are {key}, not {manifest['seconds'][key]:.3f} as the manifest says"
            )
    return problems


def _without(values: pa.Array, others: pa.Array) -> pa.Array:
    return values.filter(pc.invert(pc.is_in(values, value_set=others)))
