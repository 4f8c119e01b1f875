"""Vectors of stored segments, from a user's function or file: one pass over the shards.

Nothing is decoded that the function does not ask for. A shard's file is written whole, and the manifest last.
So a stopped job goes on where it stopped. Plain functions that work without Ray; `preprocess.py` spreads the
shards over the cluster. How vectors are stored is `proav/data/store/vectors.py`. Letters: L vectors of a
sequence, W width.
"""

import functools
import io
import json
import tokenize
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from proav import storage
from proav.config import Config
from proav.config.clip import VECTOR_FILES
from proav.data.store.parquet import DamagedShard, ShardWriter, open_parquet, read_whole
from proav.data.store.shards import SegmentStore, read_manifest
from proav.data.store.vectors import VECTOR_SCHEMA, read_vectors_manifest, segments_hash, vectors_folder
from proav.errors import TOLD, UserError, raise_from_text, to_text
from proav.vectors import as_vectors, called, find_function

KEY_COLUMNS = ("id", "source")
"""Columns by which a file names segments: id of a segment, or source, for all segments of that source."""
STREAMS = ("video", "audio", "mel")
OF_A_SHARD = b"proav.vectors"
"""Key in a shard's metadata; its value says what the vectors were made from."""


class SegmentRow(dict):
    """What a user's function gets of a segment: its row of the index.

    row["video"], uint8 [T, H, W, 3], row["audio"], float32 [samples], and row["mel"] are read when they are
    asked for, and not kept.
    """

    def __init__(self, store: SegmentStore, index: int) -> None:
        super().__init__(store.rows[index])
        self._store, self._index = store, index

    def __missing__(self, name: str) -> np.ndarray:
        if name not in STREAMS:
            raise KeyError(name)
        return self._store.window(self._index, want=(name,))[name]


def store_vectors(config: Config, data_dir: str, *, each: Callable[[Callable, list], Iterable] = map) -> None:
    """Stores the vectors of `data.vectors` that are not there yet, and prints what is there.

    If files of finished vectors are missing, they are made again.

    config: of the run.
    data_dir: the finished data set's folder, absolute.
    each: applies a function to a list, like map; results may come in any order.
    Raises UserError if a function or file does not give what it should, and if vectors of that name were made
    from something else.
    """
    _segments.cache_clear()  # labels and splits may have changed since the last call
    for name, origin in config.data.vectors.items():
        manifest, folder = read_manifest(data_dir), vectors_folder(data_dir, name)
        made_from = {"from": origin, "segments": segments_hash(manifest)}
        is_file = origin.lower().endswith(VECTOR_FILES)
        if is_file:
            if not storage.exists(origin):
                raise UserError(f"data.vectors: {name}: no such file: {origin}")
            # by name and content, since files may move
            made_from |= {"from": origin.rsplit("/", 1)[-1], "sha256": storage.file_sha256(origin)[0]}
        found = read_vectors_manifest(data_dir, name)
        if found is not None:
            _check_origin(folder, found, made_from)
        there = {path.rsplit("/", 1)[-1] for path in storage.list_files(folder)}
        lost = [shard["name"] for shard in manifest["shards"] if shard["name"] not in there]
        if found is None or lost:
            tasks = [(data_dir, name, shard["name"], made_from) for shard in manifest["shards"]]
            if is_file:
                make = VectorFile(origin, name)
                results = [write_vectors(*task, make) for task in tasks]
            else:
                find_function(origin, f"data.vectors: {name}")  # a mistake is reported before anything starts
                results = []
                for result in each(_of_function, tasks):
                    if "error" in result:
                        raise_from_text(result["error"])
                    results.append(result)
            if len(results) != len(tasks):  # Ray Data has lost rows without an error before
                said = f"Ray Data returned {len(results)} of {len(tasks)} shards; run the same command again"
                raise RuntimeError(said)
            found = _finish(folder, name, made_from, results, None if found is None else lost)
        kind = f"sequences of at most {found['longest']}" if found["longest"] else "one"
        print(
            f"preprocess: vectors {name}: {kind} of {found['width']} numbers, for "
            f"{found['segments_told']:,} of {manifest['counts']['segments']:,} segments, in {folder}"
        )


