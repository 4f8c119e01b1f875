"""Gives a folder one owner at a time: a lease, which is a small file that the owner renews.

The folder may be local, on NFS or in an object store. The file is written through `proav.storage` alone,
which has no locks and no exclusive creation. So two owners that begin at the same instant may both hold the
folder until the next renewal. Then all but the last one notice that they have lost it. The same is so if an
owner is frozen in the middle of a renewal, is taken over, and wakes: its renewal is then the last one.
"""

import contextlib
import json
import logging
import os
import secrets
import socket
import threading
import time
from pathlib import Path

import psutil
from pydantic import BaseModel, Field, ValidationError

from proav import storage
from proav.errors import TOLD, UserError

WATCHED_BEATS = 2
"""Clocks of machines may differ, so a lease that looks old is first watched. It is taken over if it is not
renewed for this many times `beat_seconds`."""
SETTLE_SECONDS = {"local": 0.2, "remote": 1.0}
"""Time between writing a claim and reading it again, so that the last of several claims wins."""

logger = logging.getLogger(__name__)


class LeaseHeld(UserError):
    """Another process holds the folder."""


class _Record(BaseModel):
    """The content of the file."""

    token: str
    host: str
    pid: int
    machine: str | None
    """Identifies the kernel and the process-id namespace; None: unknown."""
    since: float = Field(allow_inf_nan=False)
    renewed: float = Field(allow_inf_nan=False)
    """Unix seconds, by the owner's clock."""
    beats: int
    beat_seconds: float = Field(gt=0, le=86400)
    stale_seconds: float = Field(gt=0, le=86400)


