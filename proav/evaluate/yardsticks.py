"""Yardsticks of a run: baselines that store a clip in as many numbers as MDSA does.

They are fitted on the training split alone. Data, seed and configuration decide the result, and the file's
name holds their hash. If the file exists, nothing is fitted again. The mathematics is in
proav/metrics/plane_components.py and proav/metrics/cosine_transform.py.

Letters: B clips, T frames, C channels, H and W rows and columns, M mel bins, S mel steps within a frame.
"""

import functools
import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import safetensors.torch
import torch
from einops import rearrange, reduce, repeat
from torch import Tensor

from proav import storage
from proav.config import Config
from proav.data.feeds.feed import ClipFeed
from proav.data.store.shards import SegmentStore, manifest_hash
from proav.generation.coder import pixels_to_unit
from proav.geometry import MODALITIES, PLANES, ClipGeometry, LatentGeometry
from proav.media.melframes import one_torch_thread
from proav.metrics.cosine_transform import CosineTransform
from proav.metrics.plane_components import Chunks, LinearPlanes
from proav.reports.kit.tables import values_text
from proav.runs.layout import RunFolder

YARDSTICK_SCORES = (
    "psnr_linear_planes_db",
    "psnr_cosine_db",
    "mel_error_linear_planes_db",
    "mel_error_cosine_db",
)
"""Scores of the yardsticks for each clip."""
FORMAT = 1
"""Version of the file and of the fitting; it is part of the hash."""
MAX_WINDOWS = 192
"""Most training windows for the fit."""
MAX_VALUES = 1 << 28
"""Most pixels x colours of these windows.

That is 85 windows of 16 frames of 256 x 256, or 256 MiB in memory.
"""
CHUNK_VALUES = 1 << 22
"""Pixels x colours that are processed at a time, but at least one window."""


@dataclass(frozen=True, eq=False)
class Yardsticks:
    """The fitted codes of both streams. Each one encodes clips and decodes them again."""

    video_planes: LinearPlanes
    video_cosine: CosineTransform
    audio_planes: LinearPlanes
    audio_cosine: CosineTransform

    @property
    def side(self) -> int:
        return self.video_planes.side

    def pictures(self, video_BCTHW: Tensor) -> dict[str, Tensor]:
        """{"linear_planes", "cosine"}: [B, C, T, H, W] in [-1, 1]."""
        return {
            "linear_planes": _one_by_one(self.video_planes, video_BCTHW),
            "cosine": _one_by_one(self.video_cosine, video_BCTHW),
        }

    def sounds(self, mel_BTMS: Tensor) -> dict[str, Tensor]:
        """{"linear_planes", "cosine"}: [B, T, M, S] in [-1, 1]."""
        planes = _one_by_one(self.audio_planes, _mel_images(mel_BTMS, self.side))
        columns = _one_by_one(self.audio_cosine, _mel_columns(mel_BTMS))
        return {
            "linear_planes": _from_mel_images(planes, mel_BTMS.shape),
            "cosine": rearrange(columns, "b m (t s) -> b t m s", t=mel_BTMS.shape[1]),
        }


def _one_by_one(code: Callable[[Tensor], Tensor], clips: Tensor) -> Tensor:
    """Processes one clip at a time: memory stays small, and no result depends on the rest of the batch."""
    return torch.cat([code(clip) for clip in clips.split(1)])


