"""Progress lines: what they say on a terminal and in a file."""

import io
import re

from proav.runs.progress import Progress, duration


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_durations():
    assert [duration(seconds) for seconds in (0.4, 59.4, 190, 19_200, 7_200_060)] == [
        "0 s",
        "59 s",
        "3 min 10 s",
        "5 h 20 min",
        "2,000 h 1 min",
    ]


def test_plain_lines_in_a_file():
    stream = io.StringIO()
    progress = Progress("encode", 100, "windows", every_seconds=0.0, stream=stream)
    progress.update(50, "loss 1.0")
    progress.close()
    first, last = stream.getvalue().splitlines()
    assert first.startswith("encode: 50 / 100 windows") and "left" in first and "loss 1.0" in first
    assert "\r" not in stream.getvalue() and last.startswith("encode: 50 / 100")


def test_one_renewed_line_on_a_terminal():
    stream = Terminal()
    progress = Progress("train", 10, "clips", stream=stream)
    progress.close()
    assert stream.getvalue().startswith("\r") and stream.getvalue().endswith("\n")


def test_work_found_done_is_not_speed():
    stream = io.StringIO()
    progress = Progress("generate", 10, "samples", start=9, stream=stream)
    progress.began -= 10  # ten seconds ago
    progress.update(10)
    progress.close()
    rate = float(re.search(r"([\d.]+) samples/s", stream.getvalue())[1])
    assert 0.01 < rate <= 0.1
