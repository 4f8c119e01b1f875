"""A process that freezes or gets stuck is ended; one that is well is left alone. Processes are real."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from tests.serve.conftest import ROOT

WATCHED = """
import logging, sys, time
from proav.serve.on_ray.watchdog import watch
logging.basicConfig()
stuck = []
watch("sampler", frozen_seconds=1.0, trouble=lambda: stuck[0] if stuck else None)
print("up", flush=True)
for line in sys.stdin:
    if line == "compute\\n":
        began = time.process_time()
        sum(range(10**7))
        three_seconds = round(3 * 10**7 / (time.process_time() - began))
        sum(range(three_seconds))  # in one go: no other thread of Python runs meanwhile
        print("computed", flush=True)
    else:
        stuck.append(line.strip())
"""


@pytest.fixture
def watched():
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, "-c", WATCHED], text=True, env=environment, **pipes)
    assert process.stdout.readline() == "up\n"
    yield process
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        pipe.close()


def children_gone(pids):
    deadline = time.monotonic() + 20
    while any(psutil.pid_exists(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(psutil.pid_exists(pid) for pid in pids)


def test_a_frozen_process_is_killed(watched):
    (watcher,) = psutil.Process(watched.pid).children()
    watched.send_signal(signal.SIGSTOP)
    assert watched.wait(30) == -signal.SIGKILL
    assert "did not run for 1 s" in watched.stderr.read() and children_gone([watcher.pid])


def test_a_process_that_is_well_is_left_alone_and_takes_its_watcher_along(watched):
    (watcher,) = psutil.Process(watched.pid).children()
    time.sleep(3.0)
    assert watched.poll() is None and watcher.is_running()
    watched.stdin.close()
    assert watched.wait(30) == 0 and children_gone([watcher.pid])


def test_a_process_that_is_only_slow_is_left_alone(watched):
    began = time.monotonic()
    watched.stdin.write("compute\n")
    watched.stdin.flush()
    assert watched.stdout.readline() == "computed\n" and watched.poll() is None
    assert time.monotonic() - began > 1.5  # longer than frozen_seconds


def test_a_process_in_trouble_ends_itself_and_says_why(watched):
    watched.stdin.write("no denoising step for 9 s\n")
    watched.stdin.flush()
    assert watched.wait(30) == -signal.SIGKILL
    assert "no denoising step for 9 s; it is ended" in watched.stderr.read()
