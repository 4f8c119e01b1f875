"""A lease has one owner at a time. Others are refused; if one takes it over, the first notices that it has
lost it.

The tests run on this machine's disk and behind a URI, and with real processes.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest

from proav import storage
from proav.errors import UserError
from proav.storage.lease import Lease, LeaseHeld

ROOT = Path(__file__).parents[2]
QUICK = {"name": "server", "stale_seconds": 0.6, "beat_seconds": 0.1}
HOLDER = """
import sys, time
from proav.storage.lease import Lease
with Lease(sys.argv[1], name="server", stale_seconds=float(sys.argv[2]), beat_seconds=0.1) as lease:
    print("held", flush=True)
    while not lease.lost:
        time.sleep(0.01)
    print("lost", flush=True)
"""


@pytest.fixture(params=["local", "memory"])
def folder(request, tmp_path):
    if request.param == "local":
        yield str(tmp_path)
    else:
        yield "memory://bucket/run"
        fsspec.filesystem("memory").store.clear()


@pytest.fixture
def holder(tmp_path):
    """A function that starts processes which hold the lease of `tmp_path`; they are ended afterwards."""
    started = []

    def start(stale_seconds=0.6):
        words = [sys.executable, "-c", HOLDER, str(tmp_path), str(stale_seconds)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        started.append(subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment))
        assert started[-1].stdout.readline() == "held\n"
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def record_of_another_machine(folder, **changes):
    """Writes the file that a lease of another machine would leave; returns its path and its content."""
    lease = Lease(folder, **QUICK)
    lease._own.token, lease._own.host, lease._own.machine = "another", "far", "far"
    lease._write()
    written = {**json.loads(storage.read_text(lease.path)), **changes}
    storage.write_text(lease.path, json.dumps(written))
    return lease.path, written


def test_the_second_is_refused_with_the_name_of_the_first_until_that_leaves(folder):
    with Lease(folder, **QUICK) as lease:
        time.sleep(1.5 * QUICK["stale_seconds"])  # renewed meanwhile
        second = Lease(folder, advice="choose another jobs_dir=DIR", **QUICK)
        with pytest.raises(LeaseHeld) as refused, second:
            pass
        with Lease(folder, **{**QUICK, "name": "training"}):  # a lease of another name
            assert not lease.lost
        assert storage.list_files(folder) == []  # hidden from those who list the folder
        lease.check()
    said = str(refused.value)
    expected = folder, f"process {os.getpid()} on host", "jobs_dir=DIR", "0.6 s after"
    assert all(words in said for words in expected), said
    assert not storage.exists(lease.path)
    with Lease(folder, **QUICK):
        pass


def test_one_of_many_that_begin_together_wins(folder):
    entered, left = [], threading.Event()

    def begin(_):
        try:
            with Lease(folder, **{**QUICK, "stale_seconds": 5.0, "beat_seconds": 1.0}) as lease:
                entered.append(lease)
                left.wait(20)
        except LeaseHeld:
            return 1
        return 0

    with ThreadPoolExecutor(8) as pool:
        refused = [pool.submit(begin, number) for number in range(8)]
        deadline = time.monotonic() + 20
        while sum(one.done() for one in refused) < 7 and time.monotonic() < deadline:
            time.sleep(0.01)
        left.set()
    assert len(entered) == 1 and sum(one.result() for one in refused) == 7


def test_a_process_that_was_killed_here_holds_nothing(holder, tmp_path):
    killed = holder(stale_seconds=60)
    with pytest.raises(LeaseHeld, match=f"process {killed.pid} on host"):
        Lease(str(tmp_path), **QUICK).require_free()
    killed.send_signal(signal.SIGKILL)
    time.sleep(0.2)  # nobody waits for the process, so it is a zombie
    began = time.monotonic()
    with Lease(str(tmp_path), name="server"):
        assert time.monotonic() - began < 10


def test_a_frozen_owner_is_taken_over_and_learns_it(holder, tmp_path):
    frozen = holder()
    frozen.send_signal(signal.SIGSTOP)
    with pytest.raises(LeaseHeld), Lease(str(tmp_path), **QUICK):
        pass
    time.sleep(QUICK["stale_seconds"])
    with Lease(str(tmp_path), **QUICK) as lease:
        frozen.send_signal(signal.SIGCONT)
        assert frozen.stdout.readline() == "lost\n" and frozen.wait(30) == 0
        time.sleep(2 * QUICK["beat_seconds"])
        assert not lease.lost and storage.exists(lease.path)


def test_who_was_taken_over_says_by_whom_and_takes_nothing_away(folder):
    with Lease(folder, **QUICK) as lease:
        path, _ = record_of_another_machine(folder)
        deadline = time.monotonic() + 10
        while not lease.lost and time.monotonic() < deadline:
            time.sleep(0.01)
        with pytest.raises(UserError, match="taken over by another server .* on host far"):
            lease.check()
    assert json.loads(storage.read_text(path))["host"] == "far"


def test_a_lease_that_was_replaced_by_something_unreadable_is_lost(folder):
    with Lease(folder, **QUICK) as lease:
        storage.write_text(lease.path, "no record")
        deadline = time.monotonic() + 10
        while not lease.lost and time.monotonic() < deadline:
            time.sleep(0.01)
        with pytest.raises(UserError, match="taken over by another server .its lease cannot be read"):
            lease.check()
    assert storage.read_text(lease.path) == "no record"


def test_what_another_machine_left_lapses(folder):
    path, written = record_of_another_machine(folder)
    with pytest.raises(LeaseHeld, match="on host far, last heard from 0 s ago"):
        Lease(folder, **QUICK).require_free()
    time.sleep(written["stale_seconds"])
    with Lease(folder, **QUICK):
        assert json.loads(storage.read_text(path))["host"] != "far"


@pytest.mark.parametrize("shift_seconds", [-3600, 3600])
def test_a_clock_that_is_wrong_gives_no_lease_away(folder, shift_seconds):
    path, written = record_of_another_machine(folder)
    left = threading.Event()

    def renew():
        while not left.wait(written["beat_seconds"]):
            written["beats"] += 1
            storage.write_text(path, json.dumps({**written, "renewed": time.time() + shift_seconds}))

    thread = threading.Thread(target=renew)
    thread.start()
    time.sleep(0.2)
    try:
        with pytest.raises(LeaseHeld, match="on host far"), Lease(folder, **QUICK):
            pass
    finally:
        left.set()
        thread.join()
    with Lease(folder, **QUICK):  # nobody renews it
        pass


@pytest.mark.parametrize("damage", [b"", b"[" * 5000, b'{"pid": NaN}', b"\xff"])
def test_a_damaged_lease_lapses_too(folder, damage):
    lease = Lease(folder, **QUICK)
    storage.write_bytes(lease.path, damage)
    with lease:
        assert not lease.lost


def test_who_waits_gets_it_when_the_first_leaves(folder):
    first, second = Lease(folder, **QUICK), Lease(folder, **QUICK)
    first.acquire()
    with pytest.raises(LeaseHeld):
        second.acquire(wait_seconds=0.3)
    leaving = threading.Timer(0.5, first.release)
    leaving.start()
    second.acquire(wait_seconds=20)
    assert not second.lost and not leaving.is_alive()
    second.release()
    second.release()
    assert not storage.exists(second.path)


def test_a_lease_that_was_deleted_is_written_anew(folder):
    with Lease(folder, **QUICK) as lease:
        storage.delete_file(lease.path)
        time.sleep(3 * QUICK["beat_seconds"])
        assert storage.exists(lease.path) and not lease.lost
