"""Kills a frozen process, so that Ray Serve starts another.

Ray Serve asks a process for its health, waits for three time-outs, and then asks it to end. All that time a
frozen process holds its processors or its GPU. Here a separate small process, the watcher, waits for signs of
life. If none comes, it sends SIGKILL, which Ray notices at once. If the machine is busy, a process may only
be slow. On Linux the watcher can tell it from a frozen one, and leaves it alone. The watcher imports nothing
of proav, and ends when its parent ends.
"""

import contextlib
import glob
import logging
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable

BEATS = 6
"""Signs of life that a process gives in `frozen_seconds`."""

logger = logging.getLogger(__name__)


def watch(name: str, *, frozen_seconds: float, trouble: Callable[[], str | None] = lambda: None) -> None:
    """Watches this process from now on until it ends.

    name: what the process is called in the log.
    frozen_seconds: the process is killed if it gives no sign of life for this time, unless a thread of it
        runs, or waits for a processor or a disk.
    trouble: called BEATS times within frozen_seconds; None means that all is well. If it returns a text, the
        process is killed at once and the log says the text.
    """
    words = [sys.executable, "-I", os.path.abspath(__file__), str(os.getpid()), str(frozen_seconds), name]
    watcher = subprocess.Popen(words, stdin=subprocess.PIPE, start_new_session=True)

    def beat() -> None:
        pause = threading.Event()
        while not pause.wait(frozen_seconds / BEATS):
            if said := trouble():
                logger.error("%s, process %d: %s; it is ended", name, os.getpid(), said)
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                os.write(watcher.stdin.fileno(), b".")
            except OSError as error:
                logger.error("%s, process %d, is no longer watched: %s", name, os.getpid(), error)
                return

    threading.Thread(target=beat, name="watchdog", daemon=True).start()


def _runs(pid: int) -> bool:
    """Whether a thread of the process computes, or waits for a processor or a disk; False if unknown."""
    for stat in glob.glob(f"/proc/{pid}/task/*/stat"):
        with contextlib.suppress(OSError), open(stat) as file:
            if file.read().rpartition(")")[2].split()[0] in "RD":
                return True
    return False


def _main() -> None:
    """What the watcher does: it waits for signs of life, and kills a frozen process."""
    pid, frozen_seconds, name = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
    while (signs := select.select([0], [], [], frozen_seconds)[0]) or _runs(pid):
        if signs and not os.read(0, 4096):
            return
    said = f"{name}, process {pid}: did not run for {frozen_seconds:g} s; it is ended"
    print(said, file=sys.stderr, flush=True)
    os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    _main()