def _check_origin(folder: str, found: dict, made_from: dict) -> None:
    """Raises UserError that names the differences between what vectors were made from and what is given.

    folder: of the vectors.
    found: their manifest.
    made_from: what is given now.
    """
    differing = [key for key in made_from if found.get(key) != made_from[key]]
    given, reasons = made_from["from"], []
    if "from" in differing:
        reasons.append(f"{found.get('from')}, which is not {given}")
    elif "sha256" in differing:
        reasons.append(f"other contents of {given}")
    if "segments" in differing:
        reasons.append("other segments")
    if reasons:
        raise UserError(
            f"{folder} was made from {' and from '.join(reasons)}; "
            f"delete it to make it from {given}, or choose another name"
        )


def _of_function(task: list) -> dict:
    """The result of `write_vectors`. An error that Ray would wrap is returned instead, as {"error": text}."""
    data_dir, name, shard, made_from = task
    where = f"data.vectors: {name}: {made_from['from']}"
    try:
        function = find_function(made_from["from"], f"data.vectors: {name}")
        return write_vectors(data_dir, name, shard, made_from, lambda rows: called(function, rows, where))
    except TOLD as error:
        return {"error": to_text(error)}


def write_vectors(
    data_dir: str,
    name: str,
    shard: str,
    made_from: dict,
    make: Callable[[list[SegmentRow]], list[np.ndarray | None]],
) -> dict:
    """Writes the vectors of a shard of segments, unless they are there.

    data_dir: the data set's folder.
    name: of the vectors.
    shard: the file name of the shard of segments.
    made_from: what the manifest will say of it.
    make: gives [W] or [L, W] for each row, or None. Zeros are None: the model cannot tell them apart.

    Returns {"name", "rows", "bytes", "sha256", "kinds", "longest", "told"}: kinds are the pairs
    [dimensions, W] that occur, longest the largest number of vectors in a sequence, told the number of rows
    that have vectors.
    """
    path = storage.join(vectors_folder(data_dir, name), shard)
    if storage.exists(path) and (stored := _said_of(path))["from"] == made_from:
        return stored["found"] | _file_entry(path)
    store = _segments(data_dir, made_from["segments"])
    indices = np.flatnonzero(pc.equal(store.index.column("shard"), shard).to_numpy())
    rows = [SegmentRow(store, int(index)) for index in indices]
    made = [value if value is not None and value.any() else None for value in make(rows)]
    told = [value for value in made if value is not None]
    found = {
        "kinds": sorted({(value.ndim, value.shape[-1]) for value in told}),
        "longest": max((len(value) for value in told if value.ndim == 2), default=0),
        "told": len(told),
    }
    schema = VECTOR_SCHEMA.with_metadata({OF_A_SHARD: json.dumps({"from": made_from, "found": found})})
    with ShardWriter(path, schema) as writer:
        for row, value in zip(rows, made, strict=True):
            values = np.zeros((0, 0), np.float32) if value is None else np.atleast_2d(value)
            writer.write({"id": row["id"], "vectors": values.tobytes(), "length": len(values)})
    return found | writer.result


@functools.lru_cache(maxsize=1)
def _segments(data_dir: str, segments: str) -> SegmentStore:
    """The segments, read once a process and not for every shard. segments: their hash."""
    return SegmentStore(data_dir)


def _said_of(path: str) -> dict:
    return json.loads((open_parquet(path).schema_arrow.metadata or {}).get(OF_A_SHARD, b'{"from": null}'))


def _file_entry(path: str) -> dict:
    sha256, num_bytes = storage.file_sha256(path)
    rows = open_parquet(path).metadata.num_rows
    return {"name": path.rsplit("/", 1)[-1], "rows": rows, "bytes": num_bytes, "sha256": sha256}


