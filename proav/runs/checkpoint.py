"""The one checkpoint format: a folder of weights, moving average, configuration, statistics and checksums.

Weights and training state are safetensors. Everything else is `checkpoint.json`, which is written last.
Nothing is ever unpickled. This module knows no model and no engine: `proav/train` decides what goes in;
`proav/generation/pipeline.py` and `proav/latents/encode.py` read it.
"""

import functools
import hashlib
import json
import os
import platform
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version

import pyarrow.fs as pafs
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save_file

from proav import storage
from proav.config import Config
from proav.config.changes import setting_values, settings_that_change
from proav.config.reading import config_from_dict, config_to_dict
from proav.errors import CheckpointError, ConfigError
from proav.runs.stages import STAGES, stage_of
from proav.storage.patience import patiently
from proav.text import one_form

FORMAT = 3
"""Incremented whenever a reader of the old format could misread the new one."""

WHAT_CHANGED = {
    1: "since format 1 MDSA has linear planes and refiners, and ST-DiT has separate maps for each plane",
    2: "since format 2 MDSA's linear planes have lapped blocks, and ST-DiT's maps fit each plane",
}
"""Old formats and why they cannot be read."""

INDEX = "checkpoint.json"
LATEST = "latest"
_FOLDER = re.compile(r"^clips-(\d{12})$")


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint: its description, and its tensors on demand."""

    path: str
    """The checkpoint's folder, local or remote."""
    kind: str
    """mdsa | stdit."""
    clips: int
    """Clips seen in training."""
    step: int
    """Optimizer steps taken."""
    config: Config
    """The resolved configuration of the run that made it."""
    labels: tuple[str, ...]
    """The label vocabulary, in the order of the label embedding."""
    latent_mean: tuple[tuple[float, ...], ...] | None
    """Mean of the latents over the training set, [6 planes][D channels]; None for kind mdsa."""
    latent_std: tuple[tuple[float, ...], ...] | None
    """Their standard deviation, likewise."""
    hash: str
    """SHA-256 of the table of files: two checkpoints with the same hash hold the same bytes."""
    mdsa_hash: str | None
    """For kind stdit: the hash of the MDSA checkpoint whose weights it carries."""
    teacher_hash: str | None
    """For a flow map: the hash of the ST-DiT checkpoint that it was made from."""
    init_hash: str | None
    """The hash of the checkpoint whose weights training began with (`init_from`), if there was one."""
    training: dict = field(repr=False)
    """Plain values that only a resume needs."""
    files: dict = field(repr=False)
    """{name: {"bytes": ..., "sha256": ...}}."""
    versions: dict = field(repr=False)
    """Versions of proav, torch and Python that wrote it."""

    def has(self, name: str) -> bool:
        return f"{name}.safetensors" in self.files

    def weights(self, name: str = "ema") -> dict[str, torch.Tensor]:
        """The tensors of one file, on the CPU.

        name: "ema", "model", "mdsa" (for ST-DiT), "discriminators", "training/optimizer" and others.
        Raises CheckpointError if there is no such file, or it is damaged.
        """
        file = f"{name}.safetensors"
        if file not in self.files:
            raise CheckpointError(
                f"the checkpoint {self.path} holds no {file}; it holds {', '.join(sorted(self.files))}"
            )
        data = self._whole(file)
        try:
            return load_safetensors(data)
        except SafetensorError as error:
            raise CheckpointError(
                f"{storage.join(self.path, file)} is not readable: {error}; {_remedy(self.kind)}"
            ) from error

    def _whole(self, file: str) -> bytes:
        """The bytes of one file, as they were written."""

        def read() -> tuple[str, int]:
            nonlocal data
            data = _read(storage.join(self.path, file), self)
            return hashlib.sha256(data).hexdigest(), len(data)

        data = b""
        _check_file(self.path, self.kind, file, self.files[file], read)
        return data


