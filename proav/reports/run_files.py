"""Reads the files of a run for its report pages: JSON files, metrics, checkpoints, segments, clips.

Nothing is skipped silently: for a file that cannot be read, the page gets a sentence. This module writes
nothing and computes no metric. Letters: T frames, M mel bins, S mel columns in a frame, L sound samples.
"""

import contextlib
import dataclasses
import io
import json
import math
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from proav import storage
from proav.data.store.parquet import open_parquet
from proav.data.store.schema import BULKY_COLUMNS, INDEX_SCHEMA, REJECT_SCHEMA
from proav.errors import MediaError, UserError
from proav.media.container import Clip, read_clip
from proav.media.melframes import MelFrames
from proav.reports.kit.figures import clip_strip
from proav.reports.kit.page import Markup, counted, player
from proav.runs.metrics_log import metrics_files


@dataclasses.dataclass(frozen=True)
class Metrics:
    """One stage's reports, in order of clips trained."""

    series: dict[str, tuple[list[float], list[float]]]
    """{key: ([clips], [values])}, finite values only."""
    problems: list[str]
    """What was wrong with other lines, in sentences."""
    num_reports: int = 0
    devices: tuple[str, ...] = ()

    @property
    def clips(self) -> int:
        return int(max((clips[-1] for clips, _ in self.series.values()), default=0))

    @property
    def seconds(self) -> float:
        """Training time, summed from the clips between reports and their rate.

        Unlike a clock, this sum survives restarts.
        """
        clips, rates = self.series.get("clips_per_second", ([], []))
        return float(
            sum(step / rate for step, rate in zip(np.diff([0, *clips]), rates, strict=True) if rate > 0)
        )


def read_json(path: str) -> tuple[dict | None, str | None]:
    """(object in a JSON file, None), or (None, reason as a sentence); (None, None) if there is no file."""
    if not storage.exists(path):
        return None, None
    try:
        value = json.loads(storage.read_text(path))
    except (ValueError, OSError) as error:
        return None, f"{path} cannot be read: {error}"
    return (
        (value, None)
        if isinstance(value, dict)
        else (None, f"{path} holds {type(value).__name__}, not an object")
    )


def read_json_lines(path: str) -> tuple[list[dict], list[str]]:
    """The objects of a file with one JSON object per line, and a sentence for each other line.

    A crash may have cut off the last line.
    """
    rows, problems = [], []
    if not storage.exists(path):
        return rows, problems
    for line_number, line in enumerate(
        storage.read_bytes(path).decode("utf-8", errors="replace").splitlines(), start=1
    ):
        try:
            row = json.loads(line) if line.strip() else None
        except ValueError:
            row = line
        if isinstance(row, dict):
            rows.append(row)
        elif row is not None:
            problems.append(f"{path}, line {line_number}, is not a JSON object")
    return rows, problems


def read_curves(stage_folder: str) -> Metrics:
    """The reports of a stage as series of numbers. Lines that cannot be used become problems.

    If two reports have the same clips, the later one counts. Series from validation.jsonl are named
    validation_KEY.
    """
    rows, problems = [], []
    for file in metrics_files(stage_folder):
        more, more_problems = read_json_lines(file)
        rows, problems = rows + more, problems + more_problems
    measured, measured_problems = read_json_lines(storage.join(stage_folder, "validation.jsonl"))
    problems = problems + measured_problems
    found = len(rows) + len(measured)
    rows, measured = (
        [row for row in some if isinstance(row.get("clips"), int | float)] for some in (rows, measured)
    )
    if found > len(rows) + len(measured):
        problems.append(f"{stage_folder}: a report without `clips` was left out")
    by_clips = {row["clips"]: row for row in rows}
    series: dict[str, tuple[list[float], list[float]]] = {}
    broken: dict[str, int] = {}

    def add(name: str, clips: float, value) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return
        if not math.isfinite(value):
            broken[name] = broken.get(name, 0) + 1
            return
        places, values = series.setdefault(name, ([], []))
        places.append(clips)
        values.append(value)

    for clips, row in sorted(by_clips.items()):
        for key, value in row.items():
            add(key, clips, value)
    for row in measured:
        for key, value in row.items():
            if key != "clips" and not key.startswith("num_"):
                add(f"validation_{key}", row["clips"], value)
    problems += [
        f"{stage_folder}: {key} is not a finite number in {counted(count, 'report')}"
        for key, count in broken.items()
    ]
    devices = tuple(dict.fromkeys(str(row["device"]) for row in by_clips.values() if row.get("device")))
    return Metrics(series, problems, len(by_clips), devices)


