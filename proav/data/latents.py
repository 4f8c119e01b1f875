"""Windows to stored latents: MDSA over every shard once, with Ray Data; and the statistics that normalize them.

For each window both kinds are stored: the joint planes, which ST-DiT learns to make, and the lone planes (each modality encoded without
the other), as which a given stream always enters. One shard of segments becomes one shard of latents, so that a run can go on where it stopped.
"""

import json
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import torch

from proav import storage
from proav.checkpoint import check_resumable, load_checkpoint
from proav.config import Config
from proav.data.rows import ShardWriter, open_parquet
from proav.data.shards import SegmentStore, manifest_hash, read_manifest
from proav.errors import UserError
from proav.geometry import PLANE_NAMES
from proav.progress import Progress

LATENT_SCHEMA = pa.schema(
    [
        ("id", pa.string()),  # of the segment
        ("source_id", pa.string()),
        ("label", pa.string()),
        ("split", pa.string()),
        ("start_frame", pa.int32()),
        ("flipped", pa.bool_()),
        ("joint", pa.large_binary()),
        ("lone", pa.large_binary()),
        ("shape", pa.list_(pa.int32())),
    ]
)
"""`joint` and `lone` are float16 stacks [D, 6, N, N], not normalized; bytes, since nested lists cost more to read than the model takes to run."""

MIN_STD = 1e-3
"""A plane channel that never moves would otherwise be blown up by its normalization; planes live in (-1, 1)."""


def encode_latents(config: Config) -> dict:
    """Encodes all windows of the run's shards with its newest MDSA checkpoint; returns the content of latents/stats.json.

    Done already with this very checkpoint and these settings: nothing is changed. Made by another checkpoint: encoded anew. Shards that are
    missing are made. Raises UserError where data or MDSA are missing, or MDSA was made for other clips than this configuration's.
    """
    import ray

    run = config.run_folder
    folder, stats_path = storage.join(run, "latents"), storage.join(run, "latents", "stats.json")
    manifest = read_manifest(storage.join(run, "data"))
    checkpoint = load_checkpoint(storage.join(run, "mdsa", "checkpoints"), kind="mdsa")
    check_resumable(checkpoint, config.model_copy(update={"seed": checkpoint.config.seed}), checkpoint.labels)  # encoding draws nothing
    settings = {
        "mdsa_checkpoint": checkpoint.hash,
        "stride_frames": config.encode.stride_frames,
        "flips": config.encode.flips,
        "data": manifest_hash(manifest),
    }
    shards = [shard["name"] for shard in manifest["shards"]]
    there = {path.rsplit("/", 1)[-1] for path in storage.list_files(folder, recursive=False)} - {"stats.json"}
    stats = json.loads(storage.read_text(stats_path)) if storage.exists(stats_path) else settings
    if there - set(shards) or any(stats.get(key) != value for key, value in settings.items()):
        print(f"encode: {folder} was made with other settings, other data or another MDSA checkpoint; encoding anew")
        storage.delete_folder(folder)
    elif there == set(shards) and "num_windows" in stats:
        print(f"encode: done already, {stats['num_windows']:,} windows in {folder}")
        return stats
    rows = [{"shard": name} for name in shards]
    gpus = 1 if ray.cluster_resources().get("GPU", 0) >= 1 else 0
    ray.data.DataContext.get_current().enable_progress_bars = False
    encoded = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        ShardEncoder,
        fn_constructor_kwargs={"config": config, "checkpoint_path": checkpoint.path, "settings": settings},
        compute=ray.data.ActorPoolStrategy(size=min(config.encode.num_workers, len(rows))),
        num_cpus=1,
        num_gpus=gpus,
    )
    progress, parts = Progress("encode", manifest["counts"]["segments"], "segments"), {}
    for row in encoded.iter_rows():
        if row["error"]:
            raise UserError(row["error"])
        parts[row["shard"]] = row
        progress.update(progress.done + row["num_segments"])
    progress.close()
    if set(parts) != set(shards):
        raise RuntimeError(f"Ray Data returned {len(parts)} of {len(shards)} shards; run the same command again")
    stats = {**settings, **merge_statistics([parts[name] for name in shards]), "labels": manifest["labels"], "mdsa_path": checkpoint.path}
    storage.write_text(stats_path, json.dumps(stats, indent=1))
    print(f"encode: {stats['num_windows']:,} windows in {folder}")
    return stats


