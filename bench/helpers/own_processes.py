"""Ends all processes that a benchmark has started, including those that outlive their parents. Linux only."""

import contextlib
import ctypes
import signal
import sys
import time
from collections.abc import Iterator

import psutil

PR_SET_CHILD_SUBREAPER = 36
"""prctl(2): orphaned descendants become children of this process, not of the system's first process."""


@contextlib.contextmanager
def own_processes() -> Iterator[None]:
    """Ends every descendant of this process when the block is left, for any reason, SIGTERM included."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER) failed")
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        yield
    finally:
        end(lambda: psutil.Process().children(recursive=True))
        signal.signal(signal.SIGTERM, before)


def end(find, *, seconds: float = 20.0) -> None:
    """Kills the processes that `find` returns, until it returns none or the time is over.

    `find` is called again because a process may have started another one meanwhile.
    """
    deadline = time.monotonic() + seconds
    while (processes := find()) and time.monotonic() < deadline:
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(processes, timeout=2)
