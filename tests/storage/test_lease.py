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
from types import SimpleNamespace

import fsspec
import pytest

from proav import storage
from proav.errors import UserError
from proav.storage import lease as lease_module
from proav.storage.lease import Lease, LeaseHeld
from tests.waiting import until

ROOT = Path(__file__).parents[2]
QUICK = {"name": "server", "stale_seconds": 0.6, "beat_seconds": 0.1}
LASTING = {**QUICK, "stale_seconds": 60}  # a disk that is slow for a moment does not end it
HOLDER = """
import sys, threading, time
from proav.storage.lease import Lease

class HeldLease(Lease):
    def _read(self):
        if threading.current_thread() is self._thread:
            sys.stdin.readline()  # so that a signal never hits the writing of a renewal
        return super()._read()

with HeldLease(sys.argv[1], name="server", stale_seconds=60, beat_seconds=0.1) as lease:
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
    """A process that holds the lease of `tmp_path`, and renews it once for each line that it is sent."""
    words = [sys.executable, "-c", HOLDER, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(words, env={**os.environ, "PYTHONPATH": str(ROOT)}, **pipes) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def stored(lease):
    return json.loads(storage.read_text(lease.path))


def record_of_another_machine(folder, **changes):
    """Writes the file that a lease of another machine would leave; returns its path and its content."""
    lease = Lease(folder, **QUICK)
    own = {"token": "another", "host": "far", "machine": "far", "renewed": time.time(), "beats": 1}
    written = {**lease._own.model_dump(), **own, **changes}
    storage.write_text(lease.path, json.dumps(written))
    return lease.path, written


def write_until_lost(lease, write):
    """Replaces the file of a lease by write() until its owner has noticed.

    Once is not enough: a renewal that is under way may replace it in turn.
    """

    def lost():
        write()
        return lease.lost

    until(lost)


def test_the_second_is_refused_with_the_name_of_the_first_until_that_leaves(folder):
    with Lease(folder, **LASTING) as lease:
        first = stored(lease)["renewed"]
        until(lambda: stored(lease)["beats"] >= 5)
        assert stored(lease)["renewed"] > first
        second = Lease(folder, advice="choose another jobs_dir=DIR", **QUICK)
        with pytest.raises(LeaseHeld) as refused, second:
            pass
        with Lease(folder, **{**QUICK, "name": "training"}):  # a lease of another name
            assert not lease.lost
        assert storage.list_files(folder) == []  # hidden from those who list the folder
        lease.check()
    said = str(refused.value)
    expected = folder, f"process {os.getpid()} on host", "jobs_dir=DIR", "60 s after"
    assert all(words in said for words in expected), said
    assert not storage.exists(lease.path)
    with Lease(folder, **QUICK):
        pass


def test_one_of_many_that_begin_together_wins(folder, monkeypatch):
    """All find the folder free before the first claims it, and all have claimed it before they settle."""
    entered, left, settled = [], threading.Event(), []
    together = threading.Barrier(8, timeout=60)

    def require_free(lease, **options):
        found_free(lease, **options)
        together.wait()

    def sleep(seconds):
        settled.append(seconds)
        together.wait()

    found_free = Lease.require_free
    monkeypatch.setattr(Lease, "require_free", require_free)
    monkeypatch.setattr(lease_module, "time", SimpleNamespace(**{**vars(time), "sleep": sleep}))

    def begin(_):
        try:
            with Lease(folder, **{**QUICK, "stale_seconds": 5.0, "beat_seconds": 1.0}) as lease:
                entered.append(lease)
                left.wait(60)
        except LeaseHeld:
            return 1
        return 0

    with ThreadPoolExecutor(8) as pool:
        refused = [pool.submit(begin, number) for number in range(8)]
        until(lambda: sum(one.done() for one in refused) >= 7)
        left.set()
    assert sum(one.result() for one in refused) == 7 and len(entered) == 1
    assert len(settled) == 8 and min(settled) >= 0.2


def test_a_process_that_was_killed_here_holds_nothing(holder, tmp_path):
    with pytest.raises(LeaseHeld, match=f"process {holder.pid} on host"):
        Lease(str(tmp_path), **QUICK).require_free()
    holder.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)  # it stays a zombie
    with Lease(str(tmp_path), name="server") as lease:
        assert not lease.lost


def test_a_frozen_owner_is_taken_over_and_learns_it(holder, tmp_path):
    holder.send_signal(signal.SIGSTOP)
    lease = Lease(str(tmp_path), **QUICK)
    with pytest.raises(LeaseHeld), lease:
        pass
    record = stored(lease)
    storage.write_text(lease.path, json.dumps({**record, "renewed": record["renewed"] - 60}))
    with lease:
        holder.send_signal(signal.SIGCONT)
        assert holder.communicate("\n", timeout=60)[0] == "lost\n" and holder.returncode == 0
        time.sleep(2 * QUICK["beat_seconds"])
        assert not lease.lost and storage.exists(lease.path)


def test_who_was_taken_over_says_by_whom_and_takes_nothing_away(folder):
    with Lease(folder, **QUICK) as lease:
        write_until_lost(lease, lambda: record_of_another_machine(folder))
        with pytest.raises(UserError, match="taken over by another server .* on host far"):
            lease.check()
    assert stored(lease)["host"] == "far"


def test_a_lease_that_was_replaced_by_something_unreadable_is_lost(folder):
    with Lease(folder, **QUICK) as lease:
        write_until_lost(lease, lambda: storage.write_text(lease.path, "no record"))
        with pytest.raises(UserError, match="taken over by another server .its lease cannot be read"):
            lease.check()
    assert storage.read_text(lease.path) == "no record"


def test_what_another_machine_left_lapses(folder):
    record_of_another_machine(folder, stale_seconds=60, renewed=time.time() - 5)
    with pytest.raises(LeaseHeld, match=r"on host far, last heard from ([5-9]|[1-5]\d) s ago"):
        Lease(folder, **QUICK).require_free()
    record_of_another_machine(folder, stale_seconds=60, renewed=time.time() - 60)
    with Lease(folder, **QUICK) as lease:
        assert stored(lease)["host"] != "far"


@pytest.mark.parametrize("shift_seconds", [-3600, 3600])
def test_a_clock_that_is_wrong_gives_no_lease_away(folder, shift_seconds):
    renewed = time.time() + shift_seconds
    path, written = record_of_another_machine(folder, renewed=renewed, beat_seconds=5, stale_seconds=30)
    left = threading.Event()

    def renew():
        while not left.wait(0.1):
            written["beats"] += 1
            storage.write_text(path, json.dumps({**written, "renewed": time.time() + shift_seconds}))

    thread = threading.Thread(target=renew)
    thread.start()
    try:
        with pytest.raises(LeaseHeld, match="on host far"):
            Lease(folder, **QUICK).require_free()
    finally:
        left.set()
        thread.join()
    storage.write_text(path, json.dumps({**written, "beat_seconds": 0.1}))
    with Lease(folder, **QUICK):  # nobody renews it
        pass


@pytest.mark.parametrize("damage", [b"", b"[" * 5000, b'{"pid": NaN}', b"\xff"])
def test_a_damaged_lease_lapses_too(folder, damage):
    lease = Lease(folder, **QUICK)
    storage.write_bytes(lease.path, damage)
    with lease:
        assert not lease.lost


def test_who_waits_gets_it_when_the_first_leaves(folder):
    first, second = Lease(folder, **LASTING), Lease(folder, **QUICK)
    first.acquire()
    with pytest.raises(LeaseHeld):
        second.acquire(wait_seconds=0.3)
    began = time.monotonic()
    threading.Timer(0.5, first.release).start()
    second.acquire(wait_seconds=60)
    assert not second.lost and time.monotonic() - began > 0.4
    second.release()
    second.release()
    assert not storage.exists(second.path)


def test_a_lease_that_was_deleted_is_written_anew(folder):
    with Lease(folder, **QUICK) as lease:
        storage.delete_file(lease.path)
        until(lambda: storage.exists(lease.path))
        assert not lease.lost
