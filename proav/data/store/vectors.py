"""Stored vectors of segments, such as the embedding of a caption: data/vectors/<name>, beside the segments.

There is a file for each shard of segments, with the same rows in the same order. manifest.json is written
last. So vectors are added to prepared data, and to stored latents, without decoding or encoding anything.
`proav/data/prepare/vectors.py` writes them. Letters: L vectors of a sequence, W width.
"""

import hashlib
import json
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from proav import storage
from proav.data.store.parquet import RowReader, read_whole
from proav.data.store.shards import read_json_object, read_manifest
from proav.errors import UserError
from proav.vectors import Shape, fitted

VECTOR_SCHEMA = pa.schema([("id", pa.string()), ("vectors", pa.large_binary()), ("length", pa.int32())])
"""id: of the segment. vectors: float32 [length, W]. length: 0 if the segment has no vector."""


def vectors_folder(data_dir: str, name: str) -> str:
    return storage.join(data_dir, "vectors", name)


def segments_hash(manifest: dict) -> str:
    """16 hexadecimal digits that identify the stored segments, independent of filters and vocabulary."""
    content = json.dumps([shard["sha256"] for shard in manifest["shards"]])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def read_vectors_manifest(data_dir: str, name: str) -> dict | None:
    """{"from", "segments", "width", "longest", "segments_told", "shards", ...}; None if there is none.

    longest: the largest number of vectors in a sequence; 0: one vector a segment.
    Raises DamagedShard if the file is not a JSON object.
    """
    path = storage.join(vectors_folder(data_dir, name), "manifest.json")
    return read_json_object(path) if storage.exists(path) else None


class VectorStore:
    """The vectors of one name, by shard and row of the segments. It is pickled as its arguments.

    data_dir: the data set's folder.
    name: of the vectors.
    shape: in which the model takes them.

    Raises UserError if they are not stored, are those of other segments, or do not fit the shape.
    """

    def __init__(self, data_dir: str, name: str, shape: Shape) -> None:
        self.data_dir, self.name, self.shape = data_dir, name, shape
        manifest, segments = read_vectors_manifest(data_dir, name), read_manifest(data_dir)
        how = f"run: python ray_jobs/preprocess.py --config FILE 'data.vectors={{{name}: ...}}'"
        if manifest is None:
            raise UserError(f"stdit.vectors names {name}, but {data_dir} stores no such vectors; {how}")
        if manifest["segments"] != segments_hash(segments):
            folder = vectors_folder(data_dir, name)
            raise UserError(f"{folder} was made from other segments; delete it, then {how}")
        stored = (manifest["longest"], manifest["width"]) if manifest["longest"] else (manifest["width"],)
        if len(stored) != len(shape) or stored[-1] != shape[-1] or stored[0] > shape[0]:
            asks = list(stored) if manifest["longest"] else manifest["width"]
            given = list(shape) if len(shape) > 1 else shape[0]
            raise UserError(
                f"the stored vectors {name} need stdit.vectors={{{name}: {asks}}}, not {given}; write that, "
                "or another name"
            )
        digests = {shard["name"]: shard["sha256"] for shard in manifest["shards"]}
        self._reader = RowReader(vectors_folder(data_dir, name), cache_bytes=64 << 20, digests=digests)

    def __getstate__(self) -> dict:
        return {"data_dir": self.data_dir, "name": self.name, "shape": self.shape}

    def __setstate__(self, state: dict) -> None:
        self.__init__(**state)

    def rows_of(self, shard: str, ids: pa.ChunkedArray) -> np.ndarray:
        """int64: the row of each segment in a shard, by its id. Raises UserError if one is not there."""
        path = storage.join(vectors_folder(self.data_dir, self.name), shard)
        stored = read_whole(path, without=("vectors", "length"))
        rows = pc.index_in(ids, value_set=stored.column("id").combine_chunks())
        if rows.null_count:
            missing = ids.filter(pc.is_null(rows))[0]
            raise UserError(
                f"{vectors_folder(self.data_dir, self.name)}/{shard} has no segment {missing}: the latents "
                "are of other data; encode them anew"
            )
        return rows.to_numpy().astype(np.int64)

    def read(self, shard: str, row: int) -> np.ndarray:
        """float32 of the model's shape; zeros if the segment has no vector."""
        found = self._reader.read(shard, row, ("vectors", "length"))
        if not found["length"]:
            return fitted(None, self.shape, self.name)
        values = np.frombuffer(found["vectors"], np.float32).reshape(-1, self.shape[-1])
        return fitted(values if len(self.shape) > 1 else values[0], self.shape, self.name)


def open_vectors(data_dir: str, shapes: Mapping[str, Shape]) -> dict[str, VectorStore]:
    """The stores of all vectors that a model takes. shapes: `STDiTConfig.vector_shapes`. Raises UserError."""
    return {name: VectorStore(data_dir, name, shape) for name, shape in shapes.items()}
