"""A pyarrow file system that wraps another and retries each operation (`proav/storage/patience.py`).

Ray and pyarrow are given it as well, so that their own reads and writes are retried like ours.
"""

import contextlib
import errno
import functools
import io
import os
import shutil
import tempfile
import threading
from collections.abc import Callable
from typing import BinaryIO

import pyarrow as pa
import pyarrow.fs as pafs

from proav.storage.patience import patiently

IN_MEMORY_BYTES = 16 << 20
"""Data for an object store is kept in memory up to this size, and in a temporary file if it is larger."""
PIECE_BYTES = 4 << 20


class PatientHandler(pafs.FileSystemHandler):
    """`inner`, with each operation tried again after an error that may be temporary.

    A read continues at the byte at which it failed. Written data is kept until the stream is closed, then
    uploaded as a whole, so that a failed upload can begin anew.
    """

    def __init__(self, inner: pafs.FileSystem) -> None:
        self.inner = inner

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PatientHandler) and self.inner == other.inner

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __reduce__(self):
        return PatientHandler, (self.inner,)

    def get_type_name(self) -> str:
        return self.inner.type_name

    def normalize_path(self, path: str) -> str:
        return self.inner.normalize_path(path)

    def get_file_info(self, paths: list[str]) -> list[pafs.FileInfo]:
        return patiently(lambda: self.inner.get_file_info(paths), f"looking at {', '.join(paths)}")

    def get_file_info_selector(self, selector: pafs.FileSelector) -> list[pafs.FileInfo]:
        return patiently(lambda: self.inner.get_file_info(selector), f"listing {selector.base_dir}")

    def create_dir(self, path: str, recursive: bool) -> None:
        patiently(lambda: self.inner.create_dir(path, recursive=recursive), f"creating {path}")

    def delete_dir(self, path: str) -> None:
        patiently(_Deletion(lambda: self.inner.delete_dir(path)), f"deleting {path}")

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:
        patiently(
            lambda: self.inner.delete_dir_contents(path, missing_dir_ok=missing_dir_ok), f"emptying {path}"
        )

    def delete_root_dir_contents(self) -> None:
        raise PermissionError("proav never empties a whole file system")

    def delete_file(self, path: str) -> None:
        patiently(_Deletion(lambda: self.inner.delete_file(path)), f"deleting {path}")

    def move(self, source: str, target: str) -> None:
        patiently(lambda: self.inner.move(source, target), f"moving {source} to {target}")

    def copy_file(self, source: str, target: str) -> None:
        patiently(lambda: self.inner.copy_file(source, target), f"copying {source} to {target}")

    def _reader(self, path: str) -> "_ArrowReader":
        return _ArrowReader(PatientFile(functools.partial(self.inner.open_input_file, path), path))

    def open_input_stream(self, path: str) -> pa.NativeFile:
        return pa.PythonFile(self._reader(path), mode="r")

    def open_input_file(self, path: str) -> pa.NativeFile:
        return pa.PythonFile(self._reader(path), mode="r")

    def open_output_stream(self, path: str, metadata: dict | None) -> pa.NativeFile:
        return pa.PythonFile(_PatientWriter(self.inner, path, metadata), mode="w")

    def open_append_stream(self, path: str, metadata: dict | None) -> pa.NativeFile:
        return self.inner.open_append_stream(path, metadata=metadata)  # no retry: it might write twice


class FsspecHandler(pafs.FSSpecHandler):
    """fsspec's file systems, without hidden errors.

    fsspec's own `find` leaves out folders that it cannot read. pyarrow calls its `exists`, `isfile` and
    `isdir` before each operation; they treat any error as False. So one time-out would hide a run's
    checkpoints, and the run would begin anew.
    """

    def open_input_stream(self, path: str) -> pa.NativeFile:
        return pa.PythonFile(self.fs.open(path, mode="rb"), mode="r")

    def open_input_file(self, path: str) -> pa.NativeFile:
        return pa.PythonFile(self.fs.open(path, mode="rb"), mode="r")

    def delete_file(self, path: str) -> None:
        self.fs.info(path)  # raises FileNotFoundError
        self.fs.rm(path)

    def get_file_info_selector(self, selector: pafs.FileSelector) -> list[pafs.FileInfo]:
        base = selector.base_dir.rstrip("/") or selector.base_dir
        self.fs.invalidate_cache(base)
        try:
            kind = self.fs.info(base)["type"]
        except FileNotFoundError:
            if selector.allow_not_found:
                return []
            raise
        if kind != "directory":
            raise NotADirectoryError(errno.ENOTDIR, "not a folder", base)
        found, folders = [], [base]
        while folders:
            folder = folders.pop()
            for entry in patiently(functools.partial(self.fs.ls, folder, detail=True), f"listing {folder}"):
                if entry["name"].rstrip("/") == folder:  # object stores may list a folder's own marker
                    continue
                info = self._create_file_info(entry["name"], entry)
                found.append(info)
                if selector.recursive and info.type == pafs.FileType.Directory:
                    folders.append(entry["name"].rstrip("/"))
        return found


