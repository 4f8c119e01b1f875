"""Decoding in a process of its own, so that a file that crashes or hangs the decoder harms no other file.

The decoding itself is in another class, such as `source_decoder.SourceDecoder`. The rows of a source come
through a pipe, and the process that asked for them writes them. So if a decoder dies, no delivered row is
lost. The death of a decoder is also distinguished from that of the machine: a death counts as a try only if
the process that uses the decoder is still alive.
"""

import contextlib
import ctypes
import functools
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict
from multiprocessing.connection import Connection
from socket import socketpair
from typing import Any

from proav.config import Config
from proav.config.reading import config_from_dict, config_to_dict
from proav.data.sources.finding import SourceRow
from proav.errors import MediaError, StorageUnavailable
from proav.storage import patience

MAX_TRIES = 2
"""A source that has ended this many decoders is rejected. Another try would probably end the same way."""
MAX_SOURCES = 1000
"""Sources after which the process is replaced, because decoding broken files may leak memory."""
HEARTBEAT_SECONDS = 1.0
IDLE_SECONDS = 20.0
"""A process that receives no source for this long ends by itself and frees its memory."""
START_SECONDS = 120.0
"""Longest start. Importing PyTorch from a busy network disk may take a minute; that is no stall."""
SOURCE_DECODER = "proav.data.prepare.source_decoder:SourceDecoder"


class IsolatedDecoder:
    """A decoder in a process of its own.

        with IsolatedDecoder(config) as decoder:
            rows = list(decoder.rows(source))

    config: given to the decoder.
    decoder: "module:class". An object class(config) has the method rows(source, on_progress) of
        `source_decoder.SourceDecoder`. Its rows travel through the pipe.

    The process is started when it is needed. If it makes no progress for `data.stall_seconds`, it is killed.
    If it has died or was killed, a new one is started.
    """

    def __init__(self, config: Config, decoder: str = SOURCE_DECODER) -> None:
        self.config, self.decoder = config, decoder
        self._process: subprocess.Popen | None = None
        self._connection: Connection | None = None
        self._num_sources = 0

    def rows(self, source: SourceRow) -> Iterator[Any]:
        """Like the decoder's own `rows`; MediaError also has the reasons `crash` and `hang`."""
        num_delivered = num_tries = 0
        while True:
            try:
                for number, row in enumerate(self._ask(source)):
                    # an earlier try may have delivered the first rows; they are repeated unchanged
                    if number >= num_delivered:
                        num_delivered += 1
                        yield row
                return
            except _DecoderEnded as ended:
                if not ended.reason:
                    continue
                num_tries += 1
                print(f"decoding: {source.key}: {ended} (try {num_tries} of {MAX_TRIES})", file=sys.stderr)
                if num_tries == MAX_TRIES:
                    raise MediaError(ended.reason, f"{source.key}: {ended}, {MAX_TRIES} times") from None

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._connection.close()
            self._process = self._connection = None

    def __enter__(self) -> "IsolatedDecoder":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _ask(self, source: SourceRow) -> Iterator[Any]:
        self._start()
        answered = False
        try:
            self._connection.send(asdict(source))
            while True:
                kind, value = self._receive(self.config.data.stall_seconds)
                if kind == "row":
                    yield value
                elif kind != "alive":
                    break
            answered = True
        except (EOFError, OSError):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(5)
            status = self._process.returncode
            # status 0: it was idle for too long
            raise _DecoderEnded(
                "crash" if status != 0 else "", f"the decoder died of {_death(status)}"
            ) from None
        finally:
            if not answered:  # also if the caller stops in the middle of a source
                self.close()
        if kind == "rejected":
            raise MediaError(*value)
        if kind == "unavailable":
            raise StorageUnavailable(value)
        if kind == "failed":
            raise RuntimeError(
                f"decoding {source.key} failed; this is a fault of proav, not of the file:\n{value}"
            )

    def _receive(self, seconds: float) -> tuple[str, object]:
        if not self._connection.poll(seconds):
            raise _DecoderEnded("hang", f"the decoder got no further for {seconds:g} s")
        return self._connection.recv()

    def _start(self) -> None:
        self._num_sources += 1
        if self._process is not None and (
            self._process.poll() is not None or self._num_sources > MAX_SOURCES
        ):
            self.close()
        if self._process is not None:
            return
        self._num_sources = 1
        try:
            self._launch()
            self._connection.send((self.decoder, config_to_dict(self.config)))
            self._receive(START_SECONDS)
        except (EOFError, OSError, _DecoderEnded) as error:
            self.close()
            why = " ".join(str(error).split()) or "it died"
            raise RuntimeError(
                f"the decoding process did not start: {why}; its own messages, if any, are above"
            ) from error

    def _launch(self) -> None:
        path = os.pathsep.join(map(os.path.abspath, sys.path))  # Ray may have put proav anywhere
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}  # one decoder, one core
        ours, theirs = socketpair()
        with ours, theirs:
            # -P: no file of the current folder hides a module
            command = [sys.executable, "-P", "-m", "proav.data.prepare.isolation", str(theirs.fileno())]
            self._process = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, env=environment
            )
            self._connection = Connection(ours.detach())


