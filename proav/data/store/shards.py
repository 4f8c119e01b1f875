"""A finished data set: its manifest, and random access to windows of frames; works without Ray.

Files under <run_dir>/data:
    segments/*.parquet: one row a segment.
    units/*.parquet, sources/*.parquet: one file for each unit of work.
    rejects/*.parquet: one file for each unit of work that rejected something.
    index.parquet: every segment with its shard and row.
    manifest.json: written last; without it the data set is not finished.

`schema.py` defines the columns. `proav/data/prepare` writes the files.

Letters: T frames, H and W rows and columns, M mel bins, S mel columns in a frame.
"""

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from proav import storage
from proav.data.store.frames import decode_frames
from proav.data.store.parquet import DamagedShard, RowReader, read_whole
from proav.data.store.schema import ACCOUNT_SCHEMA, FORMAT, FULL_SCALE, REJECT_SCHEMA
from proav.errors import UserError
from proav.text import LABEL_SEPARATOR, NO_LABEL, one_form

UNREAD_COLUMNS = ("checksum", "picture_hash", "sound_hash")
"""Only the filters and the verification use these columns. With two million segments, they would double the
memory of every loader.
"""


def read_manifest(data_dir: str) -> dict:
    """The data set's description.

    Raises UserError if preprocessing has not finished or the format is another. Raises DamagedShard if the
    file is not a JSON object.
    """
    path = storage.join(data_dir, "manifest.json")
    try:
        manifest = read_json_object(path)
    except FileNotFoundError:
        raise UserError(
            f"no prepared data in {data_dir} (no manifest.json); "
            "run: python ray_jobs/preprocess.py --config FILE, with the same run_dir"
        ) from None
    if manifest.get("format") != FORMAT:
        raise UserError(
            f"{path} has format {manifest.get('format')}, this proav reads format {FORMAT}; "
            f"prepare the data again in another run_dir=DIR, or delete {data_dir}"
        )
    return manifest


def read_json_object(path: str) -> dict:
    """What a manifest of segments or vectors holds.

    Raises DamagedShard if it is not a JSON object, and FileNotFoundError if there is no such file.
    """
    try:
        found = json.loads(storage.read_text(path))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise _damaged(path, str(error)) from None
    if not isinstance(found, dict):
        raise _damaged(path, "it holds no JSON object")
    return found


def _damaged(path: str, why: str) -> DamagedShard:
    return DamagedShard(
        f"{path} is damaged: {why}; delete it and run preprocess again: finished shards are kept"
    )


def manifest_hash(manifest: dict) -> str:
    """16 hexadecimal digits that identify the data.

    They depend on the labels, the checksums of all shards and of the index (which says which segments are in
    use), and filters.avoid_shot_cuts.
    """
    parts = [
        manifest["labels"],
        [shard["sha256"] for shard in manifest["shards"]],
        manifest["index"]["sha256"],
        manifest["filters"]["avoid_shot_cuts"],
    ]
    content = json.dumps(parts)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def read_rejects(data_dir: str) -> pa.Table:
    """Rejected sources and rejected spans of sources, in order of source and start."""
    return _read_all(storage.join(data_dir, "rejects"), REJECT_SCHEMA)


def read_accounts(data_dir: str) -> pa.Table:
    """Where the seconds of each planned stretch went, in order of source and start."""
    return _read_all(storage.join(data_dir, "sources"), ACCOUNT_SCHEMA)


def _read_all(folder: str, schema: pa.Schema) -> pa.Table:
    with ThreadPoolExecutor(8) as pool:
        tables = list(
            pool.map(
                read_whole,
                (path for path in storage.list_files(folder) if path.endswith(".parquet")),
            )
        )
    return pa.concat_tables(tables) if tables else schema.empty_table()


