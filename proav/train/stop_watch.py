"""How a training worker learns that it must save and end: by a signal of its own, or from the driver.

A signal to one worker ends all: its machine will be lost, and the next run uses the remaining machines.
"""

import contextlib
import signal
import threading
import time
from collections.abc import Callable

from proav.stopping import StopRequest

POLL_SECONDS = 0.25
MAX_FAILURES = 480
"""The watch ends after this many questions in a row without an answer, which takes at least two minutes."""


def listen(seconds: float) -> None:
    """Handles this process's signals from now on; `seconds` as in `StopRequest`.

    It is called in the process's main thread, in which Ray runs functions that are sent to the process.
    """
    StopRequest(seconds, defer=True).__enter__()  # as long as the process lives
    signal.pthread_sigmask(
        signal.SIG_UNBLOCK, {signal.SIGTERM}
    )  # a shielded Ray (proav/command_line.py) blocks it


class StopWatch:
    """Whether this worker is asked to stop.

    begin: called once, before the first step.
    driver_asks: called every quarter of a second, in another thread. It may fail for a moment.
    Both return whether the driver was asked to stop.
    """

    def __init__(self, begin: Callable[[], bool], driver_asks: Callable[[], bool]) -> None:
        self._begin, self._driver_asks = begin, driver_asks
        self._asked = threading.Event()
        self._thread: threading.Thread | None = None

    def __call__(self) -> bool:
        if self._thread is None:
            if self._begin():
                self._asked.set()
            self._thread = threading.Thread(target=self._watch, name="stop watch", daemon=True)
            self._thread.start()
        own = StopRequest.current()
        return self._asked.is_set() or (own is not None and own.asked.is_set())

    def _watch(self) -> None:
        failures = 0
        while failures < MAX_FAILURES:  # then the driver is gone: whoever ended it ends this process as well
            failures += 1
            with contextlib.suppress(Exception):  # perhaps the driver cannot be reached for a moment
                if self._driver_asks():
                    self._asked.set()
                    return
                failures = 0
            time.sleep(POLL_SECONDS)
