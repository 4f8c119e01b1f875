"""samples/manifest.jsonl: one row a sample, in order of the index; and its parts while a job runs.

When the files of a batch are written, its part follows: manifest/part-<first index>.jsonl. At its end, a job
merges the parts into the manifest. If the job is killed, its next start merges them. So a kill loses only the
batches in progress, and no file has to be looked for one by one. All parts are of one job, so their rows do
not overlap. All is read and written as a stream, so that millions of rows take little memory.

If the input of a row could not be used, the row has no file. It has `error`, a short stable word, and
`message`.
"""

import heapq
import itertools
import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from proav import storage
from proav.diffusion.solvers import DEFAULTS
from proav.errors import UserError
from proav.generation.sampling_settings import SamplingSettings

PARTS_AT_A_TIME = 256
"""Parts that are held in memory together while they are merged."""
OF_ONE_ROW = ("index", "path", "seed", "number", "label", "seconds", "given", "span", "stream", "texts",
              "vectors", "error", "message", "clips_trained")  # fmt: skip
"""Keys of a row that may differ between the samples of one job, and one that says nothing of its own."""
OF_EARLIER_VERSIONS = SamplingSettings().to_dict() | {"precision": "fp32"}
"""The settings of rows of an earlier version, which lack some."""
THREADS = 16
"""Threads that read and delete parts. Object stores answer slowly, but answer many requests at once."""


def sample_path(folder: str, index: int) -> str:
    """<folder>/<index // 1000:06d>/<index:09d>.mp4"""
    return storage.join(folder, f"{index // 1000:06d}", f"{index:09d}.mp4")


def read_samples(folder: str) -> list[dict]:
    """The rows of the samples that have a file, in order of the index; [] if there are none."""
    return [row for row, _ in stored_rows(folder) if "error" not in row]


def of_one_job(rows: Sequence[dict]) -> tuple[list[dict], dict[str, int]]:
    """(the rows that were made as the first one was, {what differs in others: how many rows}).

    The first row is always of the newest job, but rows beyond its last index stay (`plan.py`): they may be of
    another task, checkpoint or number of steps.

    rows: of `read_samples`.
    """
    alike, others, first = [], Counter(), _shared(rows[0]) if rows else {}
    for row in rows:
        shared = _shared(row)
        differing = [key for key in sorted(first.keys() | shared) if first.get(key) != shared.get(key)]
        if not differing:
            alike.append(row)
        others.update(f"{key}={shared.get(key)} instead of {first.get(key)}" for key in differing)
    return alike, dict(others)


def _shared(row: dict) -> dict:
    """What all samples of a job share, with defaults that are spelled out left out.

    For a flow without fresh noise, ddim is euler. `clips_trained` is that of the checkpoint.
    """
    row = OF_EARLIER_VERSIONS | row
    shared = {key: value for key, value in row.items() if key not in OF_ONE_ROW and value is not None}
    if shared.get("solver") in DEFAULTS.values():
        del shared["solver"]
    if shared.get("audio_guidance_scale") == shared.get("guidance_scale"):
        shared.pop("audio_guidance_scale", None)
    return shared


def stored_rows(folder: str, parts: Sequence[str] | None = None) -> Iterator[tuple[dict, str]]:
    """(row, its line) of manifest and parts, in order of the index. If manifest and part both have a row of
    one index, the part's row counts.

    parts: of `list_parts`; None: all that are there.
    Raises UserError if a line is no row, or is out of order.
    """
    parts = list_parts(folder) if parts is None else parts
    manifest = storage.join(folder, "manifest.jsonl")
    whole = _rows_of(zip(itertools.repeat(manifest), _lines(manifest))) if storage.exists(manifest) else ()
    both = heapq.merge(whole, _rows_of(_lines_of_parts(parts)), key=lambda pair: pair[0]["index"])
    for _, same in itertools.groupby(both, key=lambda pair: pair[0]["index"]):
        *_, newest = same
        yield newest


def write_part(folder: str, rows: Sequence[dict]) -> None:
    """Records that a batch is done. rows: its rows of the manifest, in order of the index."""
    name = f"part-{rows[0]['index']:09d}.jsonl"
    storage.write_text(storage.join(_parts(folder), name), "".join(line_of(row) for row in rows))


def line_of(row: dict) -> str:
    return json.dumps(row) + "\n"


def list_parts(folder: str) -> list[str]:
    """The paths of all parts, in order of the index."""
    return storage.list_files(_parts(folder))


def merge_parts(folder: str) -> None:
    """Merges the parts into the manifest; nothing happens if there are no parts."""
    if parts := list_parts(folder):
        with ManifestDraft(folder) as draft:
            for _, line in stored_rows(folder, parts):
                draft.write(line)
            draft.publish(parts)


class ManifestDraft:
    """A new manifest, written row by row; `publish` replaces the old one and its parts by it."""

    def __init__(self, folder: str) -> None:
        self.folder, self._file = folder, tempfile.TemporaryFile()

    def write(self, line: str) -> None:
        """Appends a line; they come in order of the index."""
        self._file.write(line.encode())

    def publish(self, parts: Sequence[str]) -> None:
        """Replaces the manifest by the new one. parts: those whose rows it has; they are deleted."""
        # If the job is killed between these lines, a part that stays says the same as the new manifest
        storage.write_file(storage.join(self.folder, "manifest.jsonl"), self._file)
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(storage.delete_file, parts))
        if not list_parts(self.folder):  # an actor of a job that was stopped may still have added one
            storage.delete_folder(_parts(self.folder))

    def __enter__(self) -> "ManifestDraft":
        return self

    def __exit__(self, *_) -> None:
        self._file.close()


class SampleFiles:
    """Says which samples have a file. It lists each folder once, for its thousand samples.

    Ask in order of the index: only the listing of one folder is kept.
    """

    def __init__(self, folder: str) -> None:
        self.folder, self._listed, self._names = folder, "", frozenset()

    def __contains__(self, path: str) -> bool:
        """Whether samples/<path> is there."""
        below, _, name = path.rpartition("/")
        if below != self._listed:
            files = storage.list_files(storage.join(self.folder, below), recursive=False)
            self._listed, self._names = below, frozenset(file.rsplit("/", 1)[-1] for file in files)
        return name in self._names


def _parts(folder: str) -> str:
    return storage.join(folder, "manifest")


def _lines(path: str) -> Iterator[str]:
    return (line + "\n" for line in storage.read_lines(path))


def _lines_of_parts(paths: Sequence[str]) -> Iterator[tuple[str, str]]:
    with ThreadPoolExecutor(THREADS) as pool:
        for first in range(0, len(paths), PARTS_AT_A_TIME):
            some = paths[first : first + PARTS_AT_A_TIME]
            for path, text in zip(some, pool.map(storage.read_text, some), strict=True):
                yield from ((path, line) for line in text.splitlines(keepends=True))


def _rows_of(lines: Iterable[tuple[str, str]]) -> Iterator[tuple[dict, str]]:
    """(row, line) of (path, line). Raises UserError if a line is no row, or is out of order."""
    before = -1
    for path, line in lines:
        try:
            row = json.loads(line)
            index = int(row["index"])
        except (ValueError, TypeError, KeyError):
            raise UserError(
                f"{path} is damaged: {line[:80]!r} is no row of a sample; delete that line"
            ) from None
        if index <= before:
            raise UserError(f"{path}: sample {index} comes after {before}; expected rising indices")
        before = index
        yield row, line
