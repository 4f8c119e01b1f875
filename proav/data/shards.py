"""Segments at rest: the row schema, the manifest, random access to windows of frames, and a check of it all.

Files under <run_dir>/data: segments/*.parquet (one row a segment), rejects/*.parquet, index.parquet (every column but the bulky ones, with
shard and row), manifest.json (written last: without it the data set is not finished). Works without Ray. Letters: T frames, H and W rows and
columns, M mel bins, S mel columns in a frame.
"""

import hashlib
import io
import json
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from proav import storage
from proav.data.frames import decode_frames
from proav.data.rows import DamagedShard, RowReader, ShardWriter, file_sha256, open_parquet, write_shard
from proav.errors import UserError

__all__ = [
    "REJECT_SCHEMA",
    "SEGMENT_SCHEMA",
    "DamagedShard",
    "RowReader",
    "SegmentStore",
    "ShardWriter",
    "read_manifest",
    "read_rejects",
    "verify",
    "write_shard",
]

FORMAT = 1
"""Version of the manifest and of the schema below; a reader refuses others."""

SEGMENT_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),  # its key, see proav/data/sources.py
        ("source_id", pa.string()),
        ("label", pa.string()),  # empty: none
        ("split", pa.string()),
        ("start_seconds", pa.float64()),  # within the source
        ("num_frames", pa.int32()),
        ("fps", pa.int32()),
        ("sample_rate", pa.int32()),
        ("has_audio", pa.bool_()),
        ("rms", pa.float32()),  # of the sound, full scale 1
        ("peak", pa.float32()),  # largest |sample|
        ("clipped", pa.float32()),  # share of samples at full scale
        ("silent", pa.bool_()),  # rms below -60 dB of full scale
        ("mean_luma", pa.float32()),  # of all pixels, white is 1
        ("motion", pa.float32()),  # mean |difference| of a pixel to the frame before, full scale 1
        ("video_codec", pa.string()),  # raw | jpeg
        ("video_shape", pa.list_(pa.int32())),  # [T, H, W, 3]
        ("video_dtype", pa.string()),
        ("audio_shape", pa.list_(pa.int32())),  # [samples]
        ("audio_dtype", pa.string()),
        ("mel_shape", pa.list_(pa.int32())),  # [T, M, S]
        ("mel_dtype", pa.string()),
        ("frame_offsets", pa.list_(pa.int64())),  # T + 1 places in `video`
        ("video", pa.large_binary()),
        ("audio", pa.large_binary()),  # int16, 32767 is full scale
        ("mel", pa.large_binary()),  # float16 in [-1, 1], of the whole segment
    ]
)
BULKY_COLUMNS = ("frame_offsets", "video", "audio", "mel")
INDEX_SCHEMA = pa.schema([("shard", pa.string()), ("row", pa.int32()), *(field for field in SEGMENT_SCHEMA if field.name not in BULKY_COLUMNS)])

REJECT_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("source_id", pa.string()),
        ("start_seconds", pa.float64()),
        ("reason", pa.string()),
        ("message", pa.string()),
    ]
)
"""A rejected source, or the rest of one from start_seconds on; `id` is that segment's id."""

SEGMENT_COMPRESSION = {name: "zstd" if name in ("audio", "mel") else "none" for name in SEGMENT_SCHEMA.names}
"""Frames are compressed already, or raw for speed; metadata is too short to gain."""

FULL_SCALE = 32767.0


def read_manifest(data_dir: str) -> dict:
    """The data set's description. Raises UserError where preprocessing has not finished."""
    path = storage.join(data_dir, "manifest.json")
    try:
        manifest = json.loads(storage.read_text(path))
    except FileNotFoundError:
        raise UserError(
            f"no prepared data in {data_dir} (no manifest.json); run: python ray_jobs/preprocess.py --config FILE, with the same run_dir"
        ) from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DamagedShard(f"{path} is damaged: {error}; delete it and run preprocess again: finished shards are kept") from None
    if manifest.get("format") != FORMAT:
        raise UserError(
            f"{path} has format {manifest.get('format')}, this proav reads format {FORMAT}; prepare the data again in another run_dir=DIR"
        )
    return manifest


