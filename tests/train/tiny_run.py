"""A run directory with tiny clips and latents, written without decoding anything.

Tests of feeds, latents and training start from it.
"""

import json
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import torch

from proav import storage
from proav.config import Config
from proav.data.prepare.finish import finish
from proav.data.prepare.source_decoder import segment_row
from proav.data.prepare.unit import WorkUnit, process_unit
from proav.data.sources.finding import SourceRow
from proav.data.store.parquet import write_shard
from proav.geometry import ClipGeometry, LatentGeometry
from proav.latents.encode import LATENT_SCHEMA
from proav.media.container import Clip
from proav.media.melframes import MelFrames
from proav.train.engines import make_engine
from tests.tiny import LABELS

NUM_SEGMENTS, SEGMENT_FRAMES = 6, 8


class RandomSegments:
    """Stands in for a decoder: each source gives one row, a segment of random pictures and random sound.

    config: the configuration of the run
    damaged: number of the segment whose frames are cut off; None for no damage
    frames: number of frames of a segment
    shots: frames at which new shots are said to begin
    other_split: split whose sources hold other noise; None for no such split
    """

    def __init__(
        self,
        config: Config,
        *,
        damaged: int | None,
        frames: int,
        shots: Sequence[int],
        other_split: str | None,
    ) -> None:
        self.config, self.damaged, self.frames, self.shots = config, damaged, frames, list(shots)
        self.other_split = other_split
        self.mel_frames = MelFrames(config)

    def rows(self, source: SourceRow) -> Iterator[dict]:
        clip, number = ClipGeometry.from_config(self.config), int(source.key.split(".")[0])
        random = np.random.default_rng(number + (1000 if source.split == self.other_split else 0))
        video = random.integers(0, 256, (self.frames, clip.height, clip.width, 3), np.uint8)
        audio = random.integers(-9000, 9000, self.frames * clip.samples_per_frame).astype(np.float32) / 32767
        row = segment_row(
            self.config, source, 0.0, Clip(video, audio, clip.fps, clip.sample_rate), self.mel_frames
        )
        yield (
            row
            | {"shot_starts": self.shots}
            | ({"video": row["video"][:100]} if number == self.damaged else {})
        )


def write_segments(
    config: Config,
    *,
    damaged: int | None = None,
    frames: int = SEGMENT_FRAMES,
    shots: Sequence[int] = (),
    splits: Sequence[str] = ("train",),
    other_split: str | None = None,
) -> None:
    """Writes random segments as a finished data set.

    splits: the splits of the sources, in turn
    The other arguments are those of RandomSegments.
    """
    data_dir = storage.join(config.run_folder, "data")
    sources = tuple(
        SourceRow(
            f"source-{n}", f"{n}.mp4", f"{n}.mp4", LABELS[n % 2], (LABELS[n % 2],), splits[n % len(splits)]
        )
        for n in range(NUM_SEGMENTS)
    )
    decoder = RandomSegments(config, damaged=damaged, frames=frames, shots=shots, other_split=other_split)
    record = process_unit(config, data_dir, WorkUnit("000000", sources), decoder)
    table = pa.table({"id": [source.id for source in sources], "label": [source.label for source in sources]})
    finish(config, data_dir, table, [record])


def write_latents(config: Config, mdsa_hash: str, num_windows: int = 10) -> None:
    """Writes random latents with their statistics, as if the MDSA checkpoint `mdsa_hash` had made them."""
    folder, shape = storage.join(config.run_folder, "latents"), LatentGeometry.from_config(config).stack_shape
    random = np.random.default_rng(1)
    rows = []
    for index in range(num_windows):
        joint, lone = random.uniform(-1, 1, (2, *shape)).astype(np.float16)
        identity = {
            "id": f"segment-{index}",
            "source_id": f"source-{index}",
            "label": LABELS[index % 2],
            "labels": [LABELS[index % 2]],
            "split": "train",
            "start_frame": 0,
            "flipped": False,
        }
        rows.append({**identity, "joint": joint.tobytes(), "lone": lone.tobytes(), "shape": list(shape)})
    write_shard(storage.join(folder, "000000-0000.parquet"), rows, LATENT_SCHEMA)
    per_channel = np.full((6, shape[0]), 0.5).tolist()
    stats = {
        "mdsa_checkpoint": mdsa_hash,
        "labels": list(LABELS),
        "mean": np.zeros((6, shape[0])).tolist(),
        "std": per_channel,
        "num_windows": num_windows,
    }
    storage.write_text(storage.join(folder, "stats.json"), json.dumps(stats))


def torch_engine(module: torch.nn.Module, config: Config, stage: str = "mdsa"):
    train = getattr(config, stage).train.model_copy(update={"engine": "torch", "zero_stage": 0})
    return make_engine(module, train, device=torch.device("cpu"), micro_batch=train.batch_size)
