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
        "ENOTSUP",
    )
)  # fmt: skip
"""Errors of the operating system that a second try does not change."""
_PERMANENT_TYPES = (
    FileNotFoundError, PermissionError, FileExistsError, IsADirectoryError, NotADirectoryError,
)  # fmt: skip
_PERMANENT_WORDS = re.compile(
    r"access.?denied|permission.?denied|forbidden|unauthori[sz]ed|unauthenticated|invalid.?access.?key"
    r"|signature.?does.?not.?match|no.?such.?(bucket|key|upload)|HTTP status 4(?!08|09|29)\d\d",
    re.IGNORECASE,
)
"""Answers of object stores that a second try does not change; they have no error number."""
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
    No: no such file, no permission, no space, a name that is a folder, HTTP 4xx except 408, 409 and 429.
    """
    if isinstance(error, _PERMANENT_TYPES):
        return False
    if not isinstance(error, OSError):
        return isinstance(error, Exception) and type(error).__module__.partition(".")[0] in _CLIENT_LIBRARIES
    if error.errno is not None:
        return error.errno not in PERMANENT
    return not _PERMANENT_WORDS.search(str(error))


def patiently(
    action: Callable[[], T], what: str, on_wait: Callable[[float], None] = lambda seconds: None
) -> T:
    """action(), tried again while its error may pass, for up to `retry_seconds()`.

    Pauses are 0.1 s, doubled up to 10 s, times a random number in [0.5, 1].

    action: what to do; returns the result.
    what: for messages, such as "reading s3://bucket/key".
    on_wait: called with the seconds of each failed try and the pause after it.
    Raises what `action` raised if no second try can help, else StorageUnavailable.
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
            if not may_pass(error):
                raise
            tries += 1
            limit, passed = retry_seconds(), time.monotonic() - began
            why = " ".join(str(error).split()) or type(error).__name__
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
