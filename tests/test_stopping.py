"""A first signal ends a process in order; a second signal or the deadline ends it at once."""

import os
import signal
import subprocess
import sys
import time

import pytest

SCRIPT = """
import sys, time
from proav.errors import Stopped
from proav.stopping import StopRequest
# Many short waits: a signal that comes between CPython's last look and a wait is seen after the wait.
def steps(request=None):
    for _ in range(1200):
        if request is not None and request.asked.is_set():
            return
        time.sleep(0.05)
def work(how):
    if how == "deferred":
        with StopRequest.deferred() as request:
            print("ready", flush=True)
            steps(request)
        print("saved", flush=True)
        StopRequest.check()
    elif how == "deaf":
        with StopRequest.deferred():
            print("ready", flush=True)
            steps()
    else:
        print("ready", flush=True)
        steps()
try:
    with StopRequest(float(sys.argv[2])):
        work(sys.argv[1])
except Stopped as stopped:
    print(stopped, flush=True)
    sys.exit(1)
"""


@pytest.fixture
def start():
    processes = []

    def run(how, seconds=60.0):
        process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, how, str(seconds)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        assert process.stdout.readline() == "ready\n"
        return process

    yield run
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("how", ["plain", "deferred"])
def test_the_first_signal_ends_in_order(start, how, number):
    process = start(how)
    process.send_signal(number)
    said, shown = process.communicate(timeout=20)
    assert process.returncode == 1 and "Traceback" not in shown
    assert f"{number.name}: ending in order, within 60 s; a second signal ends at once" in shown
    assert said == ("saved\n" if how == "deferred" else "") + (
        f"stopped by {number.name}; what was finished is kept: run the same command again to go on\n"
    )


def test_the_second_signal_ends_at_once(start):
    process = start("deaf")
    process.send_signal(signal.SIGTERM)
    wait_for(process, "ending in order")
    process.send_signal(signal.SIGINT)
    _, shown = process.communicate(timeout=20)
    assert process.returncode == 1 and "stopped at once by a second signal, SIGINT" in shown


def test_the_deadline_ends_at_once(start):
    process = start("deaf", 0.5)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, shown = process.communicate(timeout=20)
    assert process.returncode == 1 and "not stopped 0.5 s after SIGTERM (job.stop_seconds)" in shown
    assert time.monotonic() - began < 15


def wait_for(process, text):
    os.set_blocking(process.stderr.fileno(), True)
    while text not in process.stderr.readline():
        assert process.poll() is None
