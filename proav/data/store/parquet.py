"""Parquet files of rows with bulky bytes: a writer of whole files, and a reader of single rows.

Bulky columns are large_binary with shape and dtype beside them. Reading nested lists would take longer than
decoding the video. One row is one row group, so that a row can be read without its neighbours and a writer
never holds more than one. `schema.py` defines the columns.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from proav import storage
from proav.errors import StorageUnavailable, UserError
from proav.storage.patience import patiently

T = TypeVar("T")

FAULTS = (OSError, ValueError, pa.ArrowException)
"""Errors that damaged bytes cause in Arrow and in picture decoders."""
WHY = {
    errno.ENOSPC: "no space left on the disk",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file would be larger than allowed",
    errno.ENOENT: "its unfinished file is gone; is another job at work in the same folder?",
}


REPAIR = "delete that file and run the same job again: it makes what is missing"


class DamagedShard(UserError):
    """A file of a data set that is missing, or whose content is not what was written."""


class ShardWriter:
    """Streams rows into one Parquet file. The file gets its name when it is complete, or never.

        with ShardWriter(path, schema) as writer:
            writer.write({"id": ..., ...})
        writer.result        # {"name", "rows", "bytes", "sha256"}

    The same rows give the same bytes. An error inside the block leaves nothing behind.

    path: local or remote.
    schema: the columns.
    rows_per_group: rows in a row group.
    compression: of all columns, or of each by name.

    Raises UserError if the file cannot be written, for example if the disk is full.
    """

    def __init__(
        self, path: str, schema: pa.Schema, *, rows_per_group: int = 1, compression: str | dict = "none"
    ) -> None:
        self.path, self.schema, self.rows_per_group = path, schema, rows_per_group
        self.result: dict | None = None
        self.num_rows = 0
        self._pending: list[dict] = []
        self._temporary: Path | None = None
        try:
            # A remote file is first written on this machine, to a file without a name. An object store would
            # publish a half-written file when it is closed.
            if storage.is_remote(path):
                file = tempfile.TemporaryFile(buffering=0)
            else:
                target = Path(storage.open_filesystem(path)[1])
                storage.make_folder(str(target.parent))
                self._temporary = storage.temporary_name(target)
                file = patiently(lambda: open(self._temporary, "wb", buffering=0), f"creating {path}")
            self._sink = _HashedFile(file)
            self._writer = pq.ParquetWriter(
                self._sink, schema, use_dictionary=False, write_statistics=False, compression=compression
            )
        except OSError as error:
            self._remove()
            raise _write_error(path, error) from error

    def write(self, row: dict) -> None:
        """Appends one row. It must have all columns of the schema and no others."""
        assert set(row) == set(self.schema.names), (
            f"columns {sorted(set(row) ^ set(self.schema.names))} are missing or unknown"
        )
        self._pending.append(row)
        if len(self._pending) == self.rows_per_group:
            self._flush()

    def close(self) -> dict:
        """Publishes the file and returns {"name", "rows", "bytes", "sha256"}."""
        try:
            self._flush()
            self._writer.close()
            self._publish()
        except OSError as error:
            self.abort()
            raise _write_error(self.path, error) from error
        self.result = {
            "name": self.path.rsplit("/", 1)[-1],
            "rows": self.num_rows,
            "bytes": self._sink.size,
            "sha256": self._sink.hash.hexdigest(),
        }
        return self.result

    def abort(self) -> None:
        """Removes what was written."""
        self._sink.discarding = True
        self._writer.close()  # otherwise it would write its footer when it is garbage-collected
        self._sink.close()
        self._remove()

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, kind, error, traceback) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def _flush(self) -> None:
        if not self._pending:
            return
        try:
            self._writer.write_table(
                pa.Table.from_pylist(self._pending, schema=self.schema), row_group_size=self.rows_per_group
            )
        except OSError as error:
            self.abort()
            raise _write_error(self.path, error) from error
        self.num_rows += len(self._pending)
        self._pending = []

    def _publish(self) -> None:
        if self._temporary is None:
            storage.upload_file(self.path, self._sink.file)
            self._sink.close()
            return
        self._sink.close()
        storage.flush(self._temporary)
        storage.rename(self._temporary, Path(storage.open_filesystem(self.path)[1]))

    def _remove(self) -> None:
        if self._temporary is not None:
            self._temporary.unlink(missing_ok=True)


def write_shard(
    path: str,
    rows: Iterable[dict],
    schema: pa.Schema,
    *,
    rows_per_group: int = 1,
    compression: str | dict = "none",
) -> dict:
    """Writes all rows as one file, whole or not at all.

    rows: dicts, one a row; the other parameters are those of ShardWriter.

    Returns {"name", "rows", "bytes", "sha256"}. Raises UserError if the file cannot be written.
    """
    with ShardWriter(path, schema, rows_per_group=rows_per_group, compression=compression) as writer:
        for row in rows:
            writer.write(row)
    return writer.result


@contextlib.contextmanager
def only_writer(folder: str) -> Iterator[None]:
    """Locks a local folder against a second job on this machine. Raises UserError if another job holds it.

    The lock ends with the process, even if the process is killed. On object stores and some network disks,
    which have no locks, nothing is locked.
    """
    if storage.is_remote(folder):
        yield
        return
    handle = os.open(storage.open_filesystem(folder)[1], os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(
                    f"another job is at work in {folder}; wait for its end, or choose another run_dir=DIR"
                ) from None
        yield
    finally:
        os.close(handle)


class RowReader:
    """Single rows out of many Parquet files in one folder, by (file name, row number).

    It is pickled as its arguments: each worker process opens its own files.

    folder: local or remote.
    cache_bytes: size of the cache of recently read values.
    open_files: how many files stay open.
    digests: {file name: SHA-256} of what was written, see `fault_of`.
    """

    def __init__(
        self,
        folder: str,
        *,
        cache_bytes: int = 256 << 20,
        open_files: int = 32,
        digests: Mapping[str, str] | None = None,
    ) -> None:
        self.folder, self.cache_bytes, self.open_files = folder, cache_bytes, open_files
        self.digests = digests or {}
        self._files: OrderedDict[str, tuple[pq.ParquetFile, np.ndarray]] = OrderedDict()
        self._groups: OrderedDict[tuple, pa.Table] = OrderedDict()
        self._cached = 0

    def __getstate__(self) -> dict:
        return {name: getattr(self, name) for name in ("folder", "cache_bytes", "open_files", "digests")}

    def __setstate__(self, state: dict) -> None:
        self.__init__(**state)

    def read(self, name: str, row: int, columns: Sequence[str]) -> dict:
        """The values of one row: bytes columns as zero-copy memoryviews, the others as Python values.

        Raises DamagedShard if the file is damaged, is missing or has no such row. Raises StorageUnavailable.
        """
        return self.checked(name, lambda: self._read(name, row, columns))

    def checked(self, name: str, read: Callable[[], T]) -> T:
        """The result of read(), which reads from the file `name`.

        If read() fails, the file is closed and read() is called again. If it fails again, raises DamagedShard
        if the file's bytes stay the same, else StorageUnavailable.
        """
        try:
            return read()
        except FAULTS:
            self._forget(name)
        try:
            return read()
        except FAULTS as error:
            raise fault_of(storage.join(self.folder, name), error, self.digests.get(name)) from error

    def _read(self, name: str, row: int, columns: Sequence[str]) -> dict:
        file, starts = self._open(name)
        if not 0 <= row < starts[-1]:
            raise DamagedShard(
                f"{storage.join(self.folder, name)} has {starts[-1]} rows, but row {row} is looked for; "
                f"{REPAIR}"
            )
        group = int(np.searchsorted(starts, row, side="right")) - 1
        table = self._read_group(file, name, group, tuple(columns))
        return {column: _value(table.column(column), row - int(starts[group])) for column in columns}

    def _open(self, name: str) -> tuple[pq.ParquetFile, np.ndarray]:
        if name in self._files:
            self._files.move_to_end(name)
            return self._files[name]
        file = _open_parquet(storage.join(self.folder, name))
        counts = [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
        self._files[name] = file, np.cumsum([0, *counts])
        if len(self._files) > self.open_files:
            self._files.popitem(last=False)[1][0].close()
        return self._files[name]

    def _read_group(self, file: pq.ParquetFile, name: str, group: int, columns: tuple[str, ...]) -> pa.Table:
        """These columns of row group `group` of `file`, named `name`; from the cache if it is there."""
        key = (name, group, columns)
        if key in self._groups:
            self._groups.move_to_end(key)
            return self._groups[key]
        table = file.read_row_group(group, columns=list(columns), use_threads=False)
        self._cached += table.nbytes
        self._groups[key] = table
        while self._cached > self.cache_bytes and len(self._groups) > 1:
            self._cached -= self._groups.popitem(last=False)[1].nbytes
        return table

    def _forget(self, name: str) -> None:
        """Closes a file and drops what was read of it."""
        if name in self._files:
            self._files.pop(name)[0].close()
        for key in [key for key in self._groups if key[0] == name]:
            self._cached -= self._groups.pop(key).nbytes


def open_parquet(path: str, sha256: str | None = None) -> pq.ParquetFile:
    """Opens a local or remote Parquet file.

    sha256: of what was written, see `fault_of`.

    Raises DamagedShard if the file is missing or is no Parquet file. Raises StorageUnavailable if its bytes
    differ each time.
    """
    try:
        return _open_parquet(path)
    except FAULTS:
        pass
    try:
        return _open_parquet(path)
    except FAULTS as error:
        raise fault_of(path, error, sha256) from error


def read_whole(path: str, *, without: Collection[str] = (), sha256: str | None = None) -> pa.Table:
    """All rows of a local or remote Parquet file, except for the columns `without`.

    sha256: of what was written, see `fault_of`.

    Raises what `open_parquet` raises, also if the content is damaged.
    """

    def read() -> pa.Table:
        file = _open_parquet(path)
        return file.read(columns=[name for name in file.schema_arrow.names if name not in without])

    try:
        return read()
    except FAULTS:
        pass
    try:
        return read()
    except FAULTS as error:
        raise fault_of(path, error, sha256) from error


def fault_of(path: str, error: Exception, sha256: str | None) -> Exception:
    """The exception to raise after a file could not be read twice.

    DamagedShard if the file's bytes stay the same, else StorageUnavailable.

    sha256: of what was written, if known; the message then says whether the file still holds that.
    """
    why = " ".join(str(error).split())
    first, second = (storage.file_sha256(path)[0] for _ in range(2))
    if first != second:
        return StorageUnavailable(
            f"{path} reads differently each time ({why}); check the disk or the network"
        )
    if first == sha256:
        return DamagedShard(
            f"{path} has not changed since it was written, but cannot be read: {why}; {REPAIR}"
        )
    return DamagedShard(f"{path} is damaged: {why}; {REPAIR}")


def _open_parquet(path: str) -> pq.ParquetFile:
    filesystem, inner = storage.open_filesystem(path)
    try:
        return pq.ParquetFile(filesystem.open_input_file(inner), pre_buffer=storage.is_remote(path))
    except FileNotFoundError as error:
        raise DamagedShard(f"{path} is missing; run the same job again: it makes what is missing") from error


def _value(column: pa.ChunkedArray, row: int):
    """One value; bytes are a view of Arrow's memory. A scalar would copy them (2.5 ms for raw pictures)."""
    if not (pa.types.is_large_binary(column.type) or pa.types.is_binary(column.type)):
        return column[row].as_py()
    chunk = column.slice(row, 1).chunk(0)
    if chunk.null_count:
        return None
    _, offsets, data = chunk.buffers()
    bounds = np.frombuffer(offsets, np.int64 if pa.types.is_large_binary(column.type) else np.int32)[
        chunk.offset : chunk.offset + 2
    ]
    return memoryview(data)[slice(*bounds.tolist())] if data is not None else memoryview(b"")


