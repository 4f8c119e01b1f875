"""Files, local or remote, behind one set of functions: each path in proav is a local path or a URI.

pyarrow's own file systems open local paths, s3://, gs:// and hdfs://; fsspec opens the rest. A file that is
being written never has its final name, so that a reader sees a whole file or none.
"""

import contextlib
import functools
import hashlib
import io
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote

import pyarrow.fs as pafs

from proav.errors import UserError
from proav.storage.filesystems import FsspecHandler, LocalFile, PatientFile, PatientHandler, upload
from proav.storage.patience import patiently

LEFTOVERS = ".*.tmp"
"""Pattern of hidden names; a process that is killed while it writes leaves such files."""
ASIDE = re.compile(r"\.(.+)\.[0-9a-f]{8}\.aside\.tmp")
"""Hidden name of an older folder while a new one takes its place."""
ARROW_SCHEMES = ("s3", "gs", "gcs", "hdfs", "viewfs")
"""Schemes that pyarrow opens; if it refuses an address of theirs, fsspec is not asked."""
OPTIONS = re.compile(r"\?[a-z_]{3,}=[^?]*$")
"""Options at the end of an address, such as ?region=eu-west-1. `watch?v=1.mp4` is a name without options."""


def is_remote(path: str) -> bool:
    """True for URIs such as s3://bucket/key; false for local paths, also those with file://."""
    return "://" in str(path) and not str(path).startswith("file://")


def open_filesystem(path: str) -> tuple[pafs.FileSystem, str]:
    """The file system that holds `path`, and the path within it. Its operations are retried (`patience.py`).

    Raises UserError for a scheme that neither pyarrow nor fsspec knows.
    """
    filesystem, inner = _open(str(path))
    return pafs.PyFileSystem(PatientHandler(filesystem)), inner


def _open(path: str, on_wait: Callable[[float], None] = lambda seconds: None) -> tuple[pafs.FileSystem, str]:
    if not is_remote(path):
        return pafs.LocalFileSystem(), os.path.abspath(path.removeprefix("file://"))
    expected = "expected a local path, s3://, gs:// or a scheme that fsspec knows"
    try:
        return patiently(
            functools.partial(pafs.FileSystem.from_uri, as_uri(path)), f"opening {path}", on_wait
        )
    except (ValueError, OSError, NotImplementedError) as error:
        refused = error
    if path.split("://")[0] in ARROW_SCHEMES:
        raise UserError(f"cannot open {path}: {refused}; {expected}") from refused
    import fsspec  # pyarrow does not know this scheme, or was built without it

    try:
        filesystem, inner = fsspec.core.url_to_fs(path)
    except (ValueError, ImportError) as error:
        raise UserError(f"cannot open {path}: {error} (pyarrow: {refused}); {expected}") from error
    return pafs.PyFileSystem(FsspecHandler(filesystem)), inner


def as_uri(path: str) -> str:
    """A remote path as pyarrow reads it, with its key percent-encoded: a name may hold spaces, #, % or ?.

    The scheme, the bucket or host and OPTIONS stay as they are.
    """
    scheme, rest = path.split("://", 1)
    bucket, slash, key = rest.partition("/")
    options = OPTIONS.search(key)
    end = options.start() if options else len(key)
    return f"{scheme}://{bucket}{slash}{quote(key[:end])}{key[end:]}"


def join(root: str, *parts: str) -> str:
    """`root/part/part` for folders and URIs alike."""
    return "/".join([str(root).rstrip("/"), *(str(part).strip("/") for part in parts)])


def file_info(path: str) -> pafs.FileInfo:
    """Type, size in bytes and modification time of `path`; the type is NotFound if there is nothing."""
    filesystem, inner = open_filesystem(path)
    return filesystem.get_file_info(inner)


def exists(path: str) -> bool:
    return file_info(path).type != pafs.FileType.NotFound


def is_folder(path: str) -> bool:
    return file_info(path).type == pafs.FileType.Directory


def make_folder(path: str) -> str:
    """Creates the folder and its parents; returns `path`.

    Raises UserError if a file is in the way, or writing is refused.
    """
    filesystem, inner = open_filesystem(path)
    try:
        filesystem.create_dir(inner, recursive=True)
    except OSError as error:
        raise UserError(
            f"cannot create the folder {path}: {error}; choose another with run_dir=DIR"
        ) from error
    return path


