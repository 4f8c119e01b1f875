"""(seed, position) -> batch of stored latents, for ST-DiT.

Latents are made in `proav/latents/encode.py`. Batches by step are in `feed.py`. Letters: b clips of this
rank, T frames, D latent channels, N plane side.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import torch

from proav import storage
from proav.config import Config
from proav.data.feeds.feed import Feed
from proav.data.feeds.order import EpochOrder
from proav.data.store.parquet import RowReader, open_parquet
from proav.data.store.shards import label_indices
from proav.data.store.vectors import VectorStore
from proav.diffusion.conditions import VECTOR_KEY
from proav.diffusion.tasks import masked_tasks, task_names
from proav.errors import UserError

OF_A_BATCH = ("id", "source_id", "start_frame", "flipped")
"""Columns of the index that go into a batch."""


class LatentFeed(Feed):
    """Stored latents of one split out of <run_dir>/latents/*.parquet.

    An epoch visits every stored window once, in a permutation from (seed, epoch).

    `at`, `batch` and `rows` return:
        joint, lone: float32 [b, D, 6, N, N], as stored, not normalized.
        label: int64 [b, K], the places in `labels` of each clip's labels, see `label_indices`.
        start_frame: int64 [b].
        flipped: bool [b].
        segment_id, source_id: lists of str.
        vector.NAME: float32 [b, W] or [b, L, W], of each name in `vectors`; zeros without a vector.
        position: int64 [b]; not from `rows`.
        masked: the planes of the masked clip, like `lone`; not from `rows`, and only with masked tasks. Zero
            for clips of other tasks.
        known: the mask of that clip, bool [b, 2, T]; returned under the same conditions as `masked`.

    latents_dir: the folder of the latents.
    labels: the vocabulary, of the data set's manifest or of a checkpoint.
    split: train or validation.
    seed: of the order.
    batch_size: clips of all ranks together.
    cache_bytes: size of the cache of recently read data.
    masked_for: the run whose masked clips are read; `task_names` draws the task of each clip. None: no masked
        clips are read.
    vectors: where the vectors of the latents' segments are, by name (`open_vectors`).

    Raises UserError if there are no latents of that split.
    """

    def __init__(
        self,
        latents_dir: str,
        *,
        labels: Sequence[str],
        split: str = "train",
        seed: int = 0,
        batch_size: int = 1,
        cache_bytes: int = 1 << 30,
        masked_for: Config | None = None,
        vectors: Mapping[str, VectorStore] | None = None,
    ) -> None:
        self.vectors = dict(vectors or {})
        self.masked_for = masked_for
        self.masked_tasks = masked_tasks(masked_for) if masked_for else ()
        self.latents_dir, self.split, self.seed, self.batch_size, self.labels = (
            latents_dir,
            split,
            seed,
            batch_size,
            tuple(labels),
        )
        files = [path for path in storage.list_files(latents_dir) if path.endswith(".parquet")]
        if not files:
            raise UserError(
                f"no latents in {latents_dir}; run: python ray_jobs/encode.py --config FILE, with the same "
                "run_dir"
            )
        names, rows, tables = [], [], []
        for path in files:
            table = _metadata(path)
            keep = np.flatnonzero(table.column("split").to_numpy() == split)
            tables.append(table.take(keep))
            rows.append(keep)
            names.append(path.rsplit("/", 1)[-1])
        self.names, self.row_numbers = names, np.concatenate(rows)
        self.shard_numbers = np.repeat(np.arange(len(names)), [len(keep) for keep in rows])
        self.index = pa.concat_tables(tables).combine_chunks()  # `take` joins chunks anew for every batch
        if not len(self.row_numbers):
            raise UserError(
                f"{latents_dir} has no clips to use in the split {split} (no windows); "
                "check data.validation_fraction and the listing"
            )
        self.label_indices = label_indices(self.index.column("labels"), self.labels)
        self.vector_rows = np.zeros(0, np.int64)
        if self.vectors:  # all are stored in the order of the segments
            store = next(iter(self.vectors.values()))
            places = [
                store.rows_of(name, table.column("id")) for name, table in zip(names, tables, strict=True)
            ]
            self.vector_rows = np.concatenate(places)
        self.reader = RowReader(latents_dir, cache_bytes=cache_bytes)
        self.order = EpochOrder(seed, len(self.row_numbers))

    def __len__(self) -> int:
        """Stored windows of the split; clips in an epoch."""
        return len(self.row_numbers)

    def at(self, positions: np.ndarray) -> dict:
        _, slots = self.order.slots(positions)
        batch = {**self.rows(slots), "position": torch.from_numpy(np.asarray(positions, np.int64))}
        if self.masked_tasks:
            tasks = task_names(self.masked_for.seed, positions, self.masked_for)
            batch |= self._masked(slots, tasks, like=batch["lone"])
        return batch

    def _masked(self, indices: np.ndarray, tasks: Sequence[str], *, like: torch.Tensor) -> dict:
        """`masked` and `known` of these windows for these tasks. like: planes of the same shape."""
        masked = torch.zeros_like(like)
        known = torch.zeros(len(indices), 2, self.masked_for.clip.num_frames, dtype=torch.bool)
        for place, (index, task) in enumerate(zip(indices.tolist(), tasks, strict=True)):
            if task in self.masked_tasks:
                row = self.reader.read(
                    self.names[self.shard_numbers[index]],
                    int(self.row_numbers[index]),
                    (task, f"{task}_known"),
                )
                planes, mask = (
                    np.frombuffer(row[task], np.float16),
                    np.frombuffer(row[f"{task}_known"], np.bool_),
                )
                masked[place] = torch.from_numpy(planes.reshape(like.shape[1:]).astype(np.float32))
                known[place] = torch.from_numpy(mask.reshape(known.shape[1:]).copy())
        return {"masked": masked, "known": known}

    def rows(self, indices: Sequence[int]) -> dict:
        """The stored windows with these numbers: 0 .. len - 1 in order of file and row, not shuffled."""
        indices = np.asarray(indices, np.int64)
        stored = [
            self.reader.read(
                self.names[self.shard_numbers[index]],
                int(self.row_numbers[index]),
                ("joint", "lone", "shape"),
            )
            for index in indices
        ]

        def stack(name: str) -> torch.Tensor:
            return torch.from_numpy(
                np.stack(
                    [np.frombuffer(row[name], np.float16).reshape(row["shape"]) for row in stored]
                ).astype(np.float32)
            )

        taken = self.index.select(OF_A_BATCH).take(indices)
        return {
            "joint": stack("joint"),
            "lone": stack("lone"),
            "label": torch.from_numpy(self.label_indices[indices]),
            "start_frame": torch.tensor(taken.column("start_frame").to_pylist(), dtype=torch.int64),
            "flipped": torch.tensor(taken.column("flipped").to_pylist(), dtype=torch.bool),
            "segment_id": taken.column("id").to_pylist(),
            "source_id": taken.column("source_id").to_pylist(),
            **self._vectors_of(indices),
        }

    def _vectors_of(self, indices: np.ndarray) -> dict[str, torch.Tensor]:
        shards = [self.names[number] for number in self.shard_numbers[indices]] if self.vectors else []
        places = list(zip(shards, self.vector_rows[indices].tolist(), strict=True)) if self.vectors else []
        return {
            f"{VECTOR_KEY}{name}": torch.from_numpy(np.stack([store.read(*place) for place in places]))
            for name, store in self.vectors.items()
        }


def _metadata(path: str) -> pa.Table:
    """The columns of a shard that are held in memory. An earlier version stored one label alone."""
    file = open_parquet(path)
    columns = ["id", "source_id", "labels", "split", "start_frame", "flipped"]
    if "labels" in file.schema_arrow.names:
        return file.read(columns=columns)
    table = file.read(columns=["label" if name == "labels" else name for name in columns])
    labels = [[label] for label in table.column("label").to_pylist()]
    place = columns.index("labels")
    return table.set_column(place, "labels", pa.array(labels, pa.list_(pa.string())))