@functools.lru_cache(maxsize=1)
def decoder_of_this_process(config_text: str, decoder: str = SOURCE_DECODER) -> IsolatedDecoder:
    """One decoder for all that a worker process decodes: starting one takes longer than decoding a clip.

    config_text: JSON of the settings. decoder: as in `IsolatedDecoder`.
    """
    return IsolatedDecoder(config_from_dict(json.loads(config_text)), decoder)


class _DecoderEnded(Exception):
    """The process died, or was killed because it made no progress.

    reason: empty if the process ended by itself because it was idle.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def _death(status: int | None) -> str:
    if status is not None and status < 0:
        return signal.Signals(-status).name
    return f"exit status {status}"


def _serve(connection: Connection) -> None:
    """The loop of the process: receives a source, then sends its rows and the outcome.

    The loop ends if no source comes for IDLE_SECONDS.
    """
    named, values = connection.recv()
    module, _, kind = named.partition(":")
    config = config_from_dict(values)
    decoder = getattr(importlib.import_module(module), kind)(config)
    heartbeat = _Heartbeat(connection, config.data.stall_seconds)
    heartbeat.send("alive", None)
    threading.Thread(target=heartbeat.watch_storage, name="watch over storage", daemon=True).start()
    while connection.poll(IDLE_SECONDS):
        source = connection.recv()
        try:
            for row in decoder.rows(SourceRow(**source), heartbeat.beat):
                heartbeat.send("row", row)
            last = "done", None
        except MediaError as error:
            last = "rejected", (error.reason, str(error))
        except StorageUnavailable as error:
            last = "unavailable", str(error)
        except Exception:
            last = "failed", traceback.format_exc()
        heartbeat.send(*last)


class _Heartbeat:
    """Sends through the pipe, from either thread."""

    def __init__(self, connection: Connection, stall_seconds: float) -> None:
        self.connection, self.stall_seconds = connection, stall_seconds
        self.due, self.lock = 0.0, threading.Lock()

    def send(self, kind: str, value: object) -> None:
        with self.lock:
            self.connection.send((kind, value))

    def beat(self) -> None:
        now = time.monotonic()
        if now >= self.due:
            self.due = now + HEARTBEAT_SECONDS
            self.send("alive", None)

    def watch_storage(self) -> None:
        """Beats while storage does not answer, because neither the decoder nor the file is at fault then.

        If storage does not answer for too long, the process reports it and ends.
        """
        with contextlib.suppress(OSError):  # the parent is gone, and this process ends with it
            while True:
                time.sleep(HEARTBEAT_SECONDS)
                waited = patience.waiting_seconds()
                if waited > patience.retry_seconds() + self.stall_seconds:
                    said = f"storage has not answered for {waited:.0f} s; run the same command again"
                    self.send("unavailable", said)
                    os._exit(0)
                if waited:
                    self.beat()


def _die_with_parent() -> None:
    """Lets the kernel kill this process when its parent dies, even if a decoder here hangs."""
    if sys.platform == "linux":
        PR_SET_PDEATHSIG = 1
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    _die_with_parent()
    # Ctrl-C is for the job; this process ends when the pipe does
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with (
        contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError),
        Connection(int(sys.argv[1])) as pipe,
    ):
        _serve(pipe)