class Lease:
    """Owns a folder during a block: `with Lease(folder, name="server") as lease: ...`.

    A thread renews the lease. A lease that was not renewed for `stale_seconds` is watched, then taken over
    (WATCHED_BEATS). It is taken over at once if its process ran on this machine and is gone. The file is
    `.NAME.lease` in the folder.
    """

    def __init__(
        self,
        folder: str,
        *,
        name: str,
        stale_seconds: float = 60,
        beat_seconds: float = 10,
        advice: str = "choose another run_dir=DIR",
    ) -> None:
        """Nothing is written yet.

        folder: what is owned, local or remote.
        name: what the owner is, in a word or two, such as server; each name is a lease of its own.
        stale_seconds: a lease that was renewed longer ago than this looks left over. This must be more than
            twice `beat_seconds`.
        beat_seconds: time between renewals.
        advice: what else a user can type if another holds the folder.
        """
        assert stale_seconds > WATCHED_BEATS * beat_seconds > 0, (stale_seconds, beat_seconds)
        self.folder, self.name, self.advice = folder, name, advice
        self.path = storage.join(folder, f".{name.replace(' ', '-')}.lease")
        self.stale_seconds, self.beat_seconds = stale_seconds, beat_seconds
        self._own = _Record(
            token=secrets.token_hex(16), host=socket.gethostname(), pid=os.getpid(), machine=_machine(),
            since=0.0, renewed=0.0, beats=0, beat_seconds=beat_seconds, stale_seconds=stale_seconds,
        )  # fmt: skip
        self._lost_to: str | None = None
        self._leaving = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def lost(self) -> bool:
        """Whether another owner has taken the folder over; writing more could then destroy its work."""
        return self._lost_to is not None

    def check(self) -> None:
        """Raises UserError if the folder was lost."""
        if other := self._lost_to:
            said = f"{self.folder} was taken over by another {self.name} ({other})"
            why = f"either both began at once, or this one was not renewed for {self.stale_seconds:g} s"
            raise UserError(f"{said}: {why}; end one of the two")

    def require_free(self, *, wait_seconds: float = 0) -> None:
        """Raises LeaseHeld if another owner holds the folder, and still does after `wait_seconds`.

        If there is an old lease, this takes the time of two renewals.
        """
        deadline = time.monotonic() + wait_seconds
        while True:
            try:
                return self._require_free()
            except LeaseHeld:
                if time.monotonic() >= deadline:
                    raise
            time.sleep(min(1.0, self.beat_seconds))

    def _require_free(self) -> None:
        found = self._read()
        if found is None or self._is_own(found) or self._is_gone(found):
            return
        record = _parse(found)
        age = time.time() - record.renewed if record else 0.0
        if record and 0 <= age < record.stale_seconds:
            raise self._held(record, age)
        # Too old, from the future, or damaged: clocks may differ, so only a renewal shows that it is alive.
        watched = (record or self._own).beat_seconds * WATCHED_BEATS
        said = f"of {_shown(record)}" if record else "that cannot be read"
        rule = f"it is taken over if it is not renewed within {watched:.3g} s"
        logger.warning("%s is a lease %s, and looks left over; %s", self.path, said, rule)
        deadline = time.monotonic() + watched
        while time.monotonic() < deadline:
            time.sleep(min(1.0, watched / 10))
            now = self._read()
            if now is None or self._is_gone(now):
                return
            if now != found:
                raise self._held(_parse(now), 0.0)

    def acquire(self, *, wait_seconds: float = 0) -> None:
        """Takes the folder until `release`; for code that cannot use a `with` block.

        Raises LeaseHeld like `require_free`, or UserError if the folder cannot be written.
        """
        self.require_free(wait_seconds=wait_seconds)
        self._own.since = time.time()
        self._write()
        where = "remote" if storage.is_remote(self.path) else "local"
        time.sleep(min(self.beat_seconds / 2, SETTLE_SECONDS[where]))
        found = self._read()
        if found is None or not self._is_own(found):
            raise self._held(found and _parse(found), 0.0)
        self._leaving.clear()
        self._thread = threading.Thread(target=self._renew, name=f"lease-{self.name}", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Removes the lease if it is still this owner's; nothing happens if it was never taken."""
        if self._thread is None:
            return
        self._leaving.set()
        self._thread.join()
        self._thread = None
        with contextlib.suppress(OSError, *TOLD):  # a file that is left behind expires
            found = self._read()
            if found is not None and self._is_own(found):
                storage.delete_file(self.path)

    def __enter__(self) -> "Lease":
        self.acquire()
        return self

    def __exit__(self, *_) -> None:
        self.release()

    def _renew(self) -> None:
        while not self._leaving.wait(self.beat_seconds):
            try:
                found = self._read()
                if found is not None and not self._is_own(found):
                    record = _parse(found)
                    self._lost_to = _shown(record) if record else "its lease cannot be read"
                    logger.error("%s was taken over: %s", self.folder, self._lost_to)
                    return
                self._write()
            except (OSError, *TOLD) as error:
                logger.warning("the lease %s was not renewed and will be tried again: %s", self.path, error)

    def _write(self) -> None:
        self._own.renewed, self._own.beats = time.time(), self._own.beats + 1
        storage.write_text(self.path, self._own.model_dump_json())

    def _read(self) -> bytes | None:
        try:
            return storage.read_bytes(self.path)
        except FileNotFoundError:
            return None

    def _is_own(self, found: bytes) -> bool:
        record = _parse(found)
        return record is not None and record.token == self._own.token

    def _is_gone(self, found: bytes) -> bool:
        """Whether the process of a found lease was on this machine and has ended."""
        record = _parse(found)
        if record is None or record.machine is None or record.machine != self._own.machine:
            return False
        try:
            return psutil.Process(record.pid).status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    def _held(self, record: _Record | None, age: float) -> LeaseHeld:
        who = "which began at the same time"
        if record:
            who = f"{_shown(record)}, last heard from {age:.0f} s ago"
        lapse = record.stale_seconds if record else self.stale_seconds
        return LeaseHeld(
            f"{self.folder} is in use by another {self.name} ({who}); end that one, or {self.advice}. "
            f"If it is gone, type the same command again {lapse:g} s after it was last heard from"
        )


def _parse(found: bytes) -> _Record | None:
    """The record in a lease file's bytes; None if they are damaged."""
    try:
        return _Record.model_validate(json.loads(found))
    except (ValidationError, ValueError, RecursionError):
        return None


def _shown(record: _Record) -> str:
    return f"process {record.pid} on host {record.host}"


def _machine() -> str | None:
    """Identifies this machine's kernel and process-id namespace; None if unknown.

    Process ids of two records can be compared only if this is equal.
    """
    try:
        kernel = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {kernel} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux: the lease of a process that is gone expires like one of another machine
        return None