def _finish(folder: str, name: str, made_from: dict, results: list[dict], lost: list[str] | None) -> dict:
    """Writes the manifest of one name. Raises UserError if the vectors are not of one kind.

    folder: of the vectors.
    name: of the vectors.
    made_from: what they were made from.
    results: of `write_vectors`, for all shards.
    lost: the shards that were made again; None if the vectors have no manifest yet. If their vectors do not
        fit, all that this job has made are deleted. The others stay.
    """
    kinds = sorted({tuple(kind) for result in results for kind in result["kinds"]})
    if len(kinds) != 1:
        words = {1: "vectors of {} numbers", 2: "sequences of vectors of {} numbers"}
        given = (
            " and ".join(words[dimensions].format(width) for dimensions, width in kinds) or "nothing at all"
        )
        advice = ""
        if lost is None:
            storage.delete_folder(folder)
        else:
            for shard in lost:
                storage.delete_file(storage.join(folder, shard))
            advice = f"; delete {folder} to make all of them anew"
        raise UserError(
            f"data.vectors: {name}: {made_from['from']} gave {given}; "
            f"expected vectors of one kind and width{advice}"
        )
    manifest = made_from | {
        "width": kinds[0][1],
        "longest": max(result["longest"] for result in results),
        "segments_told": sum(result["told"] for result in results),
        "shards": sorted(
            ({key: result[key] for key in ("name", "rows", "bytes", "sha256")} for result in results),
            key=lambda entry: entry["name"],
        ),
    }
    storage.write_text(storage.join(folder, "manifest.json"), json.dumps(manifest, indent=1))
    return manifest


class VectorFile:
    """A user's table of vectors: Parquet, or a structured array in npy, with a column `id` or `source`.

    path: local or remote.
    name: of the column of vectors: a list of numbers in each row, or a list of such lists; null: the segment
        has no vector.
    Raises UserError if it has no such columns, or names a key twice.
    """

    def __init__(self, path: str, name: str) -> None:
        self.path, self.name = path, name
        values = self._read()
        keys = [key for key in KEY_COLUMNS if key in values]
        if name not in values or not keys:
            raise UserError(
                f"data.vectors: {name}: {path} has the columns {', '.join(values) or 'of no table'}; "
                f"expected {name}, and {' or '.join(KEY_COLUMNS)} for the segment"
            )
        self.key = keys[0]
        self._place = {_text_of(key): place for place, key in enumerate(values[self.key])}
        self._vectors = values[name]
        if len(self._place) != len(self._vectors):
            raise UserError(
                f"data.vectors: {name}: {path} has rows of the same {self.key}; expected each once"
            )

    def __call__(self, rows: Sequence[SegmentRow]) -> list[np.ndarray | None]:
        """The vectors of segments. Raises UserError if the file has no row for one."""
        found = []
        for row in rows:
            place = self._place.get(row[self.key])
            if place is None:
                raise UserError(
                    f"data.vectors: {self.name}: {self.path} has no row with {self.key}={row[self.key]}; "
                    "expected one for each segment (null for a segment without a vector)"
                )
            value = self._vectors[place]
            value = value.as_py() if isinstance(value, pa.Scalar) else value
            where = f"data.vectors: {self.name} of {self.key}={row[self.key]} in {self.path}"
            found.append(None if value is None else as_vectors(value, where))
        return found

    def _read(self) -> dict[str, Sequence]:
        """{column: its values}."""
        if not self.path.lower().endswith(".npy"):
            try:
                table = read_whole(self.path)
            except DamagedShard as error:  # its advice is to delete the file, which is not ours
                raise self._unreadable(error.__cause__ or error, "Parquet") from error
            return {
                name: table.column(name).to_pylist() if name in KEY_COLUMNS else table.column(name)
                for name in table.column_names
            }
        content = io.BytesIO(storage.read_bytes(self.path))
        try:
            values = np.lib.format.read_array(content, allow_pickle=False)
        except (ValueError, EOFError, tokenize.TokenError) as error:
            raise self._unreadable(error, "npy") from error
        return {name: values[name] for name in values.dtype.names or ()}

    def _unreadable(self, error: BaseException, form: str) -> UserError:
        why = " ".join(str(error).split())
        return UserError(f"data.vectors: {self.name}: cannot read {self.path}: {why}; expected {form}")


def _text_of(key: object) -> str:
    """A key as the index writes it. Binary columns and numpy's S types give bytes."""
    return key.decode("utf-8", "replace") if isinstance(key, bytes) else str(key)
