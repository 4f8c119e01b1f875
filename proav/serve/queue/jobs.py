"""Jobs, and the folders in which they are kept.

Each job has a folder with job.json, what was given, and the finished mp4. Each file is written whole. A
server that starts again finds its finished jobs here, and makes the unfinished ones again. Their clips are
the same, because a clip is a function of its order. The functions block, so the server calls them in threads.
Not here: which jobs wait (`batching.py`) and which run (`dispatch.py`).
"""

import contextlib
import io
import json
import logging
import lzma
import re
import secrets
import time
import tokenize
import zipfile
import zlib
from typing import Annotated, Literal

import numpy as np
import pyarrow.fs as pafs
from pydantic import BaseModel, ConfigDict, Field, model_validator

from proav import storage
from proav.diffusion.tasks import TASKS
from proav.errors import TOLD, StorageUnavailable, UserError
from proav.serve.front.api_error import ApiError
from proav.serve.orders.requests import Order

MAX_INDEX_BYTES = 2**24
"""A larger file is no job.json: orders that would need one are refused. Vectors take 5.4 bytes a number, and
a letter of a text up to 12.
"""
GROWTH_BYTES = 2**16
"""How much a job.json may grow until its job is finished: by the times, and by the error."""
DAMAGED = (
    EOFError, MemoryError, NotImplementedError, OSError, OverflowError, RecursionError, RuntimeError,
    SyntaxError, TypeError, lzma.LZMAError, tokenize.TokenError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""What a damaged archive of arrays in memory raises besides ValueError. numpy reads headers as Python code. A
changed method of compression leads to any of zipfile's decoders; that of bz2 raises OSError.
"""
INDEX, VIDEO, GIVEN = "job.json", "video.mp4", "given.npz"
ID = re.compile(r"video_[0-9a-f]+")
MICROSECONDS = 10**6

logger = logging.getLogger(__name__)


Time = Annotated[float, Field(ge=0, le=2.0**36)]
"""Unix seconds, up to the year 4147."""


class JobError(BaseModel):
    """Why a job failed."""

    code: str
    message: str


class Job(BaseModel):
    """One clip being made, from acceptance to expiry. Times are Unix seconds."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    id: str
    order: Order
    model: str
    size: str
    seconds: str
    checkpoint: str
    """Hash of the checkpoint that makes it."""
    created: Time
    status: Literal["queued", "in_progress", "completed", "failed"] = "queued"
    progress: Annotated[int, Field(ge=0, le=100)] = 0
    """0 to 100; 100 only if the clip can be fetched."""
    completed: Time | None = None
    expires: Time | None = None
    error: JobError | None = None

    @model_validator(mode="after")
    def _check(self) -> "Job":
        ended, failed = self.completed is not None, self.error is not None
        if self.finished != ended or (self.status == "failed") != failed:
            said = f"status {self.status} does not go together with completed={self.completed}"
            raise ValueError(f"{said}, error={self.error}")
        return self

    @property
    def place(self) -> tuple[float, str]:
        """The key by which lists are sorted. For every job that a service makes, it equals `place_of(id)`."""
        return self.created, self.id

    @property
    def finished(self) -> bool:
        return self.status in ("completed", "failed")

    def finish(self, now: float, keep_seconds: float, error: JobError | None = None) -> None:
        """Marks it as completed at `now`, or as failed if there is an error."""
        self.status, self.error = ("failed", error) if error else ("completed", None)
        self.progress = self.progress if error else 100
        self.completed, self.expires = now, now + keep_seconds

    def to_json(self, queue_position: int | None = None) -> dict:
        """OpenAI's video object and proav's own fields. queue_position: 0 is next; None: it does not wait."""
        order = self.order.model_dump(exclude={"vectors"} if self.order.texts else {"vectors", "texts"})
        return {
            "id": self.id,
            "object": "video",
            "status": self.status,
            "progress": self.progress,
            "created_at": int(self.created),
            "completed_at": None if self.completed is None else int(self.completed),
            "expires_at": None if self.expires is None else int(self.expires),
            "model": self.model,
            "prompt": order.pop("prompt"),
            "seconds": self.seconds,
            "size": self.size,
            "error": self.error.model_dump() if self.error else None,
            "remixed_from_video_id": None,
            **order,
            "seconds_taken": None if self.completed is None else round(self.completed - self.created, 3),
            "queue_position": queue_position,
        }


def new_id(created: float | None = None) -> str:
    """An id that begins with the time of creation, to the microsecond.

    So the next page of a list can begin after a job that was deleted. created: Unix seconds; None: now.
    """
    created = time.time() if created is None else created
    return f"video_{round(created * MICROSECONDS):014x}{secrets.token_hex(10)}"


def place_of(job_id: str) -> tuple[float, str] | None:
    """Where a job of this id stands in the order of creation.

    None if the id does not contain the time. The shorter ids of older servers do not.
    """
    match = re.fullmatch(r"video_([0-9a-f]{14})[0-9a-f]{20}", job_id)
    return (int(match[1], 16) / MICROSECONDS, job_id) if match else None


class JobStore:
    """The folders of all jobs."""

    def __init__(self, folder: str) -> None:
        """Creates the folder. Raises UserError if it cannot be created."""
        self.folder = storage.make_folder(folder)

    def load(self) -> list[Job]:
        """Every job on record, oldest first. Deletes the folders of jobs without a record.

        A record that cannot be read, or that belongs to another job, is reported in the log and left alone.
        Nobody else may create jobs meanwhile.
        """
        jobs = []
        paths = [path for path in storage.list_files(self.folder) if path.endswith(f"/{INDEX}")]
        self._delete_all_but({self._relative(path).split("/")[0] for path in paths})
        for path in paths:
            try:
                jobs.append(self._read(path))
            except (ValueError, OSError, RecursionError, StorageUnavailable) as error:
                said = " ".join(str(error).split())[:500]
                logger.warning("the job in %s cannot be read and is left alone: %s", path, said)
        return sorted(jobs, key=lambda job: job.place)

    def _delete_all_but(self, recorded: set[str]) -> None:
        """Deletes the folders of jobs that were cut off while they were written or deleted.

        recorded: names of the folders with a record.
        """
        filesystem, inner = storage.open_filesystem(self.folder)
        for found in filesystem.get_file_info(pafs.FileSelector(inner)):
            name = found.base_name
            if found.type != pafs.FileType.Directory or not ID.fullmatch(name) or name in recorded:
                continue
            try:
                self.delete(name)
            except (OSError, *TOLD) as error:
                logger.warning("%s has no %s, and cannot be deleted: %s", found.path, INDEX, error)

    def _read(self, path: str) -> Job:
        """The job of one job.json. Raises ValueError, OSError, RecursionError or StorageUnavailable."""
        if (size := storage.file_info(path).size) > MAX_INDEX_BYTES:
            raise ValueError(f"{size} bytes; expected at most {MAX_INDEX_BYTES}")
        job = Job.model_validate(json.loads(storage.read_bytes(path)))
        if not ID.fullmatch(job.id) or self._relative(path) != f"{job.id}/{INDEX}":
            # What is deleted later is the folder that the id names.
            raise ValueError(f"it says that it is the record of {job.id}")
        return job

    def create(self, job: Job, given: dict[str, np.ndarray] | None) -> None:
        """Writes a job. given: the streams that its task is given; None if it takes nothing.

        Raises ApiError 400, and writes nothing, if `load` would not read the record once the job is finished.
        If it cannot write all, nothing is left.
        """
        record, most = _record(job), MAX_INDEX_BYTES - GROWTH_BYTES
        if len(record) > most:
            texts, vectors = len(json.dumps(job.order.texts)), len(json.dumps(job.order.vectors))
            said = f"the job would take {len(record)} bytes in {INDEX}, of which {texts} are for texts and "
            said += f"{vectors} for vectors; expected at most {most} in all; "
            raise ApiError(400, f"{said}send shorter texts, or leave some vectors out", param="vectors")
        try:
            if given is not None:
                buffer = io.BytesIO()
                np.savez(buffer, **given)
                storage.write_bytes(self._path(job.id, GIVEN), buffer.getvalue())
            storage.write_text(self._path(job.id, INDEX), record)
        except BaseException:
            with contextlib.suppress(OSError, *TOLD):  # `load` deletes it later
                self.delete(job.id)
            raise

    def save(self, job: Job) -> None:
        storage.write_text(self._path(job.id, INDEX), _record(job))

    def save_video(self, job_id: str, mp4: bytes) -> None:
        storage.write_bytes(self._path(job_id, VIDEO), mp4)

    def read_video(self, job_id: str) -> bytes:
        """The finished mp4. Raises FileNotFoundError if there is none."""
        return storage.read_bytes(self._path(job_id, VIDEO))

    def read_given(self, job: Job) -> dict[str, np.ndarray] | None:
        """The streams that the client sent with the order; None if the task takes nothing.

        Raises FileNotFoundError if it is missing, ValueError if it is damaged. Raises OSError or
        StorageUnavailable if it cannot be read.
        """
        if not TASKS[job.order.task].reads:
            return None
        data = io.BytesIO(storage.read_bytes(self._path(job.id, GIVEN)))
        try:
            with zipfile.ZipFile(data) as files:  # np.load would take other files than archives too
                return {name.removesuffix(".npy"): _array(files.read(name)) for name in files.namelist()}
        except DAMAGED as error:
            raise ValueError(f"{GIVEN} is damaged ({type(error).__name__}: {error})") from error

    def delete(self, job_id: str) -> None:
        storage.delete_folder(storage.join(self.folder, job_id))

    def _relative(self, path: str) -> str:
        """A path of `storage.list_files`, relative to the folder of all jobs."""
        base = self.folder if storage.is_remote(self.folder) else storage.open_filesystem(self.folder)[1]
        return path.removeprefix(base.rstrip("/") + "/")

    def _path(self, job_id: str, name: str) -> str:
        return storage.join(self.folder, job_id, name)


def _record(job: Job) -> str:
    """The text of job.json, in ASCII."""
    return json.dumps(job.model_dump(mode="json"))


def _array(data: bytes) -> np.ndarray:
    return np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)


def check_writable(folder: str) -> None:
    """Raises UserError if jobs cannot be kept there. A server checks this before it says that it is up."""
    try:
        probe = storage.join(storage.make_folder(folder), f".probe-{secrets.token_hex(4)}")
        storage.write_text(probe, "")
    except UserError as error:
        raise UserError(f"jobs cannot be kept: {error}".replace("run_dir=DIR", "jobs_dir=DIR")) from error
    filesystem, inner = storage.open_filesystem(probe)
    try:
        filesystem.delete_file(inner)
    except OSError as error:
        why = " ".join(str(error).split())
        raise UserError(
            f"jobs cannot be kept: cannot delete {probe}: {why}; check that you may delete there, or choose "
            "another folder with jobs_dir=DIR"
        ) from error
