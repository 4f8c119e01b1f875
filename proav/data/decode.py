"""One unit of preprocessing: a few sources in, shards of segments and a table of rejects out; a plain function, with Ray or without.

A unit is decoded a segment at a time, so that its memory does not grow with the length of a film. Its files have fixed names and its record,
units/<name>.json, is written last: a unit with a record is done, one without is made again, to the same bytes. Letters: B clips, L samples.
"""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np
import torch

from proav import storage
from proav.config import Config
from proav.data.frames import encode_frames
from proav.data.shards import FULL_SCALE, REJECT_SCHEMA, SEGMENT_COMPRESSION, SEGMENT_SCHEMA, ShardWriter, write_shard
from proav.data.sources import SourceRow, segment_id
from proav.errors import MediaError
from proav.media.container import Clip, read_segments
from proav.media.melframes import MelFrames

SILENT_RMS = 1e-3
"""Sound below this root mean square, -60 dB of full scale, counts as silent: it is kept, marked and reported. Our choice."""
CLIPPED_LEVEL = 0.999
"""A sample of at least this magnitude counts as clipped."""
MAX_ATTEMPTS = 3
"""A source during which the worker process died this often is rejected as `crash`; without a limit it would be tried for ever."""


@dataclass(frozen=True)
class WorkUnit:
    """Sources that are decoded by one task."""

    name: str
    sources: tuple[SourceRow, ...]

    def to_json(self) -> str:
        return json.dumps({"name": self.name, "sources": [asdict(source) for source in self.sources]})

    @classmethod
    def from_json(cls, text: str) -> "WorkUnit":
        values = json.loads(text)
        return cls(values["name"], tuple(SourceRow(**{**source, "labels": tuple(source["labels"])}) for source in values["sources"]))


def process_unit(config: Config, data_dir: str, unit: WorkUnit) -> dict:
    """Decodes the unit's sources and writes its shards, rejects and record; returns the record.

    The record: {"name", "sources", "shards": [{"name", "rows", "bytes", "sha256"}], "rejects": the same or None}. Raises UserError where the
    disk is full; a source that cannot be used never raises, it is rejected with a reason.
    """
    shards, rejects = _RollingShards(data_dir, unit.name, config.data.rows_per_shard), []
    attempts = _Attempts(storage.join(data_dir, "units", f"{unit.name}.attempts"))
    with _one_torch_thread(), shards:  # the mel's last bits depend on the number of threads
        mel_frames = MelFrames(config)
        for source in unit.sources:
            row = _decode_source(config, source, shards, mel_frames, attempts)
            if row:
                rejects.append(row)
    rejects_path = storage.join(data_dir, "rejects", f"{unit.name}.parquet")
    _delete_file(storage.join(data_dir, "segments", _shard_name(unit.name, len(shards.results))))  # of a killed run that got further
    _delete_file(rejects_path)
    record = {
        "name": unit.name,
        "sources": len(unit.sources),
        "shards": shards.results,
        "rejects": write_shard(rejects_path, rejects, REJECT_SCHEMA, rows_per_group=1024) if rejects else None,
    }
    storage.write_text(storage.join(data_dir, "units", f"{unit.name}.json"), json.dumps(record))
    attempts.clear()
    return record


def _decode_source(config: Config, source: SourceRow, shards: "_RollingShards", mel_frames: MelFrames, attempts: "_Attempts") -> dict | None:
    """Writes the segments of one source; returns a row of the rejects where it, or the rest of it, cannot be used."""
    reached = source.start_seconds
    if attempts.begin(source.id + f"@{source.start_seconds}") > MAX_ATTEMPTS:
        return _reject(source, reached, "crash", f"{source.key}: the worker process died {MAX_ATTEMPTS} times while it decoded this file")
    clip = config.clip
    try:
        segments = read_segments(
            source.path,
            fps=clip.fps,
            sample_rate=clip.sample_rate,
            height=clip.height,
            width=clip.width,
            fit=config.data.fit,
            segment_seconds=config.data.segment_seconds,
            start_seconds=source.start_seconds,
            end_seconds=source.end_seconds,
            min_frames=clip.num_frames,
            deadline_seconds=config.data.source_timeout_seconds,
        )
        for start, segment in segments:
            shards.write(segment_row(config, source, start, segment, mel_frames))
            reached = start + segment.seconds
    except MediaError as error:
        return _reject(source, reached, error.reason, str(error).replace(source.path, source.key))
    finally:
        attempts.end()
    return None


