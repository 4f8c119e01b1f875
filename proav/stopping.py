"""Turns SIGTERM and SIGINT into a request to end in good order.

Batch systems, clouds, `ray job stop` and Ctrl-C send these signals. The first signal raises `Stopped` in the
main thread. In a `deferred` block nothing is raised: its code asks whether a signal has come. A second
signal, or the end of job.stop_seconds, ends the process at once. This module knows no Ray.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

from proav.errors import Stopped

SIGNALS = (signal.SIGTERM, signal.SIGINT)
STATUS = 1
"""Exit status of a process that was stopped, in order or not."""
HOW_TO_GO_ON = "what was finished is kept: run the same command again to go on"


class StopRequest:
    """A context in which the process can be asked to end. Outside the main thread it listens to nothing.

    seconds: if the block lasts longer than this after the first signal, the process is ended at once.
    defer: as if all of the block ran in `deferred`.
    """

    _current: "StopRequest | None" = None

    def __init__(self, seconds: float, *, defer: bool = False) -> None:
        self.seconds = seconds
        self.asked = threading.Event()
        self.name: str | None = None
        """The signal's name, once it has come."""
        self._deferred, self._finished = defer, False
        self._before: dict = {}
        self._timer: threading.Timer | None = None

    def __enter__(self) -> "StopRequest":
        StopRequest._current = self
        self.listen()
        return self

    def __exit__(self, *_) -> None:
        StopRequest._current = None
        if self._timer is not None:
            self._timer.cancel()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def listen(self) -> None:
        """Takes the signals; it is called again after something else, such as ray.init, has taken them."""
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                before = signal.signal(number, self._handle)
                self._before.setdefault(number, before)

    @classmethod
    def current(cls) -> "StopRequest | None":
        """The request that this process listens for."""
        return cls._current

    @classmethod
    @contextlib.contextmanager
    def deferred(cls) -> Iterator["StopRequest | None"]:
        """A block in which a signal raises nothing: its code looks at `asked`, and calls `check` afterwards.

        Yields None if this process listens to no signals, or this is not its main thread.
        """
        current = cls._current
        if current is None or threading.current_thread() is not threading.main_thread():
            yield None
            return
        before, current._deferred = current._deferred, True
        try:
            yield current
        finally:
            current._deferred = before

    @classmethod
    def check(cls) -> None:
        """Raises `Stopped` if a signal has come."""
        if cls._current is not None and cls._current.asked.is_set():
            raise cls._current.stopped()

    def stopped(self) -> Stopped:
        """The exception that ends the job."""
        return Stopped(f"stopped by {self.name}; {HOW_TO_GO_ON}")

    def finish(self) -> None:
        """Says that the work is done: from now on a signal ends the process at once and silently."""
        self._finished = True

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._finished:
            os._exit(STATUS)
        name = signal.Signals(number).name
        if self.asked.is_set():
            end_at_once(f"stopped at once by a second signal, {name}; {HOW_TO_GO_ON}")
        self.name = name
        self.asked.set()
        late = f"not stopped {self.seconds:g} s after {name} (job.stop_seconds): ended; {HOW_TO_GO_ON}"
        self._timer = threading.Timer(self.seconds, end_at_once, [late])
        self._timer.daemon = True
        self._timer.start()
        _write(f"{name}: ending in order, within {self.seconds:g} s; a second signal ends at once")
        if not self._deferred:
            raise self.stopped()


def end_at_once(message: str) -> None:
    """Ends this process without any cleaning up. Half-written files still have temporary names."""
    _write(f"error: {message}")
    os._exit(STATUS)


def _write(line: str) -> None:
    with contextlib.suppress(
        OSError, ValueError, AttributeError
    ):  # stderr is gone, closed, or was never there
        os.write(sys.__stderr__.fileno(), (line + "\n").encode())
