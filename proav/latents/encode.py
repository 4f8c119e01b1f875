"""Windows to stored latents: MDSA encodes every shard once, with Ray Data.

For each window two kinds of planes are stored. Joint planes are what ST-DiT learns to make. Lone planes are
encoded from each modality without the other; a given stream always enters ST-DiT as lone planes. For each
masked task that the run trains (`proav/diffusion/tasks.py`) a third kind is stored, with its mask: the lone
planes of the window with its unknown frames filled. One shard of segments becomes one shard of latents, so
that a stopped job can resume.

Not here: the statistics that normalize latents (`statistics.py`), reading latents
(`proav/data/feeds/latent_feed.py`). Letters: B windows, D latent channels, P = 6 planes, N plane side.
"""

import json
import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from proav import storage
from proav.config import Config
from proav.config.changes import setting_values, settings_that_change
from proav.data.feeds.feed import check_fits
from proav.data.store.parquet import RowReader, ShardWriter, open_parquet
from proav.data.store.shards import SegmentStore, manifest_hash
from proav.diffusion.masks import continue_frames
from proav.diffusion.tasks import mask_of_window, masked_tasks
from proav.errors import TOLD, UserError, raise_from_text, to_text
from proav.geometry import LatentGeometry
from proav.latents.statistics import merge_statistics, shard_sums
from proav.runs.checkpoint import Checkpoint, check_resumable, list_checkpoints, load_checkpoint
from proav.runs.layout import RunFolder
from proav.runs.progress import Progress
from proav.storage.lease import Lease

LATENT_SCHEMA = pa.schema(
    [
        ("id", pa.string()),  # of the segment
        ("source_id", pa.string()),
        ("label", pa.string()),
        ("labels", pa.list_(pa.string())),
        ("split", pa.string()),
        ("start_frame", pa.int32()),
        ("flipped", pa.bool_()),
        ("joint", pa.large_binary()),
        ("lone", pa.large_binary()),
        ("shape", pa.list_(pa.int32())),
    ]
)
"""`joint` and `lone` are float16 stacks [D, 6, N, N], not normalized. They are bytes, because reading nested
lists takes longer than running the model. `latent_schema` adds the columns of masked tasks.
"""
MASKING = ("diffusion.task_weights", "diffusion.continue_frames")
"""These change stored latents only through the values that `masked_settings` returns."""
MASKED_SETTINGS = {"masked_tasks", "continue_frames"}
"""If only these differ, ST-DiT can be trained further on new latents: joint and lone planes stay the same."""

ROW_OVERHEAD_BYTES = 850
"""Bytes of a row besides its planes: the other columns, and the file's own bookkeeping. Measured."""
OF_EARLIER_VERSIONS = {"precision": "fp32"}
"""Settings that older latents do not name, with the values that they were made with."""
OF_A_SHARD = b"proav.settings"
"""Key in a shard's metadata; its value says what made the shard."""


def encode_latents(config: Config, *, replace_unused: bool = False) -> dict:
    """Encodes all windows of the run's shards with its newest MDSA checkpoint.

    If all is done with this checkpoint and these settings, nothing changes. If shards are missing, they are
    made. If there are latents of another MDSA, of other data or of other settings, they are deleted, provided
    that `encode.replace` or replace_unused allows it.

    config: of the run.
    replace_unused: whether latents that no ST-DiT was trained on may be deleted.

    Returns the content of latents/stats.json. Raises UserError if latents may not be deleted, if data or MDSA
    are missing, if MDSA was made for other clips than this configuration's, if the disk has no room, or if
    another job encodes the same run.
    """
    store = SegmentStore(config.data_folder)
    check_fits(store, config)
    # not verified here: its tensors are verified when they are read
    checkpoint = load_checkpoint(RunFolder(config).mdsa.checkpoints, kind="mdsa", verify=False)
    # the seed may differ, because encoding draws nothing
    check_resumable(checkpoint, config.model_copy(update={"seed": checkpoint.config.seed}), checkpoint.labels)
    values = setting_values(config)
    own = {
        key.rpartition(".")[2]: values[key] for key in settings_that_change("latents") if key not in MASKING
    }
    own |= masked_settings(config)
    settings = {"mdsa_checkpoint": checkpoint.hash, "data": manifest_hash(store.manifest), **own}
    # not in the folder of the latents, which may be deleted
    with Lease(config.run_folder, name="encode job") as lease:
        return _encode(config, store, checkpoint, settings, lease, replace_unused=replace_unused)


