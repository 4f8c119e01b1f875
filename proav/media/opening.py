"""Files and streams as opened containers, with retries if storage fails for a moment.

Reads of a local file are retried like those of an object store. Otherwise an error of a network disk would
look like the end of the file, and the rest of a recording would be missing. Decoding is in `demuxing.py`.
This module is private to `proav/media`.
"""

import contextlib
import errno
import io
import os
import stat
import time
from collections.abc import Callable, Iterator
from typing import BinaryIO

import av

from proav import storage
from proav.errors import MediaError, StorageUnavailable
from proav.storage.filesystems import PatientFile
from proav.storage.patience import patiently

FORMATS = (
    "mov,mp4,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,h264,hevc,ivf,flv,asf,ogg,mxf,nut,dv,rm,gif,"
    "wav,w64,aiff,mp3,aac,flac,ac3,eac3,amr,amrnb,amrwb"
)
"""Formats that are opened: files that hold media, never playlists that name other files or addresses."""
LOCAL_BUFFER_BYTES, REMOTE_BUFFER_BYTES = 1 << 15, 1 << 20
MAX_PIXELS = 8192 * 8192
"""Larger pictures are refused anywhere in a file, before a decoder takes memory for them."""


class Watch:
    """Watches the reading of a file: a time limit, a sign of life, and the error of storage in `failure`.

    Failed tries of storage and the pauses after them do not count towards the deadline. They have their own
    limit, job.retry_seconds. `file` is what `opened` has opened, for `read_head`.

    deadline_seconds: time limit, counted from the last `start`.
    on_progress: called each time the reader makes progress.
    """

    def __init__(
        self, deadline_seconds: float | None = None, on_progress: Callable[[], None] | None = None
    ) -> None:
        self._seconds, self._on_progress = deadline_seconds, on_progress
        self.failure: BaseException | None = None
        self.file: BinaryIO | None = None
        self.start("the file")

    def start(self, name: str) -> None:
        """Starts the clock anew. name: of the file, for messages."""
        self._name = name
        self._deadline = None if self._seconds is None else time.monotonic() + self._seconds

    def sign(self) -> None:
        """Says that work goes on. Raises MediaError("timeout"), or the error of storage."""
        self.check_storage()
        if self._deadline is not None and time.monotonic() > self._deadline:
            raise MediaError("timeout", f"{self._name} took longer than {self._seconds:g} s to decode")
        if self._on_progress is not None:
            self._on_progress()

    def check_storage(self) -> None:
        """If reading has failed, raises its error: StorageUnavailable, MediaError, or a request to stop.

        FFmpeg itself continues as if the file had ended.
        """
        if self.failure is not None:
            raise self.failure

    def add(self, seconds: float) -> None:
        """Moves the deadline by the seconds that failed tries of storage and their pauses took."""
        if self._deadline is not None:
            self._deadline += seconds

    @contextlib.contextmanager
    def off_the_clock(self) -> Iterator[None]:
        """Time spent inside does not count towards the deadline."""
        begun = time.monotonic()
        yield
        if self._deadline is not None:
            self._deadline += time.monotonic() - begun


@contextlib.contextmanager
def opened(
    source: str | BinaryIO, watch: Watch, *, formats: str = FORMATS
) -> Iterator[tuple[av.container.InputContainer, str]]:
    """Opens a media file; yields (container, name for messages).

    formats: names of FFmpeg's demuxers that may open it, with commas between them.
    Raises StorageUnavailable, and MediaError not_found, empty_file, unreadable or too_large. Raises a plain
    UserError if the scheme of its address is unknown.
    """
    with _byte_source(source, watch) as (file, name, buffer_bytes):
        options = {"format_whitelist": formats, "protocol_whitelist": "file", "max_pixels": str(MAX_PIXELS)}
        try:
            container = av.open(
                file, "r", options=options, metadata_errors="replace", buffer_size=buffer_bytes
            )
        except MemoryError as error:
            raise no_memory(name) from error
        except (av.FFmpegError, OSError) as error:
            watch.check_storage()
            raise MediaError(
                "unreadable", f"{name} cannot be opened as a media file ({words(error)})"
            ) from error
        with container:
            watch.check_storage()
            watch.file = file
            yield container, name


def can_be_read_again(source: str | BinaryIO) -> bool:
    """Whether a file can be opened a second time from its beginning."""
    return not hasattr(source, "read") or source.seekable()


