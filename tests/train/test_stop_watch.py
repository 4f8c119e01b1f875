"""A worker hears of a stop although a question to the driver has failed before."""

import threading
import time

import pytest

from proav.train import stop_watch
from proav.train.stop_watch import StopWatch


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(stop_watch, "POLL_SECONDS", 0.001)


def watching(answers):
    """A StopWatch whose driver gives these answers in turn; an error is raised. They must suffice."""

    def ask():
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return StopWatch(begin=lambda: False, driver_asks=ask)


def test_a_question_that_fails_is_asked_again():
    running = threading.Event()

    def answers():
        running.wait(30)
        yield from (False, ConnectionError("for a moment"), False, True)

    watch = watching(answers())
    assert not watch()
    running.set()
    end = time.monotonic() + 10
    while not watch() and time.monotonic() < end:
        time.sleep(0.01)
    assert watch()


def test_a_driver_that_never_answers_is_gone(monkeypatch):
    monkeypatch.setattr(stop_watch, "MAX_FAILURES", 3)
    answers = iter([ConnectionError("gone")] * 2 + [False] + [ConnectionError("gone")] * 3 + [True])
    watch = watching(answers)
    watch()
    watch._thread.join(10)
    assert not watch._thread.is_alive() and not watch() and next(answers)