def manifest_hash(manifest: dict) -> str:
    """What identifies the data: labels and the checksums of all shards."""
    content = json.dumps([manifest["labels"], [shard["sha256"] for shard in manifest["shards"]]])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def read_rejects(data_dir: str) -> pa.Table:
    """All rejected sources and segments, by source and start."""
    files = storage.list_files(storage.join(data_dir, "rejects"))
    tables = [open_parquet(path).read() for path in files if path.endswith(".parquet")]
    return pa.concat_tables(tables) if tables else REJECT_SCHEMA.empty_table()


class SegmentStore:
    """Random access to the segments of a finished data set, by index 0 .. len - 1 (shards in order of name).

    Only metadata is held in memory; `window` reads one row's bytes and decodes just the frames asked for. Pickles as the folder's name.
    Raises UserError where the data set is not finished, DamagedShard where it is damaged.
    """

    def __init__(self, data_dir: str, *, cache_bytes: int = 256 << 20) -> None:
        self.data_dir, self.cache_bytes = data_dir, cache_bytes
        self.manifest = read_manifest(data_dir)
        self.index = open_parquet(storage.join(data_dir, "index.parquet")).read()
        if self.index.num_rows != self.manifest["counts"]["segments"]:
            raise DamagedShard(
                f"{data_dir}/index.parquet has {self.index.num_rows} rows, the manifest {self.manifest['counts']['segments']}; "
                "delete manifest.json and run preprocess again"
            )
        self._reader = RowReader(storage.join(data_dir, "segments"), cache_bytes=cache_bytes)

    def __getstate__(self) -> dict:
        return {"data_dir": self.data_dir, "cache_bytes": self.cache_bytes}

    def __setstate__(self, state: dict) -> None:
        self.__init__(state["data_dir"], cache_bytes=state["cache_bytes"])

    def __len__(self) -> int:
        return self.index.num_rows

    @property
    def labels(self) -> tuple[str, ...]:
        """The vocabulary, in the order of the label embedding."""
        return tuple(self.manifest["labels"])

    @property
    def rows(self) -> "Rows":
        """Metadata of each segment as a dict: store.rows[7]["label"]."""
        return Rows(self.index)

    def column(self, name: str) -> np.ndarray:
        """One metadata column for all segments."""
        return self.index.column(name).to_numpy()

    def label_indices(self) -> np.ndarray:
        """int64 [len]: each segment's place in the vocabulary; len(labels), the null label, where it has none."""
        return label_indices(self.index.column("label"), self.labels)

    def indices(self, *, split: str | None = None, shard: str | None = None) -> np.ndarray:
        """int64: the segments of a split, of a shard, or both."""
        keep = np.ones(len(self), bool)
        for name, value in (("split", split), ("shard", shard)):
            if value is not None:
                keep &= pc.equal(self.index.column(name), value).to_numpy()
        return np.flatnonzero(keep)

    def window(
        self, index: int, start: int = 0, num_frames: int | None = None, *, want: Sequence[str] = ("video", "mel", "audio")
    ) -> dict[str, np.ndarray]:
        """Frames start .. start + num_frames - 1 of a segment (to its end where None), and the mel columns and sound that belong to them.

        Returns those of `want`: video uint8 [T, H, W, 3]; mel float16 [T, M, S] in [-1, 1]; audio float32 [samples] in [-1, 1].
        """
        place = {
            name: self.index.column(name)[index].as_py()
            for name in ("shard", "row", "num_frames", "fps", "sample_rate", "video_codec", "video_shape", "mel_shape")
        }
        count = place["num_frames"] - start if num_frames is None else num_frames
        assert 0 <= start and count >= 1 and start + count <= place["num_frames"], f"frames {start} to {start + count} of {place['num_frames']}"
        window = {}
        if "video" in want:
            row = self._reader.read(place["shard"], place["row"], ("video", "frame_offsets"))
            try:
                window["video"] = decode_frames(
                    row["video"], row["frame_offsets"], codec=place["video_codec"], shape=place["video_shape"], start=start, count=count
                )
            except (OSError, ValueError) as error:
                raise DamagedShard(
                    f"{self.data_dir}/segments/{place['shard']}, row {place['row']}: frames cannot be decoded "
                    f"({error}); delete that file and run preprocess again"
                ) from error
        if "mel" in want:
            mel = np.frombuffer(self._reader.read(place["shard"], place["row"], ("mel",))["mel"], np.float16).reshape(place["mel_shape"])
            window["mel"] = mel[start : start + count].copy()
        if "audio" in want:
            per_frame = place["sample_rate"] // place["fps"]
            sound = np.frombuffer(self._reader.read(place["shard"], place["row"], ("audio",))["audio"], np.int16)
            window["audio"] = sound[start * per_frame : (start + count) * per_frame].astype(np.float32) / FULL_SCALE
        return window