class _HashedFile:
    """A file for writing that hashes and counts its bytes; it has what pyarrow's Parquet writer needs."""

    def __init__(self, file: BinaryIO) -> None:
        """file: unbuffered, so that a write that does not fit on the disk fails at once."""
        self.file, self.hash, self.size = file, hashlib.sha256(), 0
        self.discarding = False

    def write(self, data) -> int:
        if self.discarding:
            return len(data)
        view, number = memoryview(data).cast("B"), self.file.fileno()
        # a write may take only some of the bytes; pwrite takes a position, so a failed try can be repeated
        while view:
            written = patiently(lambda: os.pwrite(number, view, self.size), "writing a shard")
            self.hash.update(view[:written])
            self.size, view = self.size + written, view[written:]
        return len(data)

    def flush(self) -> None:
        self.file.flush()

    def tell(self) -> int:
        return self.size

    def writable(self) -> bool:
        return True

    @property
    def closed(self) -> bool:
        return self.file.closed

    def close(self) -> None:
        self.file.close()


def _write_error(path: str, error: OSError) -> UserError:
    why = WHY.get(error.errno) or error.strerror or str(error)
    why += (
        f" (in {tempfile.gettempdir()}, where it is written first, or in the remote storage)"
        if storage.is_remote(path)
        else ""
    )
    return UserError(
        f"cannot write {path}: {why}; what was finished is kept: make room or choose another run_dir=DIR, "
        "then run the same command again"
    )