def upload(filesystem: pafs.FileSystem, path: str, source: BinaryIO, metadata: dict | None = None) -> None:
    """Writes all of `source` to `path`; each try begins at the start of `source`.

    filesystem, path: where to write.
    source: an open binary file.
    metadata: as pyarrow's `open_output_stream` takes it.
    """

    def write() -> None:
        source.seek(0)
        with filesystem.open_output_stream(path, metadata=metadata) as target:
            shutil.copyfileobj(source, target, PIECE_BYTES)

    patiently(write, f"writing {path}")


class _Deletion:
    """A deletion. If nothing is there at a second try, the first one succeeded, but its answer was lost."""

    def __init__(self, delete) -> None:
        self.delete, self.tried = delete, False

    def __call__(self) -> None:
        try:
            self.delete()
        except FileNotFoundError:
            if not self.tried:
                raise
        finally:
            self.tried = True


class LocalFile:
    """A local file with the reading methods of pyarrow's files; its name may have any bytes."""

    def __init__(self, path: str) -> None:
        self._file = open(path, "rb", buffering=0)

    def size(self) -> int:
        return os.fstat(self._file.fileno()).st_size

    def read_at(self, num_bytes: int, offset: int) -> bytes:
        return os.pread(self._file.fileno(), num_bytes, offset)

    def close(self) -> None:
        self._file.close()


class PatientFile:
    """Reads any part of one file, from any thread; the file is opened anew if a read fails.

    opener: makes a file with `size()`, `read_at(num_bytes, offset)` and `close()`.
    name: for messages.
    on_wait: as in `patiently`.
    Raises what `opener` raises, and StorageUnavailable.
    """

    def __init__(
        self,
        opener: Callable[[], pa.NativeFile | LocalFile],
        name: str,
        on_wait: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        self._opener, self._name, self._on_wait = opener, name, on_wait
        self._file: pa.NativeFile | LocalFile | None = None
        self._closed = False
        self.size = self._patiently(self._ask_size, "opening")

    def read_at(self, offset: int, num_bytes: int) -> bytes:
        """`num_bytes` bytes from `offset` on; fewer only at the end of the file."""
        parts, end = [], min(offset + num_bytes, self.size)
        while offset < end:
            data = self._patiently(functools.partial(self._read, offset, end - offset), "reading")
            if not data:  # the file has become shorter
                break
            parts.append(data)
            offset += len(data)
        return b"".join(parts)

    def close(self) -> None:
        self._closed = True
        self._forget()

    def _patiently(self, action: Callable, what: str):
        return patiently(functools.partial(self._attempt, action), f"{what} {self._name}", self._on_wait)

    def _attempt(self, action: Callable):
        if self._closed:
            raise ValueError(f"{self._name} is closed")
        try:
            if self._file is None:
                self._file = self._opener()
            return action()
        except Exception:
            self._forget()  # the handle may be broken: the next try opens another
            raise

    def _ask_size(self) -> int:
        return self._file.size()

    def _read(self, offset: int, num_bytes: int) -> bytes:
        data = self._file.read_at(num_bytes, offset)
        if not data:
            self._forget()
            self._file = self._opener()
            self.size = self._ask_size()
            if offset < self.size:
                raise OSError(errno.EIO, "no bytes before the end of the file", self._name)
        return data

    def _forget(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(Exception):  # its error was raised before, or does not matter
                file.close()


class _ArrowReader(io.RawIOBase):
    """One file for Arrow, with a separate position for each thread.

    Arrow reads from several threads, each time with a seek and a read.
    """

    def __init__(self, file: PatientFile) -> None:
        super().__init__()
        self._patient, self._places = file, threading.local()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return getattr(self._places, "at", 0)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self.tell(), io.SEEK_END: self._patient.size}[whence]
        self._places.at = base + offset
        return self._places.at

    def read(self, size: int = -1) -> bytes:
        start = self.tell()
        whole = size is None or size < 0
        data = self._patient.read_at(start, max(0, self._patient.size - start) if whole else size)
        self._places.at = start + len(data)
        return data

    def readall(self) -> bytes:
        return self.read()

    def close(self) -> None:
        self._patient.close()
        super().close()


class _PatientWriter(io.RawIOBase):
    """Keeps the written data and uploads it when the stream is closed."""

    def __init__(self, filesystem: pafs.FileSystem, path: str, metadata: dict | None) -> None:
        super().__init__()
        self._filesystem, self._path, self._metadata = filesystem, path, metadata
        self._kept = tempfile.SpooledTemporaryFile(max_size=IN_MEMORY_BYTES)

    def writable(self) -> bool:
        return True

    def write(self, data) -> int:
        return self._kept.write(data)

    def tell(self) -> int:
        return self._kept.tell()

    def close(self) -> None:
        if self.closed:
            return
        try:
            upload(self._filesystem, self._path, self._kept, self._metadata)
        finally:
            self._kept.close()
            super().close()