def list_files(path: str, *, recursive: bool = True) -> list[str]:
    """Every file below the folder `path`, sorted by name; empty if there is no such folder.

    Hidden and temporary names are left out.
    """
    filesystem, inner = open_filesystem(path)
    selector = pafs.FileSelector(inner, recursive=recursive, allow_not_found=True)
    files = (info.path for info in filesystem.get_file_info(selector) if info.type == pafs.FileType.File)
    relative_start = len(inner.rstrip("/")) + 1
    shown = [
        file for file in files if not any(part.startswith(".") for part in file[relative_start:].split("/"))
    ]
    # A URI may hold what the inner path does not, such as the host of hdfs://host/folder: it is kept.
    return sorted(join(path, file[relative_start:]) if is_remote(path) else file for file in shown)


def read_bytes(path: str) -> bytes:
    """The whole file. Raises FileNotFoundError."""
    filesystem, inner = open_filesystem(path)
    with filesystem.open_input_stream(inner) as stream:
        return stream.read()


def open_patiently(path: str, on_wait: Callable[[float], None]) -> PatientFile:
    """A file that can be read at any place; operations that fail for a moment are tried again.

    on_wait: as in `patiently`.
    Raises OSError, and StorageUnavailable if storage fails for longer than job.retry_seconds.
    """
    if not is_remote(path):
        local = os.path.abspath(str(path).removeprefix("file://"))
        return PatientFile(functools.partial(LocalFile, local), str(path), on_wait)
    filesystem, inner = _open(path, on_wait)
    return PatientFile(functools.partial(filesystem.open_input_file, inner), path, on_wait)


def file_sha256(path: str) -> tuple[str, int]:
    """(SHA-256 in hexadecimal, bytes) of a local or remote file, read in pieces."""
    filesystem, inner = open_filesystem(path)
    digest, size = hashlib.sha256(), 0
    with filesystem.open_input_stream(inner) as stream:
        while piece := stream.read(1 << 22):
            digest.update(piece)
            size += len(piece)
    return digest.hexdigest(), size


def read_text(path: str) -> str:
    return read_bytes(path).decode("utf-8")


def read_lines(path: str) -> Iterator[str]:
    """The lines of a text, one at a time, without their ends. Raises FileNotFoundError."""
    filesystem, inner = open_filesystem(path)
    with (
        filesystem.open_input_stream(inner) as stream,
        io.TextIOWrapper(stream, encoding="utf-8", newline="\n") as lines,
    ):
        for line in lines:
            yield line.rstrip("\n")