def _encode(
    config: Config,
    store: SegmentStore,
    checkpoint: Checkpoint,
    settings: dict,
    lease: Lease,
    *,
    replace_unused: bool,
) -> dict:
    """`encode_latents` while `lease` is held.

    config: of the run.
    store: the run's segments.
    checkpoint: of MDSA.
    settings: what makes the latents.
    lease: on the run's folder.
    replace_unused: as in `encode_latents`.
    """
    folder, shards = _folder(config), [shard["name"] for shard in store.manifest["shards"]]
    _settle_other_latents(config, settings, shards, replace_unused)
    there = {path.rsplit("/", 1)[-1] for path in storage.list_files(folder, recursive=False)}
    stats_path = RunFolder(config).latent_statistics
    if there == {*shards, "stats.json"}:
        stats = json.loads(storage.read_text(stats_path))
        print(f"encode: done already, {stats['num_windows']:,} windows in {folder}")
        return stats
    windows = windows_per_shard(store, config)
    todo = sum(count for name, count in windows.items() if name not in there)
    print(
        f"encode: {_size_text(config, sum(windows.values()))}"
        + (f"; {todo:,} windows to do" if there else "")
    )
    _check_room(config, todo)
    parts = _encode_shards(config, checkpoint, settings, windows, lease)
    lease.check()
    storage.remove_leftovers(folder)  # of killed actors
    if set(parts) != set(shards):
        raise RuntimeError(
            f"Ray Data returned {len(parts)} of {len(shards)} shards; run the same command again"
        )
    latents = LatentGeometry.from_config(config)
    sums = merge_statistics(
        [parts[name] for name in shards], scale=config.diffusion.latent_scale, channels=latents.channels
    )
    stats = {**settings, **sums, "labels": list(store.labels), "mdsa_path": checkpoint.path}
    storage.write_text(stats_path, json.dumps(stats, indent=1))
    print(f"encode: {stats['num_windows']:,} windows in {folder}")
    return stats


def masked_settings(config: Config) -> dict:
    """The values that decide the columns of masked tasks; empty if the run trains none."""
    tasks = masked_tasks(config)
    found = {"masked_tasks": list(tasks)} if tasks else {}
    return found | ({"continue_frames": continue_frames(config)} if "continue" in tasks else {})


def differing_settings(found: dict, wanted: dict) -> list[str]:
    """The settings in which stored latents differ from the wanted ones. Masked tasks that are stored but not
    wanted do not count.
    """
    found = OF_EARLIER_VERSIONS | found
    return [
        key
        for key, value in wanted.items()
        if found.get(key) != value
        and not (key == "masked_tasks" and set(value) <= set(found.get("masked_tasks") or ()))
    ]


def latent_schema(tasks: Sequence[str]) -> pa.Schema:
    """LATENT_SCHEMA with two columns for each of these masked tasks.

    `<task>` holds planes like `lone`, of the masked window. `<task>_known` holds its mask, uint8 [2, T].
    """
    fields = [(name, pa.large_binary()) for task in tasks for name in (task, f"{task}_known")]
    return pa.schema([*LATENT_SCHEMA, *(pa.field(*field) for field in fields)])


def size_text(config: Config) -> str:
    """How many windows encoding will store, and their size on disk; for --dry-run."""
    if not storage.exists(RunFolder(config).data_manifest):
        return f"latents: {config.data_folder} is not prepared yet, so their size is not known"
    return (
        "latents: "
        f"{_size_text(config, sum(windows_per_shard(SegmentStore(config.data_folder), config).values()))}"
    )