class Rows(Sequence):
    """Rows of an Arrow table as dicts, made when they are asked for."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    def __len__(self) -> int:
        return self.table.num_rows

    def __getitem__(self, index: int) -> dict:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return {name: self.table.column(name)[index].as_py() for name in self.table.column_names}

    def __iter__(self):
        for batch in self.table.to_batches(max_chunksize=1024):
            yield from batch.to_pylist()


def label_indices(labels: pa.ChunkedArray, vocabulary: Sequence[str]) -> np.ndarray:
    """int64: place in the vocabulary, len(vocabulary) where it is not there."""
    found = pc.index_in(labels, value_set=pa.array(list(vocabulary), pa.string()))
    return pc.fill_null(found, len(vocabulary)).to_numpy().astype(np.int64)


def read_shard_index(path: str) -> pa.Table:
    """The metadata of one shard as rows of the index; the bulky columns are not read."""
    table = open_parquet(path).read(columns=[name for name in INDEX_SCHEMA.names if name not in ("shard", "row")])
    places = {"shard": [path.rsplit("/", 1)[-1]] * table.num_rows, "row": range(table.num_rows)}
    columns = [pa.array(places[field.name], field.type) if field.name in places else table.column(field.name) for field in INDEX_SCHEMA]
    return pa.table(columns, schema=INDEX_SCHEMA)


def index_bytes(index: pa.Table) -> bytes:
    """The content of index.parquet."""
    buffer = io.BytesIO()
    pq.write_table(index, buffer, compression="zstd", write_statistics=False)
    return buffer.getvalue()


def verify(data_dir: str) -> dict:
    """Reads every byte again: checksums and row counts of all shards and of the index; returns {"shards", "rows", "bytes"}.

    Raises DamagedShard that names the damaged files.
    """
    manifest, problems = read_manifest(data_dir), []
    folder = storage.join(data_dir, "segments")
    expected = [(storage.join(folder, shard["name"]), shard) for shard in manifest["shards"]]
    for path, entry in [*expected, (storage.join(data_dir, "index.parquet"), manifest["index"])]:
        try:
            digest, _ = file_sha256(path)
        except FileNotFoundError:
            problems.append(f"{path} is missing")
            continue
        if digest != entry["sha256"]:
            problems.append(f"{path} has changed since it was written")
        elif open_parquet(path).metadata.num_rows != entry["rows"]:
            problems.append(f"{path} does not have {entry['rows']} rows")
    known = {shard["name"] for shard in manifest["shards"]}
    problems += [f"{path} is not in the manifest" for path in storage.list_files(folder) if path.rsplit("/", 1)[-1] not in known]
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise DamagedShard(f"{'; '.join(problems[:3])}{more}; delete these files and run preprocess again: it makes what is missing")
    return {"shards": len(expected), "rows": manifest["counts"]["segments"], "bytes": sum(shard["bytes"] for shard in manifest["shards"])}
