"""A run directory with tiny clips and latents, written without decoding anything: what training tests start from."""

import json

import numpy as np
import torch

from proav import storage
from proav.config import Config
from proav.data.latents import LATENT_SCHEMA
from proav.data.manifest import finish
from proav.data.rows import write_shard
from proav.data.shards import REJECT_SCHEMA, SEGMENT_SCHEMA
from proav.data.sources import SourceRow
from proav.geometry import ClipGeometry, LatentGeometry
from proav.train.engine import make_engine
from tests.tiny import LABELS

NUM_SEGMENTS, SEGMENT_FRAMES = 6, 8


def write_segments(config: Config, *, damaged: int | None = None) -> None:
    """Six random segments of eight frames as a finished data set; the frames of segment `damaged` are cut off."""
    data_dir, clip = storage.join(config.run_folder, "data"), ClipGeometry.from_config(config)
    random = np.random.default_rng(0)
    rows, sources = [], []
    for index in range(NUM_SEGMENTS):
        video = random.integers(0, 256, (SEGMENT_FRAMES, clip.height, clip.width, 3), np.uint8)
        mel = random.uniform(-1, 1, (SEGMENT_FRAMES, *clip.mel_shape[1:])).astype(np.float16)
        audio = random.integers(-9000, 9000, SEGMENT_FRAMES * clip.samples_per_frame).astype(np.int16)
        frame_bytes = video[0].nbytes
        rows.append(
            {
                "id": f"segment-{index}", "source": f"{index}.mp4", "source_id": f"source-{index}", "label": LABELS[index % 2], "split": "train",
                "start_seconds": 0.0, "num_frames": SEGMENT_FRAMES, "fps": clip.fps, "sample_rate": clip.sample_rate, "has_audio": True, "rms": 0.1,
                "peak": 0.3, "clipped": 0.0, "silent": False, "mean_luma": 0.5, "motion": 0.3, "video_codec": "raw", "video_shape": list(video.shape),
                "video_dtype": "uint8", "audio_shape": list(audio.shape), "audio_dtype": "int16", "mel_shape": list(mel.shape), "mel_dtype": "float16",
                "frame_offsets": [frame * frame_bytes for frame in range(SEGMENT_FRAMES + 1)],
                "video": video.tobytes()[: 100 if index == damaged else None], "audio": audio.tobytes(), "mel": mel.tobytes(),
            }
        )  # fmt: skip
        sources.append(SourceRow(id=f"source-{index}", key=f"{index}.mp4", path=f"{index}.mp4", label=LABELS[index % 2]))
    shard = write_shard(storage.join(data_dir, "segments", "000000-0000.parquet"), rows, SEGMENT_SCHEMA)
    write_shard(storage.join(data_dir, "rejects", "000000.parquet"), [], REJECT_SCHEMA)
    finish(config, data_dir, sources, [{"shards": [shard]}])


def write_latents(config: Config, mdsa_hash: str, num_windows: int = 10) -> None:
    """Random latents with their statistics, as if that MDSA checkpoint had made them."""
    folder, shape = storage.join(config.run_folder, "latents"), LatentGeometry.from_config(config).stack_shape
    random = np.random.default_rng(1)
    rows = []
    for index in range(num_windows):
        joint, lone = random.uniform(-1, 1, (2, *shape)).astype(np.float16)
        identity = {
            "id": f"segment-{index}",
            "source_id": f"source-{index}",
            "label": LABELS[index % 2],
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