class SegmentStore:
    """Random access to the segments of a finished data set, by index 0 .. len - 1 (shards in order of name).

    Metadata is held in memory. Pictures and sound are not, except for a cache of recently read ones. `window`
    reads one row's bytes and decodes only the frames asked for. The store is pickled as its arguments.

    data_dir: the data set's folder.
    cache_bytes: size of the cache of recently read values.

    Raises UserError if the data set is not finished, DamagedShard if it is damaged.
    """

    def __init__(self, data_dir: str, *, cache_bytes: int = 256 << 20) -> None:
        self.data_dir, self.cache_bytes = data_dir, cache_bytes
        self.manifest = read_manifest(data_dir)
        self.index = read_whole(
            storage.join(data_dir, "index.parquet"),
            without=UNREAD_COLUMNS,
            sha256=self.manifest.get("index", {}).get("sha256"),
        )
        if self.index.num_rows != self.manifest["counts"]["segments"]:
            raise DamagedShard(
                f"{data_dir}/index.parquet has {self.index.num_rows} rows, the manifest "
                f"{self.manifest['counts']['segments']}; "
                "delete manifest.json and run preprocess again"
            )
        digests = {shard["name"]: shard["sha256"] for shard in self.manifest["shards"]}
        self._reader = RowReader(storage.join(data_dir, "segments"), cache_bytes=cache_bytes, digests=digests)

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
        """int64 [len, K]: the places of each segment's labels in the vocabulary, see `label_indices`."""
        return label_indices(self.index.column("labels"), self.labels)

    def label_text(self, index: int) -> str:
        """A segment's labels that the vocabulary has, with LABEL_SEPARATOR between them; empty: none."""
        given = [one_form(label) for label in self.index.column("labels")[index].as_py()]
        known = [one_form(label) for label in self.labels]
        return LABEL_SEPARATOR.join(label for label in dict.fromkeys(given) if label in known)

    def indices(self, *, split: str | None = None, shard: str | None = None) -> np.ndarray:
        """int64: the segments that the filters leave in use.

        `split` and `shard` restrict them to one split and to one shard.
        """
        keep = pc.equal(self.index.column("dropped"), "").to_numpy().copy()
        for name, value in (("split", split), ("shard", shard)):
            if value is not None:
                keep &= pc.equal(self.index.column(name), value).to_numpy()
        return np.flatnonzero(keep)

    def stretches(
        self, *, num_frames: int, split: str | None = None, shard: str | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The parts of used segments that windows of `num_frames` frames may be drawn from.

        A whole segment is one stretch. If the data set was filtered with avoid_shot_cuts, each shot is one.
        Stretches shorter than `num_frames` are left out.

        num_frames: the length of a window.
        split: train or validation; None: both.
        shard: a shard's file name; None: all.

        Returns three int64 arrays: the segment, the first frame and the number of frames of each stretch.
        """
        segments = self.indices(split=split, shard=shard)
        frames = self.column("num_frames")[segments].astype(np.int64)
        first = np.zeros(len(segments), np.int64)
        if self.manifest["filters"]["avoid_shot_cuts"] and len(segments):
            cuts = self.index.column("shot_starts").take(segments).combine_chunks()
            shots = pc.list_value_length(cuts).to_numpy() + 1
            opening = np.cumsum(shots) - shots  # place of each segment's first shot
            later = np.ones(shots.sum(), bool)
            later[opening] = False
            first = np.zeros(len(later), np.int64)
            first[later] = cuts.flatten().to_numpy()
            ends = np.append(first[1:], 0)
            ends[opening + shots - 1] = frames
            segments, frames = np.repeat(segments, shots), ends - first
        keep = frames >= num_frames
        return segments[keep], first[keep], frames[keep]

    def window(
        self,
        index: int,
        start: int = 0,
        num_frames: int | None = None,
        *,
        want: Sequence[str] = ("video", "mel", "audio"),
    ) -> dict[str, np.ndarray]:
        """Frames start .. start + num_frames - 1 of a segment, and the mel and sound that belong to them.

        index: the segment's place in the store.
        start: the first frame.
        num_frames: how many; None: to the segment's end.
        want: which of video, mel and audio to read.

        Returns those of `want`: video uint8 [T, H, W, 3]; mel float16 [T, M, S] in [-1, 1]; audio float32
        [samples] in [-1, 1]. Raises DamagedShard or StorageUnavailable, as `RowReader.checked`.
        """
        place = {
            name: self.index.column(name)[index].as_py()
            for name in (
                "shard",
                "row",
                "num_frames",
                "fps",
                "sample_rate",
                "video_codec",
                "video_shape",
                "mel_shape",
            )
        }
        count = place["num_frames"] - start if num_frames is None else num_frames
        assert 0 <= start and count >= 1 and start + count <= place["num_frames"], (
            f"frames {start} to {start + count} of {place['num_frames']}"
        )
        window = {}
        if "video" in want:

            def pictures() -> np.ndarray:
                row = self._reader.read(place["shard"], place["row"], ("video", "frame_offsets"))
                form = {"codec": place["video_codec"], "shape": place["video_shape"]}
                try:
                    return decode_frames(row["video"], row["frame_offsets"], **form, start=start, count=count)
                except (OSError, ValueError) as error:
                    raise ValueError(f"row {place['row']}: frames cannot be decoded ({error})") from error

            window["video"] = self._reader.checked(place["shard"], pictures)
        if "mel" in want:
            mel = np.frombuffer(
                self._reader.read(place["shard"], place["row"], ("mel",))["mel"], np.float16
            ).reshape(place["mel_shape"])
            window["mel"] = mel[start : start + count].copy()
        if "audio" in want:
            per_frame = place["sample_rate"] // place["fps"]
            sound = np.frombuffer(
                self._reader.read(place["shard"], place["row"], ("audio",))["audio"], np.int16
            )
            window["audio"] = (
                sound[start * per_frame : (start + count) * per_frame].astype(np.float32) / FULL_SCALE
            )
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
    """int64 [N, K]: the places in the vocabulary of each row's labels, each once, then NO_LABEL.

    A row with none of the vocabulary's labels has the null label, len(vocabulary), alone.

    labels: lists of labels. K: the most labels that a row has.
    """
    lists = labels.combine_chunks()
    names = pa.array([one_form(label) for label in vocabulary], pa.string())
    found = pc.index_in(pc.utf8_normalize(lists.flatten(), form="NFC"), value_set=names)
    known = pc.is_valid(found).to_numpy(zero_copy_only=False)
    pairs = np.stack([pc.list_parent_indices(lists).to_numpy()[known], found.drop_null().to_numpy()], axis=1)
    _, firsts = np.unique(pairs, axis=0, return_index=True)
    rows, places = pairs[np.sort(firsts)].astype(np.int64).T
    begins = np.flatnonzero(np.diff(rows, prepend=-1))
    ordinals = np.arange(len(rows)) - np.repeat(begins, np.diff(np.append(begins, len(rows))))
    table = np.full((len(lists), int(ordinals.max(initial=0)) + 1), NO_LABEL)
    table[:, 0] = len(vocabulary)
    table[rows, ordinals] = places
    return table


def by_label(index: pa.Table, labels: Sequence[str] | None = None) -> pa.Table:
    """The rows with one `label` each: a row comes once for each of its `labels`, or once with an empty one.

    labels: those that count; None: all.
    """
    lists = index.column("labels").combine_chunks()
    names, rows = lists.flatten(), pc.list_parent_indices(lists).to_numpy()
    if labels is not None:
        known = pc.is_in(names, value_set=pa.array(labels, pa.string()))
        names, rows = names.filter(known), rows[known.to_numpy(zero_copy_only=False)]
    without = np.setdiff1d(np.arange(index.num_rows), rows)
    column = pa.concat_arrays([names, pa.array([""] * len(without), pa.string())])
    others = index.select([name for name in index.column_names if name not in ("label", "labels")])
    return others.take(np.concatenate([rows, without])).append_column("label", column)


def index_bytes(index: pa.Table) -> pa.Buffer:
    """The content of index.parquet."""
    buffer = pa.BufferOutputStream()
    pq.write_table(index, buffer, compression="zstd", write_statistics=False)
    return buffer.getvalue()
