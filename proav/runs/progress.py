"""Progress of long work: done / total, rate and time left.

A terminal shows one line that is updated in place; elsewhere there are plain lines.
"""

import sys
import time


class Progress:
    """Counts towards `total` and shows it on stderr.

    The rate is that of this process alone: work of earlier runs counts as done, but not for the rate.

    what: name of the work.
    total, unit: the amount of work, and its unit.
    start: the amount that earlier runs have done.
    every_seconds: least time between lines in a log file.
    stream: where lines go; None: stderr.
    """

    def __init__(
        self, what: str, total: int, unit: str, *, start: int = 0, every_seconds: float = 10.0, stream=None
    ) -> None:
        self.what, self.total, self.unit, self.start, self.done = what, total, unit, start, start
        self.stream = stream or sys.stderr
        self.terminal = self.stream.isatty()
        self.every_seconds = 0.2 if self.terminal else every_seconds
        self.began = self.shown = time.monotonic()

    def update(self, done: int, note: str = "") -> None:
        """Sets the count; `note`, such as a loss, is shown after it."""
        self.done = done
        now = time.monotonic()
        if now - self.shown >= self.every_seconds:
            self.shown = now
            self._show(note)

    def close(self, note: str = "") -> None:
        """Shows the last state and ends the line."""
        self._show(note)
        if self.terminal:
            self.stream.write("\n")
            self.stream.flush()

    def _show(self, note: str) -> None:
        elapsed = max(time.monotonic() - self.began, 1e-6)
        rate = (self.done - self.start) / elapsed
        left = (
            f", {duration((self.total - self.done) / rate)} left"
            if rate > 0 and self.done < self.total
            else ""
        )
        line = (
            f"{self.what}: {self.done:,} / {self.total:,} {self.unit}, {rate:.3g} {self.unit}/s{left}, "
            f"{duration(elapsed)} so far{'  ' + note if note else ''}"
        )
        self.stream.write(f"\r\x1b[2K{line}" if self.terminal else line + "\n")
        self.stream.flush()


def duration(seconds: float) -> str:
    """Seconds as people say them: 42 s, 3 min 10 s, 5 h 20 min."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600:,} h {seconds % 3600 // 60} min"
