"""metrics.jsonl: the curve of a training run, with one JSON object for each report.

On a local disk it is one growing file. Object stores cannot append, so there it is written in parts,
metrics/part-*.jsonl. A run that was copied from one to the other has both. After a resume, lines beyond the
checkpoint are dropped, so that the curve is that of an uninterrupted run.
"""

import json
import time
from pathlib import Path

from proav import storage
from proav.storage.patience import patiently

FLUSH_SECONDS = 60.0
"""On object stores, the time after which the next line completes a part."""


class MetricsLog:
    """Writes the reports of one stage; only worker 0 has one.

    stage_folder: <run_dir>/<stage>, local or remote.
    resume_clips: lines beyond this many clips are dropped.
    """

    def __init__(self, stage_folder: str, *, resume_clips: int) -> None:
        self.folder, self.remote = stage_folder, storage.is_remote(stage_folder)
        self.lines: list[dict] = []
        self.flushed = time.monotonic()
        self._drop_beyond(resume_clips)

    def write(self, line: dict) -> None:
        if not self.remote:
            self._append(json.dumps(line) + "\n")
            return
        self.lines.append(line)
        if time.monotonic() - self.flushed > FLUSH_SECONDS:
            self.flush()

    def _append(self, text: str) -> None:
        """Writes from the file's original end at each try, so that a failed try leaves no partial line."""
        place = self._file.stat().st_size if self._file.exists() else 0

        def write() -> None:
            with open(self._file, "r+b" if self._file.exists() else "wb") as file:
                file.seek(place)
                file.write(text.encode())
                file.truncate()

        patiently(write, f"writing {self._file}")

    def flush(self) -> None:
        """Turns the lines so far into a part, on object stores; called with every checkpoint."""
        if self.lines:
            storage.write_text(
                storage.join(self.folder, "metrics", f"part-{self.lines[0]['clips']:012d}.jsonl"),
                _text(self.lines),
            )
        self.lines, self.flushed = [], time.monotonic()

    @property
    def _file(self) -> Path:
        return Path(storage.open_filesystem(self.folder)[1], "metrics.jsonl")

    def _drop_beyond(self, clips: int) -> None:
        """Treats both forms, since a run may have been copied between a disk and an object store."""
        if not self.remote:
            self._file.parent.mkdir(parents=True, exist_ok=True)
        for path in metrics_files(self.folder):
            text = storage.read_text(path)
            kept = _text(line for line in _parse(text) if line["clips"] <= clips)
            if not kept:
                storage.delete_file(path)
            elif kept != text:
                storage.write_text(path, kept)


def metrics_files(stage_folder: str) -> list[str]:
    """The files that hold a stage's reports: metrics.jsonl, and then parts; empty if it has not begun."""
    single = storage.join(stage_folder, "metrics.jsonl")
    parts = storage.list_files(storage.join(stage_folder, "metrics"))
    return [single, *parts] if storage.exists(single) else parts


def read_metrics(stage_folder: str) -> list[dict]:
    """Every report of a stage in order of clips; empty if the stage has not begun."""
    lines = [line for file in metrics_files(stage_folder) for line in _parse(storage.read_text(file))]
    return sorted(lines, key=lambda line: line["clips"])  # a run that moved to a disk wrote the parts first


def _parse(text: str) -> list[dict]:
    """The complete lines of a JSON-lines file; a last line that a crash cut off is dropped."""
    return [
        json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n") and line.strip()
    ]


def _text(lines) -> str:
    return "".join(json.dumps(line) + "\n" for line in lines)