def read_checkpoint_card(stage_folder: str) -> tuple[dict | None, str | None]:
    """(checkpoint.json of the newest checkpoint, problem); each may be None. The weights are not read."""
    latest = storage.join(stage_folder, "checkpoints", "latest")
    if not storage.exists(latest):
        return None, None
    path = storage.join(stage_folder, "checkpoints", storage.read_text(latest).strip(), "checkpoint.json")
    card, problem = read_json(path)
    return card, problem or (f"{latest} names a checkpoint that is not there" if card is None else None)


def read_table(path: str) -> tuple[pa.Table | None, list[str]]:
    """One Parquet file's rows, without the bulky columns of a shard, and sentences about what is wrong.

    Rows are None if the file is damaged; (None, []) if there is no file.
    """
    if not storage.exists(path):
        return None, []
    try:
        with contextlib.closing(open_parquet(path)) as file:
            return file.read(
                columns=[name for name in file.schema_arrow.names if name not in BULKY_COLUMNS]
            ), []
    except (UserError, pa.ArrowException, OSError) as error:
        return None, [f"{path} cannot be read: {error}"]


def read_segments(data_folder: str) -> tuple[pa.Table, list[str]]:
    """What is known of each segment, and a sentence for each damaged file.

    It comes from the index, or shard by shard if preprocessing has not finished.
    """
    index, problems = read_table(storage.join(data_folder, "index.parquet"))
    if index is not None:
        return index, problems
    return _read_tables(storage.join(data_folder, "segments"), INDEX_SCHEMA, problems)


def read_rejects(data_folder: str) -> tuple[pa.Table, list[str]]:
    """Rejected sources and segments with their reasons, and a sentence for each damaged file."""
    return _read_tables(storage.join(data_folder, "rejects"), REJECT_SCHEMA, [])


def _read_tables(folder: str, schema: pa.Schema, problems: list[str]) -> tuple[pa.Table, list[str]]:
    tables = []
    for path in storage.list_files(folder):
        if path.endswith(".parquet"):
            table, more = read_table(path)
            tables += [table] if table is not None else []
            problems = problems + more
    return (pa.concat_tables(tables, promote_options="default") if tables else schema.empty_table()), problems


class ClipPlayers:
    """Players for the clips of one configuration: a video, and a strip of frames and mel spectrogram."""

    def __init__(self, config) -> None:
        self.config = config
        self.mel_frames = MelFrames(config)

    def from_file(self, path: str, *, description: str, title: str = "") -> list[Markup]:
        """Player for a video file of the run.

        path: the file.
        description: text alternative.
        title: shown over the strip if two clips are side by side.
        Raises MediaError if the file is missing or damaged, or has no sound or no picture.
        """
        clip = self.config.clip
        if not storage.exists(path):
            raise MediaError("not_found", f"there is no file {path}")
        content = storage.read_bytes(path)
        read = read_clip(
            io.BytesIO(content),
            fps=clip.fps,
            sample_rate=clip.sample_rate,
            height=clip.height,
            width=clip.width,
        )
        strip = self._strip(read, self._mel(read), None, description=description, title=title)
        return player(content, strip, description=description, pixel_width=clip.width)

    def from_clip(
        self, clip: Clip, mel_TMS: np.ndarray, *, description: str, title: str = ""
    ) -> list[Markup]:
        """Player for a clip in memory, with its waveform.

        mel_TMS: the mel frames stored for the clip, in [-1, 1].
        description, title: as in `from_file`.
        """
        with tempfile.TemporaryDirectory(prefix="proav-") as folder:
            path = Path(folder) / "clip.mp4"
            clip.save(str(path))
            content = path.read_bytes()
        strip = self._strip(clip, mel_TMS, clip.audio, description=description, title=title)
        return player(content, strip, description=description, pixel_width=clip.video.shape[2])

    def _mel(self, clip: Clip) -> np.ndarray:
        """Mel frames [T, M, S] of the clip's sound."""
        return self.mel_frames.encode(torch.from_numpy(clip.audio)[None])[0].numpy()

    def _strip(
        self, clip: Clip, mel_TMS: np.ndarray, waveform_L: np.ndarray | None, *, description: str, title: str
    ) -> Markup:
        """`clip_strip` of a clip, with the same arguments. Number of frames and length are put before the
        description."""
        text = (
            f"{counted(len(clip.video), 'frame')} over the mel spectrogram of the sound, "
            f"{clip.seconds:g} seconds: {description}"
        )
        mel = self.config.mel
        return clip_strip(
            clip.video,
            mel_TMS,
            waveform_L,
            fps=clip.fps,
            min_hz=mel.min_hz,
            max_hz=mel.max_hz,
            description=text,
            title=title,
        )