class ShardEncoder:
    """One shard of segments -> one shard of latents; a Ray Data actor, or called by hand in a test."""

    def __init__(self, config: Config, checkpoint_path: str, settings: dict, device: str | None = None) -> None:
        from proav.pipeline import load_coder

        self.config, self.settings = config, settings
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.coder = load_coder(load_checkpoint(checkpoint_path, kind="mdsa"), device=device)
        self.store = SegmentStore(storage.join(config.run_folder, "data"))

    def __call__(self, row: dict) -> dict:
        """Returns counts and sums of the shard named row["shard"]; a shard already there with the same settings is only read.

        `error` tells a user's mistake, such as a full disk, which Ray would wrap beyond recognition.
        """
        name = row["shard"]
        path = storage.join(self.config.run_folder, "latents", name)
        indices = self.store.indices(shard=name).tolist()
        try:
            if not (storage.exists(path) and _made_with(path) == self.settings):
                self._encode_shard(path, indices)
            return {"shard": name, "num_segments": len(indices), **shard_sums(path), "error": ""}
        except UserError as error:
            return {"shard": name, "num_segments": 0, "num_windows": 0, "sums": "0.0", "error": str(error)}

    @torch.inference_mode()
    def _encode_shard(self, path: str, indices: list[int]) -> None:
        settings = {b"proav.settings": json.dumps(self.settings).encode()}
        with ShardWriter(path, LATENT_SCHEMA.with_metadata(settings)) as writer:
            windows = [window for index in indices for window in self._windows(index)]
            for first in range(0, len(windows), self.config.encode.batch_size):
                batch = windows[first : first + self.config.encode.batch_size]
                for row in self._rows(batch, *self._encode_windows(batch)):
                    writer.write(row)

    def _windows(self, index: int) -> list[tuple[int, int, bool]]:
        """(segment, start frame, flipped) of each window of a segment; only training windows are mirrored."""
        segment, settings = self.store.rows[index], self.config.encode
        starts = range(0, segment["num_frames"] - self.config.clip.num_frames + 1, settings.stride_frames)
        mirrored = (False, True) if settings.flips and segment["split"] == "train" else (False,)
        return [(index, start, flipped) for start in starts for flipped in mirrored]

    def _encode_windows(self, windows: list[tuple[int, int, bool]]) -> tuple[torch.Tensor, torch.Tensor]:
        frames = self.config.clip.num_frames
        segments = {index: self.store.window(index, 0, self.store.rows[index]["num_frames"]) for index in {index for index, _, _ in windows}}
        pictures = [segments[index]["video"][start : start + frames] for index, start, _ in windows]
        video = torch.from_numpy(np.stack([clip[:, :, ::-1] if flipped else clip for clip, (_, _, flipped) in zip(pictures, windows, strict=True)]))
        mel = torch.from_numpy(np.stack([segments[index]["mel"][start : start + frames] for index, start, _ in windows])).float()
        return self.coder.encode(video, mel), self.coder.encode(video, mel, lone=True)

    def _rows(self, windows: list[tuple[int, int, bool]], joint_BDPNN: torch.Tensor, lone_BDPNN: torch.Tensor) -> Iterator[dict]:
        joint, lone = joint_BDPNN.half().cpu().numpy(), lone_BDPNN.half().cpu().numpy()
        for position, (index, start, flipped) in enumerate(windows):
            segment = self.store.rows[index]
            identity = {key: segment[key] for key in ("id", "source_id", "label", "split")}
            planes = {"joint": joint[position].tobytes(), "lone": lone[position].tobytes(), "shape": list(joint.shape[1:])}
            yield {**identity, "start_frame": start, "flipped": flipped, **planes}


def _made_with(path: str) -> dict:
    return json.loads((open_parquet(path).schema_arrow.metadata or {}).get(b"proav.settings", b"{}"))


def shard_sums(path: str) -> dict:
    """{"num_windows", "sums"} of a finished shard: count, sum and sum of squares of the joint planes of its training windows, [3][6][D], float64."""
    table = open_parquet(path).read(columns=["split", "joint", "shape"])
    sums: np.ndarray | float = 0.0
    for split, joint, shape in zip(table.column("split").to_pylist(), table.column("joint"), table.column("shape").to_pylist(), strict=True):
        if split == "train":
            values_PDV = np.frombuffer(joint.as_buffer(), np.float16).reshape(shape).astype(np.float64).swapaxes(0, 1).reshape(shape[1], shape[0], -1)
            sums = sums + np.stack([np.full(values_PDV.shape[:2], values_PDV.shape[2]), values_PDV.sum(-1), np.square(values_PDV).sum(-1)])
    return {"num_windows": table.num_rows, "sums": json.dumps(np.asarray(sums).tolist())}


def merge_statistics(parts: list[dict]) -> dict:
    """Mean and standard deviation per plane and channel [6][D] over the joint planes of the training windows, in float64, in shard order."""
    sums = [np.array(json.loads(part["sums"])) for part in parts]
    sums = [part for part in sums if part.ndim]  # a shard without training windows has none
    if not sums:
        raise UserError("no training windows to take latent statistics from; check data.validation_fraction and the listing's split column")
    count, total, squares = np.sum(sums, axis=0)
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, MIN_STD**2))
    return {"num_windows": sum(part["num_windows"] for part in parts), "planes": list(PLANE_NAMES), "mean": mean.tolist(), "std": std.tolist()}