def segment_row(config: Config, source: SourceRow, start_seconds: float, clip: Clip, mel_frames: MelFrames) -> dict:
    """One row of SEGMENT_SCHEMA. The mel is that of the stored (int16) sound, so that it can be made again from the row."""
    audio = np.round(clip.audio * FULL_SCALE).astype(np.int16)
    sound = audio.astype(np.float32) / FULL_SCALE
    mel_TMS = mel_frames.encode(torch.from_numpy(sound)[None])[0].numpy().astype(np.float16)
    video, offsets = encode_frames(clip.video, codec=config.data.frame_codec, quality=config.data.jpeg_quality)
    assert len(mel_TMS) == len(clip.video), f"{len(mel_TMS)} mel frames beside {len(clip.video)} pictures"
    return {
        "id": segment_id(source.key, start_seconds),
        "source": source.key,
        "source_id": source.id,
        "label": source.label,
        "split": source.split,
        "start_seconds": start_seconds,
        "num_frames": len(clip.video),
        "fps": clip.fps,
        "sample_rate": clip.sample_rate,
        "has_audio": True,
        **segment_statistics(clip.video, sound),
        "video_codec": config.data.frame_codec,
        "video_shape": list(clip.video.shape),
        "video_dtype": "uint8",
        "audio_shape": list(audio.shape),
        "audio_dtype": "int16",
        "mel_shape": list(mel_TMS.shape),
        "mel_dtype": "float16",
        "frame_offsets": offsets,
        "video": video,
        "audio": audio.tobytes(),
        "mel": mel_TMS.tobytes(),
    }


def segment_statistics(video_THWC: np.ndarray, sound_L: np.ndarray) -> dict:
    """rms, peak, clipped, silent of the sound; mean_luma (BT.601 weights) and motion of the pictures; all of full scale 1."""
    rms = float(np.sqrt(np.mean(np.square(sound_L, dtype=np.float64))))
    magnitude = np.abs(sound_L)
    luma = video_THWC.mean(axis=(0, 1, 2), dtype=np.float64) @ np.array([0.299, 0.587, 0.114]) / 255
    # A frame at a time: the differences of a whole segment would take more memory than all else.
    steps = [np.abs(after.astype(np.int16) - before).mean(dtype=np.float64) for before, after in zip(video_THWC[:-1], video_THWC[1:], strict=True)]
    return {
        "rms": rms,
        "peak": float(magnitude.max(initial=0.0)),
        "clipped": float(np.mean(magnitude >= CLIPPED_LEVEL)),
        "silent": rms < SILENT_RMS,
        "mean_luma": float(luma),
        "motion": float(np.mean(steps) / 255) if steps else 0.0,
    }


def _reject(source: SourceRow, start_seconds: float, reason: str, message: str) -> dict:
    identity = segment_id(source.key, start_seconds)
    return {"id": identity, "source": source.key, "source_id": source.id, "start_seconds": start_seconds, "reason": reason, "message": message}


def _shard_name(unit: str, number: int) -> str:
    return f"{unit}-{number:03d}.parquet"


def _delete_file(path: str) -> None:
    filesystem, inner = storage.open_filesystem(path)
    with contextlib.suppress(FileNotFoundError):
        filesystem.delete_file(inner)


class _RollingShards:
    """Writes rows into <unit>-000.parquet, <unit>-001.parquet, ..., each of at most `rows_per_shard` rows; opens none before the first row."""

    def __init__(self, data_dir: str, unit: str, rows_per_shard: int) -> None:
        self.folder, self.unit, self.rows_per_shard = storage.join(data_dir, "segments"), unit, rows_per_shard
        self.results: list[dict] = []
        self._writer: ShardWriter | None = None

    def write(self, row: dict) -> None:
        if self._writer is None:
            name = _shard_name(self.unit, len(self.results))
            self._writer = ShardWriter(storage.join(self.folder, name), SEGMENT_SCHEMA, compression=SEGMENT_COMPRESSION)
        self._writer.write(row)
        if self._writer.num_rows == self.rows_per_shard:
            self._close()

    def __enter__(self) -> "_RollingShards":
        return self

    def __exit__(self, kind, error, traceback) -> None:
        if kind is None:
            self._close()
        elif self._writer:
            self._writer.abort()

    def _close(self) -> None:
        if self._writer:
            self.results.append(self._writer.close())
            self._writer = None


class _Attempts:
    """Remembers across process deaths which source was being decoded: a small file that says how often each one was begun and not ended."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.counts: dict[str, int] = json.loads(storage.read_text(path)) if storage.exists(path) else {}
        self.current: str | None = None

    def begin(self, source: str) -> int:
        """Counts one attempt more and returns the count."""
        count = self.counts[source] = self.counts.get(source, 0) + 1
        self.current = source
        storage.write_text(self.path, json.dumps(self.counts))
        return count

    def end(self) -> None:
        self.counts.pop(self.current, None)

    def clear(self) -> None:
        _delete_file(self.path)


@contextlib.contextmanager
def _one_torch_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