def windows_per_shard(store: SegmentStore, config: Config) -> dict[str, int]:
    """{shard: windows that are stored of it}, in the manifest's order.

    In each stretch of used frames, windows start `encode.stride_frames` apart.
    """
    segments, _, lengths = store.stretches(num_frames=config.clip.num_frames)
    counts = (lengths - config.clip.num_frames) // config.encode.stride_frames + 1
    if config.encode.flips:
        counts = counts * np.where(store.column("split")[segments] == "train", 2, 1)
    names = [shard["name"] for shard in store.manifest["shards"]]
    owners = pc.index_in(store.index.column("shard"), value_set=pa.array(names)).to_numpy()[segments]
    return dict(zip(names, np.bincount(owners, counts, len(names)).astype(int).tolist(), strict=True))


class ShardEncoder:
    """One shard of segments -> one shard of latents. It is a Ray Data actor; tests call it directly.

    config: of the run.
    checkpoint_path: the MDSA checkpoint's folder.
    settings: what makes the latents; stored with the shard.
    device: "cpu" or "cuda".
    """

    def __init__(self, config: Config, checkpoint_path: str, settings: dict, device: str = "cpu") -> None:
        self.config, self.checkpoint_path, self.settings, self.device = (
            config,
            checkpoint_path,
            settings,
            device,
        )
        self.tasks = masked_tasks(config)
        self.store, self.coder = None, None

    def __call__(self, row: dict) -> dict:
        """Returns counts and sums of the shard named row["shard"].

        If the shard is there with the same settings, it is only read. `error` is the text of a UserError or
        StorageUnavailable, such as a full disk, a damaged checkpoint or a damaged shard. It is not raised,
        because Ray would wrap it.
        """
        path = storage.join(_folder(self.config), row["shard"])
        reader = RowReader(_folder(self.config))
        try:
            if not (storage.exists(path) and self._is_wanted(path)):
                self._encode_shard(path, row["shard"])
            sums = reader.checked(row["shard"], lambda: shard_sums(path))
            return {"shard": row["shard"], **sums, "error": ""}
        except TOLD as error:
            return {"shard": row["shard"], "num_windows": 0, "sums": "", "error": to_text(error)}

    def _is_wanted(self, path: str) -> bool:
        """Whether a shard has these settings, and all columns. Earlier versions stored fewer columns."""
        stored = set(open_parquet(path).schema_arrow.names)
        return stored >= set(LATENT_SCHEMA.names) and not differing_settings(_made_with(path), self.settings)

    @torch.inference_mode()
    def _encode_shard(self, path: str, name: str) -> None:
        if self.coder is None:
            from proav.generation.coder import load_coder

            precision = self.config.encode.precision
            if precision == "tf32" and self.device != "cpu":
                torch.set_float32_matmul_precision("high")
            self.store = SegmentStore(self.config.data_folder)
            self.coder = load_coder(
                load_checkpoint(self.checkpoint_path, kind="mdsa", verify=False),
                device=self.device,
                precision="bf16" if precision == "bf16" else "fp32",
            )
        windows, size = self._windows(name), self.config.encode.batch_size
        schema = latent_schema(self.tasks).with_metadata({OF_A_SHARD: json.dumps(self.settings).encode()})
        with ShardWriter(path, schema) as writer:
            for first in range(0, len(windows), size):
                for row in self._rows(windows[first : first + size]):
                    writer.write(row)

    def _windows(self, name: str) -> list[tuple[int, int, bool]]:
        """(segment, start frame, flipped) of each window of a shard. Only training windows are mirrored."""
        splits, settings, frames = self.store.column("split"), self.config.encode, self.config.clip.num_frames
        return [
            (segment, start, flipped)
            for segment, first, length in zip(
                *(values.tolist() for values in self.store.stretches(shard=name, num_frames=frames)),
                strict=True,
            )
            for start in range(first, first + length - frames + 1, settings.stride_frames)
            for flipped in ((False, True) if settings.flips and splits[segment] == "train" else (False,))
        ]

    def _read(self, windows: list[tuple[int, int, bool]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Pictures and mel images of windows (segment, start frame, flipped), for `LatentCoder.encode`."""
        frames = self.config.clip.num_frames
        # Windows overlap, so each segment's frames are decoded once: from its first start in the batch to its
        # last end.
        parts = {}
        for index in {index for index, _, _ in windows}:
            starts = [start for owner, start, _ in windows if owner == index]
            span = max(starts) - min(starts) + frames
            parts[index] = min(starts), self.store.window(index, min(starts), span, want=("video", "mel"))
        clips = [
            (parts[index][1], slice(start - parts[index][0], start - parts[index][0] + frames), flipped)
            for index, start, flipped in windows
        ]
        pictures = [
            part["video"][place, :, ::-1] if flipped else part["video"][place]
            for part, place, flipped in clips
        ]
        video = torch.from_numpy(np.stack(pictures))
        mel = torch.from_numpy(np.stack([part["mel"][place] for part, place, _ in clips])).float()
        return video, mel

    def _rows(self, windows: list[tuple[int, int, bool]]) -> Iterator[dict]:
        """The stored row of each window (segment, start frame, flipped)."""
        video, mel = self._read(windows)
        columns = {
            key: self.store.index.column(key).take([index for index, _, _ in windows]).to_pylist()
            for key in ("id", "source_id", "label", "labels", "split")
        }
        identities = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values())]
        stacks = {"joint": self.coder.encode(video, mel), "lone": self.coder.encode(video, mel, lone=True)}
        known = {}
        for task in self.tasks:
            known[task] = torch.stack(
                [
                    mask_of_window(task, self.config, identity["id"], start, flipped)
                    for identity, (_, start, flipped) in zip(identities, windows, strict=True)
                ]
            )
            stacks[task] = self.coder.encode_masked(video, mel, known[task])
        planes = {name: stack.half().cpu().numpy() for name, stack in stacks.items()}
        masks = {f"{task}_known": mask.byte().numpy() for task, mask in known.items()}
        for place, (identity, (_, start, flipped)) in enumerate(zip(identities, windows, strict=True)):
            bulky = {name: values[place].tobytes() for name, values in (planes | masks).items()}
            shape = list(planes["joint"].shape[1:])
            yield {**identity, "start_frame": start, "flipped": flipped, **bulky, "shape": shape}


def _encode_shards(
    config: Config, checkpoint: Checkpoint, settings: dict, windows: dict[str, int], lease: Lease
) -> dict[str, dict]:
    """What ShardEncoder returns for each shard. If an actor dies, another one makes its shard again.

    config: of the run.
    checkpoint: of MDSA.
    settings: what makes the latents.
    windows: {shard: windows that are stored of it}.
    lease: on the run's folder. Raises UserError if it is lost.
    """
    import ray

    from proav.on_ray.resources import device_of, wants_gpu

    use_gpu = wants_gpu(config.encode.use_gpu)
    ray.data.DataContext.get_current().enable_progress_bars = False
    encoded = ray.data.from_items(
        [{"shard": name} for name in windows], override_num_blocks=len(windows)
    ).map(
        ShardEncoder,
        fn_constructor_kwargs={
            "config": config,
            "checkpoint_path": checkpoint.path,
            "settings": settings,
            "device": device_of(use_gpu),
        },
        compute=ray.data.ActorPoolStrategy(size=min(config.encode.num_workers, len(windows))),
        num_cpus=1,
        num_gpus=int(use_gpu),
    )
    progress, parts = Progress("encode", sum(windows.values()), "windows"), {}
    for row in encoded.iter_rows():
        if row["error"]:
            raise_from_text(row["error"])
        lease.check()
        assert row["num_windows"] == windows[row["shard"]], (
            f"{row['num_windows']} windows of {row['shard']}, expected {windows[row['shard']]}"
        )
        parts[row["shard"]] = row
        progress.update(progress.done + row["num_windows"])
    progress.close()
    return parts


def _settle_other_latents(config: Config, settings: dict, shards: list[str], replace_unused: bool) -> None:
    """Deletes latents of another MDSA, of other data or settings, if that is allowed.

    config: of the run.
    settings: what makes this run's latents.
    shards: names of this run's shards.
    replace_unused: as in `encode_latents`.

    Raises UserError if they may not be deleted.
    """
    folder = _folder(config)
    there = {path.rsplit("/", 1)[-1]: path for path in storage.list_files(folder, recursive=False)}
    if not there:
        return
    if "stats.json" in there:
        found = json.loads(storage.read_text(there["stats.json"]))
    else:  # of an interrupted run
        found = next(
            (_made_with(path) for name, path in there.items() if name.endswith(".parquet")), settings
        )
    differing = differing_settings(found, settings)
    strangers = sorted(there.keys() - {*shards, "stats.json"})
    if not differing and not strangers:
        return
    then, now = (
        ", ".join(f"{key}={str(values.get(key))[:16]}" for key in differing) for values in (found, settings)
    )
    what = (
        f"{folder} was made with {then}; this run has {now}"
        if differing
        else f"{folder} holds files that are not of this run: {strangers[0]}"
    )
    trained = list_checkpoints(RunFolder(config).stdit.checkpoints)
    if config.encode.replace or (replace_unused and not trained):
        print(f"encode: {what}: deleted, to be encoded anew")
        storage.delete_folder(folder)
        return
    used = (
        f" ST-DiT was trained on it ({trained[0][1]}) and cannot go on with other latents: "
        "delete its checkpoints too."
        if trained and not set(differing) <= MASKED_SETTINGS
        else ""
    )
    raise UserError(
        f"{what}.{used} Write encode.replace=true to delete these latents and encode anew, "
        "or choose another run_dir=DIR"
    )


def _check_room(config: Config, num_windows: int) -> None:
    """Raises UserError if the latents will not fit on this machine's disk."""
    folder = _folder(config)
    if storage.is_remote(folder):
        return
    place = Path(storage.open_filesystem(folder)[1])
    free = shutil.disk_usage(next(path for path in (place, *place.parents) if path.exists())).free
    needed = num_windows * _window_bytes(config)
    if needed > free:
        raise UserError(
            f"{num_windows:,} windows of latents need about {_in_units(needed)} in {folder}, "
            f"where {_in_units(free)} are free; "
            "make room, choose another run_dir=DIR, raise encode.stride_frames or write encode.flips=false"
        )


def _window_bytes(config: Config) -> int:
    """Bytes of a window on disk: joint, lone and masked planes in float16, and the rest of the row."""
    stacks = 2 + len(masked_tasks(config))
    return stacks * 2 * math.prod(LatentGeometry.from_config(config).stack_shape) + ROW_OVERHEAD_BYTES


def _size_text(config: Config, num_windows: int) -> str:
    size, tasks = _window_bytes(config), masked_tasks(config)
    kinds = f"joint, lone and masked ({', '.join(tasks)})" if tasks else "joint and lone"
    return (
        f"{num_windows:,} windows, {kinds}, {_in_units(size)} each: "
        f"about {_in_units(num_windows * size)} in {_folder(config)}"
    )


def _in_units(size: int) -> str:
    unit, scale = next(
        (unit, scale) for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 0)) if size >= scale
    )
    return f"{size / (scale or 1e3):,.1f} {unit}"


def _folder(config: Config) -> str:
    return RunFolder(config).latents


def _made_with(path: str) -> dict:
    return json.loads((open_parquet(path).schema_arrow.metadata or {}).get(OF_A_SHARD, b"{}"))