@dataclass(frozen=True)
class YardstickPlan:
    """What decides the yardsticks of a run, and the path of their file.

    needs: what is missing for the fit; empty if nothing is missing.
    """

    record: dict[str, Any]
    path: str
    needs: str = ""

    @property
    def hash(self) -> str:
        return hashlib.sha256(json.dumps(self.record, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def available(self) -> bool:
        return not self.needs

    def is_due(self) -> bool:
        """Whether the yardsticks can be fitted and their file does not exist."""
        return self.available and not storage.exists(self.path)

    def to_dict(self) -> dict[str, Any]:
        """The entry of metrics.json: size and fit of the yardsticks, or why there are none."""
        if self.needs:
            return {"absent": f"they need {self.needs}"}
        values, windows = self.record["values_per_stream"], self.record["num_windows"]
        return {
            "values_per_stream": values,
            "num_training_windows": windows,
            "hash": self.hash,
            "protocol": f"{values_text(values)}, as MDSA stores. Fitted on the first "
            f"{windows} windows that training sees with seed {self.record['seed']} (train split; at most "
            f"{MAX_WINDOWS} windows and {MAX_VALUES:,} pixel values), applied unchanged. Linear planes: "
            "HW from the temporal mean, then WT and HT from what is left, by principal components of each "
            "cell's patch. Cosine: an orthonormal DCT-II over colours, time, rows and columns (of sound over "
            "bins and all mel columns); kept are the coefficients of largest mean square in training",
        }


def plan_yardsticks(config: Config) -> YardstickPlan:
    """The plan of a run, from its configuration and the manifest of its data; fits nothing."""
    store, geometry = SegmentStore(config.data_folder), ClipGeometry.from_config(config)
    latents = LatentGeometry.from_config(config)
    values = 3 * geometry.num_frames * geometry.height * geometry.width
    record = {
        "format": FORMAT,
        "data": manifest_hash(store.manifest),
        "split": "train",
        "num_windows": max(1, min(MAX_WINDOWS, MAX_VALUES // values)),
        "seed": config.seed,
        "mirrored": config.mdsa.train.augment_flip,
        "clip": config.clip.model_dump(mode="json"),
        "mel": config.mel.model_dump(mode="json"),
        "side": latents.plane_size,
        "channels": {modality: latents.channels_per_plane(modality) for modality in MODALITIES},
        "values_per_stream": {modality: latents.values_per_stream(modality) for modality in MODALITIES},
    }
    has_training = len(store.stretches(split="train", num_frames=geometry.num_frames)[0])
    needs = "" if has_training else f"a training split to fit them on; {config.data_folder} has no clip of it"
    name = f"yardsticks-{YardstickPlan(record, '').hash}.safetensors"
    return YardstickPlan(record, storage.join(RunFolder(config).evaluation, name), needs)


def make_yardsticks(config: Config, plan: YardstickPlan) -> None:
    """Fits the plan's yardsticks and writes their file, whole or not at all.

    Does nothing if the file exists, or if the plan `needs` something.
    """
    if plan.is_due():
        tensors = _to_tensors(fit_yardsticks(config, plan))
        metadata = {"record": json.dumps(plan.record, sort_keys=True)}
        storage.write_bytes(plan.path, safetensors.torch.save(tensors, metadata=metadata))


@functools.lru_cache(maxsize=2)
def load_yardsticks(path: str) -> Yardsticks:
    """The yardsticks of a file that `make_yardsticks` wrote; its name has the hash of the plan."""
    return _from_tensors(safetensors.torch.load(storage.read_bytes(path)))


def fit_yardsticks(config: Config, plan: YardstickPlan) -> Yardsticks:
    """Fits on windows of the training split, on one thread, so that the result is reproducible exactly."""
    side, channels, count = (plan.record[name] for name in ("side", "channels", "values_per_stream"))
    videos, mels = _training_windows(config, plan)

    def chunks_of(clips: list[Tensor], prepare: Callable[[Tensor], Tensor]) -> Chunks:
        size = max(1, CHUNK_VALUES // videos[0].numel())
        return lambda: (
            prepare(torch.stack(clips[first : first + size])) for first in range(0, len(clips), size)
        )

    pictures = chunks_of(videos, pixels_to_unit)
    with one_torch_thread():
        return Yardsticks(
            LinearPlanes.fit(pictures, side=side, channels=channels["video"]),
            CosineTransform.fit(pictures, count["video"]),
            LinearPlanes.fit(
                chunks_of(mels, lambda mel: _mel_images(mel, side)), side=side, channels=channels["audio"]
            ),
            CosineTransform.fit(chunks_of(mels, _mel_columns), count["audio"]),
        )


def _training_windows(config: Config, plan: YardstickPlan) -> tuple[list[Tensor], list[Tensor]]:
    """Pictures uint8 [T, H, W, 3] and mels float32 [T, M, S] of the windows that training sees first,
    mirrored as there, and not augmented otherwise.
    """
    record, videos, mels = plan.record, [], []
    feed = ClipFeed(
        config.data_folder, config, split=record["split"], seed=record["seed"], flip=record["mirrored"]
    )
    for position in range(record["num_windows"]):
        batch = feed.at(np.array([position]))
        videos.append(batch["video"][0])
        mels.append(batch["mel"][0])
    return videos, mels


def _to_tensors(yardsticks: Yardsticks) -> dict[str, Tensor]:
    tensors = {"side": torch.tensor(yardsticks.side)}
    for stream in MODALITIES:
        planes: LinearPlanes = getattr(yardsticks, f"{stream}_planes")
        for name, (mean, directions) in planes.planes.items():
            tensors |= {f"{stream}.{name}.mean": mean, f"{stream}.{name}.directions": directions}
        tensors[f"{stream}.kept"] = getattr(yardsticks, f"{stream}_cosine").kept
    return tensors


def _from_tensors(tensors: dict[str, Tensor]) -> Yardsticks:
    def planes(stream: str) -> LinearPlanes:
        parts = {
            name: (tensors[f"{stream}.{name}.mean"], tensors[f"{stream}.{name}.directions"])
            for name in PLANES
        }
        return LinearPlanes(int(tensors["side"]), parts)

    video, audio = MODALITIES
    return Yardsticks(
        planes(video),
        CosineTransform(tensors[f"{video}.kept"]),
        planes(audio),
        CosineTransform(tensors[f"{audio}.kept"]),
    )


def _mel_images(mel_BTMS: Tensor, side: int) -> Tensor:
    """Mel as images [B, 1, T, M', S'] for planes of `side` cells.

    M' and S' are the least multiples of M and S that `side` divides; bins and steps are repeated to fill
    them.
    """
    bins, steps = (math.lcm(size, side) // size for size in mel_BTMS.shape[2:])
    return repeat(mel_BTMS, "b t m s -> b 1 t (m i) (s j)", i=bins, j=steps)


def _from_mel_images(images: Tensor, shape: torch.Size) -> Tensor:
    """The inverse of `_mel_images`: the mean over repeated values, [B, T, M, S]."""
    return reduce(images, "b 1 t (m i) (s j) -> b t m s", "mean", m=shape[2], s=shape[3])


def _mel_columns(mel_BTMS: Tensor) -> Tensor:
    """[B, M, T S]: all mel columns of a clip on one time axis, in the order of the sound."""
    return rearrange(mel_BTMS, "b t m s -> b m (t s)")
