"""A file system that sometimes fails, to test how jobs handle faults.

flaky:///folder is a local folder. One in N calls to it fails once; FLAKY_ONE_IN is N. Each fault is written
to the file that FLAKY_LOG names. `bench/cluster/faults.py` registers the file system in every process of a
job, by a `sitecustomize.py` on PYTHONPATH.
"""

import errno
import os
import random

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileOpener, LocalFileSystem

PROTOCOL = "flaky"
ERRORS = (
    lambda: TimeoutError(errno.ETIMEDOUT, "Connection timed out"),
    lambda: OSError(errno.EIO, "Input/output error"),
    lambda: ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
    lambda: OSError(errno.ESTALE, "Stale file handle"),
    lambda: OSError("AWS Error SLOW_DOWN during PutObject operation (HTTP status 503)"),
)


def maybe_fail(what: str) -> None:
    """Raises one of ERRORS in one of FLAKY_ONE_IN calls."""
    if random.SystemRandom().randrange(int(os.environ.get("FLAKY_ONE_IN", "50"))):
        return
    if log := os.environ.get("FLAKY_LOG"):
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(handle, (what + "\n").encode())
        os.close(handle)
    raise random.choice(ERRORS)()


class FlakyFileSystem(LocalFileSystem):
    """Local files behind calls that may fail: each call fails as a whole or not at all."""

    protocol = PROTOCOL

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return LocalFileSystem._strip_protocol(str(path).removeprefix(f"{PROTOCOL}://"))

    def info(self, path, **options):
        maybe_fail(f"info {path}")
        return super().info(path, **options)

    exists, isfile, isdir = AbstractFileSystem.exists, AbstractFileSystem.isfile, AbstractFileSystem.isdir

    def ls(self, path, detail=False, **options):
        maybe_fail(f"ls {path}")
        return LocalFileSystem().ls(path, detail=detail, **options)  # one call, not one for each entry

    def makedirs(self, path, exist_ok=False):
        maybe_fail(f"makedirs {path}")
        return LocalFileSystem().makedirs(path, exist_ok=exist_ok)

    def mkdir(self, path, create_parents=True, **options):
        maybe_fail(f"mkdir {path}")
        return LocalFileSystem().mkdir(path, create_parents=create_parents, **options)

    def rm(self, path, recursive=False, maxdepth=None):
        maybe_fail(f"rm {path}")
        return LocalFileSystem().rm(path, recursive=recursive, maxdepth=maxdepth)

    def mv(self, path1, path2, **options):
        maybe_fail(f"mv {path1}")
        return LocalFileSystem().mv(path1, path2, **options)

    def _open(self, path, mode="rb", block_size=None, **options):
        maybe_fail(f"open {mode} {path}")
        if "w" in mode:
            os.makedirs(os.path.dirname(path), exist_ok=True)
        return _FlakyFile(path, mode, fs=self, **options)


class _FlakyFile(LocalFileOpener):
    def read(self, *arguments):
        maybe_fail(f"read {self.path}")
        return self.f.read(*arguments)

    def write(self, *arguments):
        maybe_fail(f"write {self.path}")
        return self.f.write(*arguments)

    def close(self):
        self.f.close()
        if "r" not in self.mode:
            maybe_fail(f"close {self.path}")