@contextlib.contextmanager
def write_folder(path: str) -> Iterator[str]:
    """A local folder to fill; it becomes `path` if the block ends without an error.

    An older folder at `path` is replaced.
    If `path` is local, the folder is a hidden sibling, which is flushed to the disk and renamed. An older
    folder is moved aside before that and deleted afterwards. If the process is killed in between,
    `remove_leftovers` moves the older folder back.
    If `path` is remote, the folder is a temporary local one and is uploaded file by file. The JSON files come
    last, since they mark a folder as complete. Then other files of an older folder are deleted.
    """
    import tempfile

    if is_remote(path):
        with tempfile.TemporaryDirectory(prefix="proav-") as local:
            yield local
            files = sorted(
                (file for file in Path(local).rglob("*") if file.is_file()),
                key=lambda file: (file.suffix == ".json", str(file)),
            )
            targets = [join(path, file.relative_to(local).as_posix()) for file in files]
            for file, target in zip(files, targets, strict=True):
                with file.open("rb") as source:
                    upload_file(target, source)
        for stale in set(list_files(path)) - set(targets):
            delete_file(stale)
        return
    target = Path(path.removeprefix("file://"))
    temporary = temporary_name(target)
    patiently(lambda: temporary.mkdir(parents=True, exist_ok=True), f"creating {temporary}")
    try:
        yield str(temporary)
        for file in temporary.rglob("*"):
            flush(file)
        flush(temporary)
        aside = temporary_name(target, "aside.tmp") if target.exists() else None
        if aside is not None:
            rename(target, aside)
        try:
            rename(temporary, target)
        except BaseException:
            if aside is not None:
                rename(aside, target)
            raise
        if aside is not None:
            shutil.rmtree(aside, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_bytes(path: str, data: bytes) -> None:
    """Writes the whole file or nothing: under a hidden name, flushed to the disk, then renamed.

    Object stores publish a file only when it is closed. Raises UserError if writing is refused or there is no
    room.
    """
    write_file(path, io.BytesIO(data))


def write_file(path: str, source: BinaryIO) -> None:
    """Like `write_bytes`, for all of an open binary file."""
    if is_remote(path):
        upload_file(path, source)
        return
    target = Path(open_filesystem(path)[1])
    temporary = temporary_name(target)

    def write() -> None:
        source.seek(0)
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            shutil.copyfileobj(source, file)
            file.flush()
            os.fsync(file.fileno())

    try:
        patiently(write, f"writing {path}")
        rename(temporary, target)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; "
            "free some space or choose another folder with run_dir=DIR"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def upload_file(path: str, source) -> None:
    """Writes all of an open binary file to a remote path. Raises UserError if writing is refused."""
    filesystem, inner = _open(path)
    try:
        upload(filesystem, inner, source)
    except OSError as error:
        why = " ".join(str(error).split())
        raise UserError(
            f"cannot write {path}: {why}; check that you may write there, or choose another run_dir=DIR"
        ) from error


def temporary_name(target: Path, ending: str = "tmp") -> Path:
    """A hidden name beside `target` for a file that is not complete yet; no other writer uses it."""
    return target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.{ending}")


def rename(temporary: Path, target: Path) -> None:
    """Gives a complete local file or folder its final name. After a power cut, the old or the new one is
    there.
    """

    failed = False

    def move() -> None:
        nonlocal failed
        try:
            os.replace(temporary, target)
        except FileNotFoundError:
            if not (failed and target.exists()):  # else an earlier try succeeded, and its answer was lost
                raise
        except OSError:
            failed = True
            raise

    patiently(move, f"renaming {temporary} to {target.name}")
    flush(target.parent)


def flush(path: Path) -> None:
    """Flushes a local file's content, or a local folder's names, to the disk."""

    def sync() -> None:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    patiently(sync, f"flushing {path}")


def remove_leftovers(folder: str) -> int:
    """Deletes what killed writers left in a local folder; returns how many.

    An older folder that was moved aside comes back if no new one has taken its place.
    No writer may be at work there. Object stores have no leftovers: they publish whole files only.
    """
    if is_remote(folder):
        return 0
    place = Path(open_filesystem(folder)[1])
    for hidden in list(place.glob(LEFTOVERS)):
        aside = ASIDE.fullmatch(hidden.name)
        if aside and not (place / aside[1]).exists():
            rename(hidden, place / aside[1])
    found = list(place.glob(LEFTOVERS))
    for leftover in found:
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)
    return len(found)


def write_text(path: str, text: str) -> None:
    write_bytes(path, text.encode("utf-8"))


def delete_file(path: str) -> None:
    """Removes a file; nothing happens if there is none."""
    filesystem, inner = open_filesystem(path)
    if filesystem.get_file_info(inner).type == pafs.FileType.File:
        filesystem.delete_file(inner)


def delete_folder(path: str) -> None:
    """Removes the folder with all it holds; nothing happens if there is none."""
    filesystem, inner = open_filesystem(path)
    if filesystem.get_file_info(inner).type == pafs.FileType.Directory:
        filesystem.delete_dir(inner)


@contextlib.contextmanager
def local_copy(path: str) -> Iterator[str]:
    """A local folder with the files of `path`: the folder itself if local, else a temporary download."""
    import tempfile

    if not is_remote(path):
        yield open_filesystem(path)[1]
        return
    with tempfile.TemporaryDirectory(prefix="proav-") as local:
        inner = open_filesystem(path)[1]
        for file in list_files(path):
            relative = open_filesystem(file)[1][len(inner.rstrip("/")) + 1 :]
            target = Path(local) / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(read_bytes(file))
        yield local