def read_head(num_bytes: int, watch: Watch) -> bytes:
    """The first `num_bytes` of the open file, which can be read again. FFmpeg goes on where it was."""
    place = watch.file.tell()
    try:
        watch.file.seek(0)
        return watch.file.read(num_bytes)
    except OSError:
        watch.check_storage()
        raise
    finally:
        watch.file.seek(place)


def no_memory(name: str) -> MediaError:
    said = f"{name} needs more memory to decode than is available"
    return MediaError("too_large", f"{said}; give smaller pictures, or a simpler format")


def words(error: Exception) -> str:
    """What an error of FFmpeg or of the operating system says, without a path."""
    return getattr(error, "strerror", None) or str(error)


@contextlib.contextmanager
def _byte_source(source: str | BinaryIO, watch: Watch) -> Iterator[tuple[BinaryIO, str, int]]:
    """Yields (file, name for messages, size of its buffer in bytes)."""
    if hasattr(source, "read"):
        name = str(getattr(source, "name", "the given file"))
        position = source.tell() if source.seekable() else None
        if position is not None:
            size = source.seek(0, os.SEEK_END)
            source.seek(position)
            if size == position:
                said = (
                    "is empty" if not size else "has been read to its end; expected it where its media begin"
                )
                raise MediaError("empty_file", f"{name} {said}")
        try:
            given = source if position is None else _Given(source, position, name)
            yield given, name, REMOTE_BUFFER_BYTES
        finally:
            if position is not None:
                source.seek(position)
        return
    name = str(source)
    try:
        if not storage.is_remote(name):
            _check_kind(name, watch)
        file = storage.open_patiently(name, on_wait=watch.add)
    except FileNotFoundError as error:
        raise MediaError("not_found", f"there is no file {name}") from error
    except OSError as error:
        raise MediaError("unreadable", f"{name} cannot be read ({words(error)})") from error
    except ValueError as error:
        raise _only_whole(name, error) from error
    with contextlib.closing(file):
        if not file.size:
            raise MediaError("empty_file", f"{name} is empty")
        buffer_bytes = REMOTE_BUFFER_BYTES if storage.is_remote(name) else LOCAL_BUFFER_BYTES
        yield _Source(file, name, watch), name, buffer_bytes


def _only_whole(name: str, error: ValueError) -> MediaError:
    """For fsspec's ValueError if a server does not say how long a file is, or does not send parts of it."""
    said = f"{name} cannot be read ({words(error)})"
    if storage.is_remote(name):
        said += ": its server does not send parts of files; copy the file first, and give the copy's path"
    return MediaError("unreadable", said)


def _check_kind(name: str, watch: Watch) -> None:
    """Raises MediaError("unreadable") if a local name is not a file: reading a pipe would wait for ever."""
    path = name.removeprefix("file://")
    if not stat.S_ISREG(patiently(lambda: os.stat(path), f"looking at {name}", watch.add).st_mode):
        raise MediaError("unreadable", f"{name} is not a file")


class _Given(io.RawIOBase):
    """A given file for PyAV, which counts places from where its media begin: FFmpeg seeks to such places."""

    def __init__(self, file: BinaryIO, begin: int, name: str) -> None:
        super().__init__()
        self.name = name
        self._file, self._begin = file, begin

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._file.tell() - self._begin

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._file.seek(offset + self._begin if whence == io.SEEK_SET else offset, whence)
        return self.tell()

    def read(self, size: int = -1) -> bytes:
        return self._file.read(size)


class _Source(io.RawIOBase):
    """A file for PyAV. An error of reading goes to `watch.failure`; FFmpeg is told only that input failed.

    After the file was opened, an error of reading is neither the user's mistake nor damage to the file. A
    server that sends whole files only is a case of its own: it shows at the first read of a later part.
    """

    def __init__(self, file: PatientFile, name: str, watch: Watch) -> None:
        super().__init__()
        self.name = name  # FFmpeg uses its ending if the contents are ambiguous
        self._patient, self._watch, self._at = file, watch, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._patient.size}[whence] + offset
        return self._at

    def read(self, size: int = -1) -> bytes:
        if self._watch.failure is None:
            try:
                data = self._patient.read_at(self._at, self._patient.size if size < 0 else size)
                self._at += len(data)
                return data
            except OSError as error:
                said = f"reading {self.name} failed ({words(error)}) after it was opened"
                self._watch.failure = StorageUnavailable(f"{said}; run the same command again")
            except ValueError as error:
                self._watch.failure = _only_whole(self.name, error)
            except BaseException as error:  # PyAV would drop a request to stop
                self._watch.failure = error
        raise OSError(errno.EIO, "storage has failed")
