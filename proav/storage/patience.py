"""Retries storage operations whose errors may pass; errors that will not pass are raised at once.

A network disk times out, or an object store answers 503. Neither is a user's mistake, and neither is damage.
Damage is a wrong checksum after a second reading (`proav/data/store/parquet.py`, `proav/runs/checkpoint.py`).
"""

import errno
import os
import random
import re
import sys
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from proav.errors import StorageUnavailable

T = TypeVar("T")

VARIABLE = "PROAV_RETRY_SECONDS"
"""The environment variable that carries job.retry_seconds to every process of a job."""
DEFAULT_SECONDS = 120.0
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 10.0

PERMANENT = frozenset(
    getattr(errno, name)
    for name in (
        "ENOENT", "EACCES", "EPERM", "ENOSPC", "EDQUOT", "EROFS", "EFBIG", "EISDIR", "ENOTDIR",
        "ENAMETOOLONG", "EEXIST", "ENOTEMPTY", "EINVAL", "ELOOP", "EXDEV", "EBADF", "ENODEV",
        "ENXIO", "EMFILE", "ENFILE",
        "ENOTSUP", "ENOSYS", "EILSEQ", "EMLINK",
    )
)  # fmt: skip
"""Errors of the operating system that a second try does not change."""
_PERMANENT_TYPES = (
    FileNotFoundError, PermissionError, FileExistsError, IsADirectoryError, NotADirectoryError,
)  # fmt: skip
_PERMANENT_WORDS = re.compile(
    r"access.?denied|permission.?denied|forbidden|unauthori[sz]ed|unauthenticated|invalid.?access.?key"
    r"|signature.?does.?not.?match|no.?such.?(bucket|key|upload)|HTTP status (3\d\d|4(?!08|09|29)\d\d)"
    r"|unable.to.locate.credentials|credentials.were.not.found",
    re.IGNORECASE,
)
"""Answers of object stores that a second try does not change; they have no error number."""
_NAMES = re.compile(
    r"key '.*' in bucket '[^']*'|(?<!\w)(['\"]).*?\1(?!\w)|(url: |://)\S+", re.IGNORECASE | re.DOTALL
)
"""Names in a message: they say nothing about the error. The first form is Arrow's; a key may hold quotes."""
_CLIENT_LIBRARIES = ("aiohttp", "aiobotocore", "botocore", "gcsfs", "requests", "urllib3", "google", "azure")
"""Libraries below fsspec's file systems; not all of their errors are OSErrors."""
_random = random.Random()
_operations: dict[int, float] = {}
"""{thread: time at which it entered `patiently`}, for the threads that are in it now."""


def retry_seconds() -> float:
    """Seconds for which an operation is tried again: job.retry_seconds of the job, or 120."""
    return float(os.environ.get(VARIABLE) or DEFAULT_SECONDS)


def may_pass(error: BaseException) -> bool:
    """Whether a second try may succeed.

    Yes: time-outs, broken connections, 5xx, EIO, ESTALE and errors without a known name.
    No: no such file, no permission, no space, a name that is a folder, HTTP 3xx, HTTP 4xx except
    408, 409 and 429.
    """
    if isinstance(error, _PERMANENT_TYPES) or not (isinstance(error, OSError) or _of_a_client(error)):
        return False
    if getattr(error, "errno", None) is not None:
        return error.errno not in PERMANENT
    status = _http_status(error)
    if status is not None:
        return not 300 <= status < 500 or status in (408, 409, 429)
    return not _PERMANENT_WORDS.search(_NAMES.sub("", str(error)))


def _of_a_client(error: BaseException) -> bool:
    """Whether it is an error of a client library that is no OSError."""
    library = type(error).__module__.partition(".")[0]
    return isinstance(error, Exception) and not isinstance(error, OSError) and library in _CLIENT_LIBRARIES


def _http_status(error: BaseException) -> int | None:
    """The HTTP status in an error of a client library, if it has one."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore's
        return response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    for holder in (error, response):
        for name in ("status", "status_code", "code"):
            if isinstance(value := getattr(holder, name, None), int):
                return value
    return None


def patiently(
    action: Callable[[], T], what: str, on_wait: Callable[[float], None] = lambda seconds: None
) -> T:
    """action(), tried again while its error may pass, for up to `retry_seconds()`.

    Pauses are 0.1 s, doubled up to 10 s, times a random number in [0.5, 1].

    action: what to do; returns the result.
    what: for messages, such as "reading s3://bucket/key".
    on_wait: called with the seconds of each failed try and the pause after it.
    Raises what `action` raised if no second try can help, else StorageUnavailable. What a client library
    raised becomes a PermissionError, because callers expect an OSError.
    """
    thread, outer = threading.get_ident(), _operations.get(threading.get_ident())
    _operations[thread] = outer or time.monotonic()
    try:
        return _try(action, what, on_wait)
    finally:
        if outer is None:
            del _operations[thread]


def waiting_seconds() -> float:
    """Seconds that this process has spent in its current storage operation, with retries; 0 if in none.

    If several threads are in one, the longest counts. A network disk may be silent for minutes.
    """
    return max((time.monotonic() - began for began in list(_operations.values())), default=0.0)


def _try(action: Callable[[], T], what: str, on_wait: Callable[[float], None]) -> T:
    began = tried = time.monotonic()
    pause, tries = FIRST_PAUSE, 0
    while True:
        try:
            result = action()
        except Exception as error:
            why = " ".join(str(error).split()) or type(error).__name__
            if not may_pass(error):
                if _of_a_client(error):
                    raise PermissionError(errno.EACCES, f"{what} was refused: {why}") from error
                raise
            tries += 1
            limit, passed = retry_seconds(), time.monotonic() - began
            if passed + pause > limit:
                raise StorageUnavailable(
                    f"{what} failed {tries} times in {passed:.0f} s, last with: {why}. Such faults usually "
                    f"pass; run the same command again, or allow more time than job.retry_seconds={limit:g}"
                ) from error
            if tries == 1:
                _say(f"storage: {what} failed ({why}); trying again for up to {limit:g} s")
            time.sleep(pause * _random.uniform(0.5, 1))
            now = time.monotonic()
            on_wait(now - tried)
            pause, tried = min(2 * pause, LONGEST_PAUSE), now
        else:
            if tries:
                _say(f"storage: {what} succeeded after {tries} failures, {time.monotonic() - began:.1f} s")
            return result


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")  # not print: a training worker's lines would be shown twice
