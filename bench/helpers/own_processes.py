"""What the cluster benchmarks share: they start many processes, some of which outlive their parents, and must leave none. Linux only."""

import contextlib
import ctypes
import signal
import sys
import time
from collections.abc import Iterator

import psutil

PR_SET_CHILD_SUBREAPER = 36
"""prctl(2): orphans among the descendants become children of this process instead of the system's first one."""


@contextlib.contextmanager
def own_processes() -> Iterator[None]:
    """Ends every descendant of this process on the way out, whatever happens; SIGTERM is a way out like any other."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER) failed")
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        yield
    finally:
        end(lambda: psutil.Process().children(recursive=True))
        signal.signal(signal.SIGTERM, before)


def end(find, *, seconds: float = 20.0) -> None:
    """Kills the processes that `find` returns until it returns none: a process may have started another meanwhile."""
    deadline = time.monotonic() + seconds
    while (processes := find()) and time.monotonic() < deadline:
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(processes, timeout=2)