def save_checkpoint(
    folder: str,
    *,
    kind: str,
    clips: int,
    step: int,
    config: Config,
    tensors: Mapping[str, Mapping[str, torch.Tensor]],
    labels: tuple[str, ...] = (),
    latent_mean: list[list[float]] | None = None,
    latent_std: list[list[float]] | None = None,
    mdsa_hash: str | None = None,
    teacher_hash: str | None = None,
    init_hash: str | None = None,
    training: dict | None = None,
    keep: int = 2,
    dtype: torch.dtype = torch.float32,
) -> str:
    """Writes `folder`/clips-<clips> whole or not at all, then points `latest` to it; returns its path.

    Tensors are stored contiguously. Checkpoints with more clips are left over from an abandoned run and are
    removed.

    folder: the folder of all checkpoints, local or remote.
    kind: mdsa or stdit.
    clips, step: clips seen and optimizer steps taken.
    config: the resolved configuration.
    tensors: {file name without suffix: {tensor name: tensor}}.
    labels: the label vocabulary, in the order of the label embedding.
    latent_mean, latent_std: statistics of the latents, [6 planes][D channels]; None for kind mdsa.
    mdsa_hash: for kind stdit, the hash of the MDSA checkpoint whose weights it carries.
    teacher_hash: for a flow map, the hash of the ST-DiT checkpoint that it was made from.
    init_hash: the hash of the checkpoint whose weights training began with, if there was one.
    training: plain values that only a resume needs.
    keep: how many of the newest checkpoints stay.
    dtype: floating tensors are stored as this.
    Raises CheckpointError if it cannot be written.
    """
    name = f"clips-{clips:012d}"
    path = storage.join(folder, name)
    with storage.write_folder(path) as local:
        files = {}
        for stem, group in tensors.items():
            file = f"{stem}.safetensors"
            target = storage.join(local, file)
            storage.make_folder(target.rsplit("/", 1)[0])
            _write_tensors(group, target, path, dtype)
            digest, size = storage.file_sha256(target)
            files[file] = {"bytes": size, "sha256": digest}
        index = {
            "format": FORMAT,
            "kind": kind,
            "clips": clips,
            "step": step,
            "config": config_to_dict(config),
            "labels": list(labels),
            "latent_mean": latent_mean,
            "latent_std": latent_std,
            "mdsa_hash": mdsa_hash,
            **({} if teacher_hash is None else {"teacher_hash": teacher_hash}),
            **({} if init_hash is None else {"init_hash": init_hash}),
            "versions": {
                "proav": _proav_version(),
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "training": training or {},
            "files": files,
            "hash": _hash_of(files),
        }
        storage.write_text(storage.join(local, INDEX), json.dumps(index, indent=1))
    storage.write_text(storage.join(folder, LATEST), name + "\n")
    _prune(folder, clips, keep)
    return path


def load_checkpoint(path: str, *, kind: str | None = None, verify: bool = True) -> Checkpoint:
    """Opens a checkpoint.

    path: its folder, a `latest` file, or a folder that holds one.
    kind: the expected kind; None: any.
    verify: read every file and compare its size and SHA-256.
    Raises CheckpointError if the checkpoint is missing, half written, damaged, of another kind, or of a
    format that this version does not read.
    """
    folder = _resolve(str(path), kind)
    index = _read_index(folder, kind)
    if kind is not None and index["kind"] != kind:
        raise CheckpointError(
            (
                f"{folder} is a checkpoint of {index['kind']}, expected one of {kind}; {_how_to_make(kind)}"
            ).rstrip("; ")
        )
    for file, entry in index["files"].items() if verify else ():
        target = storage.join(folder, file)
        if not storage.exists(target):
            raise CheckpointError(f"{folder} is damaged: {file} is missing; {_remedy(index['kind'])}")
        _check_file(folder, index["kind"], file, entry, functools.partial(storage.file_sha256, target))
    if _hash_of(index["files"]) != index["hash"]:
        raise CheckpointError(
            f"{folder} is damaged: the table of files in {INDEX} does not match its hash; "
            f"{_remedy(index['kind'])}"
        )
    try:
        config = config_from_dict(index["config"], origin=storage.join(folder, INDEX))
    except ConfigError as error:
        raise CheckpointError(
            f"{folder} holds a configuration that this version of proav cannot run: {error}"
        ) from error
    statistics = {
        key: tuple(map(tuple, index[key])) if index[key] is not None else None
        for key in ("latent_mean", "latent_std")
    }
    names = ("kind", "clips", "step", "hash", "mdsa_hash", "training", "files", "versions")
    return Checkpoint(
        path=folder,
        config=config,
        labels=tuple(index["labels"]),
        **statistics,
        teacher_hash=index.get("teacher_hash"),
        init_hash=index.get("init_hash"),
        **{name: index[name] for name in names},
    )


def list_checkpoints(folder: str) -> list[tuple[int, str]]:
    """(clips, path) of every complete checkpoint below `folder`, newest first; no half-written ones."""
    filesystem, inner = storage.open_filesystem(folder)
    found = []
    for info in filesystem.get_file_info(pafs.FileSelector(inner, allow_not_found=True)):
        match = _FOLDER.match(info.base_name)
        path = storage.join(folder, info.base_name)
        if match and info.type == pafs.FileType.Directory and storage.exists(storage.join(path, INDEX)):
            found.append((int(match[1]), path))
    return sorted(found, reverse=True)


def newest_good_checkpoint(
    folder: str, *, kind: str, warn: Callable[[str], None] = print
) -> Checkpoint | None:
    """The newest whole checkpoint below `folder`; None if there is no checkpoint at all.

    Damaged checkpoints are skipped, each with a line to `warn`. Raises CheckpointError if all are damaged.
    """
    found = list_checkpoints(folder)
    failures = []
    for clips, path in found:
        try:
            checkpoint = load_checkpoint(path, kind=kind)
        except CheckpointError as error:
            failures.append(str(error))
            warn(f"WARNING: the checkpoint at {clips:,} clips cannot be used: {error}")
            continue
        if failures:
            warn(f"WARNING: continuing from the older checkpoint {path} at {clips:,} clips")
        return checkpoint
    if failures:
        raise CheckpointError(
            f"none of the {len(found)} checkpoints in {folder} can be used ({failures[0]}); "
            "delete that folder to start anew"
        )
    return None


def check_resumable(checkpoint: Checkpoint, config: Config, labels: tuple[str, ...] = ()) -> None:
    """Raises CheckpointError, with the keys, if `config` or `labels` do not fit the checkpoint.

    They do not fit if they describe another model or other clips.
    """
    ours, theirs = (setting_values(one) for one in (config, checkpoint.config))
    stage = stage_of(checkpoint.kind, checkpoint.config)
    fixed = sorted(settings_that_change(*stage.fixed_by))
    differing = [key for key in fixed if ours[key] != theirs[key]]
    if differing:
        then = ", ".join(f"{key}={theirs[key]}" for key in differing[:4])
        now = ", ".join(f"{key}={ours[key]}" for key in differing[:4])
        more = f" (and {len(differing) - 4} more)" if len(differing) > 4 else ""
        raise CheckpointError(
            f"{checkpoint.path} was made with {then}{more}; this run has {now}. "
            "Write the old values to continue it, or choose another run_dir=DIR to start anew"
        )
    if [one_form(label) for label in labels] != [one_form(label) for label in checkpoint.labels]:
        raise CheckpointError(
            f"{checkpoint.path} knows the labels {list(checkpoint.labels)}, this run has {list(labels)}; "
            "set data.labels to the old ones, or choose another run_dir=DIR to start anew"
        )


def _resolve(path: str, kind: str | None) -> str:
    path = path.rstrip("/")
    info = storage.file_info(path)
    hint = _how_to_make(kind)
    if info.type == pafs.FileType.File:
        if path.rsplit("/", 1)[-1] == INDEX:
            return path.rsplit("/", 1)[0]
        return _follow(path, hint)
    if (
        info.type == pafs.FileType.Directory
        and not storage.exists(storage.join(path, INDEX))
        and storage.exists(storage.join(path, LATEST))
    ):
        return _follow(storage.join(path, LATEST), hint)
    if info.type == pafs.FileType.NotFound:
        raise CheckpointError(
            f"no checkpoint at {path}; expected a checkpoint folder or a `{LATEST}` file; {hint}"
        )
    return path


def _follow(path: str, hint: str) -> str:
    """The folder that a `latest` file names."""
    try:
        name = storage.read_text(path).strip()
    except UnicodeDecodeError:
        name = ""
    if not _FOLDER.match(name):
        raise CheckpointError(
            f"{path} does not name a checkpoint folder (clips-<12 digits>); "
            f"expected a checkpoint folder or a `{LATEST}` file; {hint}"
        )
    folder = storage.join(path.rsplit("/", 1)[0] if "/" in path else ".", name)
    if not storage.is_folder(folder):
        raise CheckpointError(
            f"{path} names {name}, which is not there; "
            f"give the path of another checkpoint beside it, or {hint}"
        )
    return folder


def _read_index(folder: str, kind: str | None) -> dict:
    path = storage.join(folder, INDEX)
    if not storage.exists(path):
        if storage.exists(storage.join(folder, "model.safetensors")):
            raise CheckpointError(
                f"{folder} is half written: {INDEX} is missing; give another checkpoint, or delete the folder"
            )
        raise CheckpointError(
            f"no checkpoint in {folder}: neither {INDEX} nor `{LATEST}` is there; {_how_to_make(kind)}"
        )
    try:
        index = json.loads(storage.read_text(path))
    except ValueError as error:
        raise CheckpointError(
            f"{folder} is damaged: {INDEX} is not JSON ({error}); {_remedy(kind)}"
        ) from error
    if not isinstance(index, dict) or "format" not in index:
        raise CheckpointError(
            f"{path} is not a proav checkpoint: it has no `format`; expected format {FORMAT}"
        )
    if index["format"] != FORMAT:
        changed = f" ({WHAT_CHANGED[index['format']]})" if index["format"] in WHAT_CHANGED else ""
        raise CheckpointError(
            f"{folder} has checkpoint format {index['format']}, "
            f"this proav {_proav_version()} reads format {FORMAT}{changed}; "
            f"train anew in another run_dir=DIR, or install the proav that made it: {index.get('versions')}"
        )
    wanted = {
        "kind",
        "clips",
        "step",
        "config",
        "labels",
        "latent_mean",
        "latent_std",
        "mdsa_hash",
        "versions",
        "training",
        "files",
        "hash",
    }
    if wanted - index.keys():
        raise CheckpointError(
            f"{folder} is damaged: {INDEX} lacks {', '.join(sorted(wanted - index.keys()))}; {_remedy(kind)}"
        )
    return index


def _check_file(folder: str, kind: str, file: str, entry: dict, read: Callable[[], tuple[str, int]]) -> None:
    """Raises CheckpointError if a file differs from its entry at both of two readings.

    folder, kind, file: the checkpoint's folder and kind, and the file's name, for messages.
    entry: {"bytes", "sha256"} as the index has them.
    read: returns (SHA-256, bytes) of the file.
    """
    wanted = entry["sha256"], entry["bytes"]
    if read() == wanted:
        return
    digest, size = read()
    if size != entry["bytes"]:
        raise CheckpointError(
            f"{folder} is damaged: {file} has {size} bytes, expected {entry['bytes']}; {_remedy(kind)}"
        )
    if digest != entry["sha256"]:
        raise CheckpointError(
            f"{folder} is damaged: the checksum of {file} differs from {INDEX}; {_remedy(kind)}"
        )


def _how_to_make(kind: str | None) -> str:
    return f"make one with: {STAGES.get(kind, STAGES['stdit']).command}"


def _remedy(kind: str | None) -> str:
    return f"give an older checkpoint, copy this one again, or {_how_to_make(kind)}"


def _prune(folder: str, clips: int, keep: int) -> None:
    """Removes old checkpoints and those with more than `clips` clips.

    The newest `keep` of the others stay, and the one that `latest` names.
    """
    named = storage.read_text(storage.join(folder, LATEST)).strip()
    found = list_checkpoints(folder)
    kept = [path for seen, path in found if seen <= clips][:keep]
    for _, path in found:
        if path not in kept and not path.endswith("/" + named):
            storage.delete_folder(path)


def _write_tensors(group: Mapping[str, torch.Tensor], target: str, path: str, dtype: torch.dtype) -> None:
    """Writes tensors to a local file.

    group: {name: tensor}.
    target: the file.
    path: the checkpoint, for messages.
    dtype: floating tensors are stored as this.
    Raises CheckpointError if it cannot be written.
    """
    storable = {key: _storable(value, dtype) for key, value in group.items()}

    def write() -> None:
        try:
            save_file(storable, target)
        except SafetensorError as error:  # safetensors has one error type for all; the text holds the number
            number = re.search(r"os error (\d+)", str(error))
            raise OSError(int(number[1]), str(error), target) if number else error from error

    try:
        patiently(write, f"writing {path}")
    except (SafetensorError, OSError) as error:
        why = f"{os.strerror(error.errno)} ({error})" if isinstance(error, OSError) else str(error)
        raise CheckpointError(
            f"cannot write the checkpoint {path}: {why}; free some space or choose another run_dir=DIR, "
            "then run the same command again"
        ) from error


def _storable(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    tensor = tensor.detach().to("cpu")
    return (tensor.to(dtype) if tensor.is_floating_point() else tensor).clone(
        memory_format=torch.contiguous_format
    )


def _read(path: str, checkpoint: Checkpoint) -> bytes:
    try:
        return storage.read_bytes(path)
    except FileNotFoundError:
        raise CheckpointError(
            f"{checkpoint.path} is damaged: {path.rsplit('/', 1)[-1]} is missing; {_remedy(checkpoint.kind)}"
        ) from None


def _hash_of(files: dict) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def _proav_version() -> str:
    try:
        return version("proav")
    except PackageNotFoundError:  # run from a source tree that is not installed
        return "source"
