"""SIGTERM and SIGINT as a request to end in order: how batch systems, clouds, `ray job stop` and Ctrl-C ask.

The first signal asks, and raises `Stopped` where the main thread is, unless it has said that it looks for itself
(`deferred`). A second signal, or the end of job.stop_seconds, ends the process at once. Knows no Ray.
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
"""Of a process that was stopped, in order or not."""
HOW_TO_GO_ON = "what was finished is kept: run the same command again to go on"


class StopRequest:
    """A context in which the process can be asked to end.

    seconds: from the first signal to the end of the process, whatever it is doing. Outside the main thread it
    listens to nothing.
    """

    _current: "StopRequest | None" = None

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.asked = threading.Event()
        self.name: str | None = None
        """The signal's name, once it has come."""
        self._deferred = False
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
        """Takes the signals; once more where something else, such as ray.init, has taken them since."""
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                before = signal.signal(number, self._handle)
                self._before.setdefault(number, before)

    @classmethod
    @contextlib.contextmanager
    def deferred(cls) -> Iterator["StopRequest | None"]:
        """Within, a signal raises nothing: the code looks at `asked`. None where nobody listens to signals.

        A signal that was seen within raises `Stopped` at the end, unless an error is on its way.
        """
        current = cls._current
        if current is None or threading.current_thread() is not threading.main_thread():
            yield None
            return
        current._deferred = True
        try:
            yield current
        finally:
            current._deferred = False
        if current.asked.is_set():
            raise current.stopped()

    def stopped(self) -> Stopped:
        """What ends the job."""
        return Stopped(f"stopped by {self.name}; {HOW_TO_GO_ON}")

    def _handle(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self.asked.is_set():
            end_at_once(f"stopped at once by a second signal, {name}; {HOW_TO_GO_ON}")
        self.name = name
        self.asked.set()
        self._timer = threading.Timer(
            self.seconds,
            end_at_once,
            [f"not stopped {self.seconds:g} s after {name} (job.stop_seconds): ended at once; {HOW_TO_GO_ON}"],
        )
        self._timer.daemon = True
        self._timer.start()
        _write(f"{name}: ending in order, within {self.seconds:g} s; a second signal ends at once")
        if not self._deferred:
            raise self.stopped()


def end_at_once(message: str) -> None:
    """Ends this process without any cleaning up; what is half written has no name yet."""
    _write(f"error: {message}")
    os._exit(STATUS)


def _write(line: str) -> None:
    with contextlib.suppress(OSError):  # a terminal that is gone
        os.write(sys.__stderr__.fileno(), (line + "\n").encode())
