"""Storage that fails for a moment while a source is read: nothing of the source is lost for it."""

import errno
import http.server
import os
import threading
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from proav import patience
from proav.data.decode import SourceDecoder
from proav.data.isolation import IsolatedDecoder
from proav.data.sources import find_sources, rows_of
from proav.errors import MediaError, StorageUnavailable
from proav.filesystems import LocalFile
from proav.media.container import read_clip, read_segments
from proav.media.opening import Watch, opened
from tests.media.flash_and_beep import make_film, regular
from tests.synthetic_clips import make_clip
from tests.tiny import tiny_config

SMALL = {"fps": 10, "sample_rate": 16_000, "height": 32, "width": 32}


@pytest.fixture
def flaky_disk(monkeypatch):
    """Every third read of a local file fails with EIO; returns how many there were."""
    monkeypatch.setattr(patience, "FIRST_PAUSE", 0.001)
    real, reads = LocalFile.read_at, []

    def read_at(self, num_bytes, offset):
        reads.append(num_bytes)
        if len(reads) % 3 == 0:
            raise OSError(errno.EIO, "Input/output error")
        return real(self, num_bytes, offset)

    monkeypatch.setattr(LocalFile, "read_at", read_at)
    return reads


@pytest.mark.parametrize("ending", ["mp4", "mkv", "ts", "avi"])
def test_a_disk_that_fails_now_and_then_changes_no_segment(tmp_path, flaky_disk, ending):
    path = make_film(
        tmp_path / f"film.{ending}", times=regular(25, 6), flashes=(1, 3), beeps=(1, 3), sound_to=6,
        video="mpeg4", bit_rate=2_000_000, paint=lambda time: _noise(time),
    )  # fmt: skip
    for options in ({}, {"start_seconds": 3.0, "end_seconds": 5.0}):
        options = {"segment_seconds": 1.0} | options | SMALL
        with pytest.MonkeyPatch.context() as whole:
            whole.setattr(LocalFile, "read_at", lambda file, size, at: os.pread(file._file.fileno(), size, at))
            expected = list(read_segments(path, **options))
        before = len(flaky_disk)
        found = list(read_segments(path, **options))
        assert len(flaky_disk) - before > 6
        assert [start for start, _ in found] == [start for start, _ in expected]
        for (_, mine), (_, theirs) in zip(found, expected, strict=True):
            assert np.array_equal(mine.video, theirs.video) and np.array_equal(mine.audio, theirs.audio)


def _noise(time) -> np.ndarray:
    return np.random.default_rng(int(time * 1000)).integers(0, 255, (64, 80, 3), np.uint8)


def test_storage_that_stays_away_is_no_damage(tmp_path, monkeypatch):
    path = make_film(tmp_path / "film.mp4", times=regular(25, 6), sound_to=6, paint=_noise)
    monkeypatch.setenv(patience.VARIABLE, "0.2")
    real = LocalFile.read_at

    def read_at(self, num_bytes, offset):
        if offset > Path(path).stat().st_size // 2:
            raise OSError(errno.EIO, "Input/output error")
        return real(self, num_bytes, offset)

    monkeypatch.setattr(LocalFile, "read_at", read_at)
    with pytest.raises(StorageUnavailable, match="reading .*film.mp4 failed"):
        list(read_segments(path, segment_seconds=1.0, **SMALL))


def test_waiting_for_storage_is_not_time_for_decoding(monkeypatch):
    """It is told as a sign of life, and has a limit of its own."""
    signs = []
    watch = Watch(deadline_seconds=0.5, on_progress=lambda: signs.append(None))
    clock = iter([0.0, 0.4, 30.4, 30.6])
    monkeypatch.setattr("proav.media.opening.time.monotonic", lambda: next(clock))
    watch.start("a.mp4")
    watch.sign()
    watch.add(30.0)
    watch.sign()
    assert len(signs) == 3
    with pytest.raises(MediaError, match="a.mp4 took longer than 0.5 s"):
        watch.sign()


def test_names_that_are_no_text_are_opened(tmp_path):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9 100%:1.mp4")
    make_clip(1, seconds=1.0).save(str(tmp_path / "clip.mp4"))
    os.rename(tmp_path / "clip.mp4", path)
    assert len(read_clip(path, **SMALL).video) == 10
    for name in (str(tmp_path), "/dev/null"):
        with pytest.raises(MediaError, match="is not a file"), opened(name, Watch()):
            pass


class _FlakyServer(http.server.BaseHTTPRequestHandler):
    """Answers 503 to the first of every `one_in` requests for a part of a file."""

    folder, one_in, num_faults, num_requests, lock = "", 3, 0, 0, threading.Lock()

    def do_HEAD(self):
        self._answer(body=False)

    def do_GET(self):
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        data = Path(self.folder, os.path.basename(self.path)).read_bytes()
        with self.lock:
            kind = type(self)
            kind.num_requests += body
            fails = body and (kind.num_requests - 1) % kind.one_in == 0
            kind.num_faults += fails
        first, last = 0, len(data) - 1
        if wanted := self.headers.get("Range"):
            first, _, end = wanted.removeprefix("bytes=").partition("-")
            first, last = int(first), min(int(end or last), last)
        self.send_response(503 if fails else 206 if wanted else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        self.send_header("Content-Length", "0" if fails else str(last - first + 1))
        self.end_headers()
        if body and not fails:
            self.wfile.write(data[first : last + 1])

    def log_message(self, *_):
        pass


@contextmanager
def serving(folder, one_in):
    handler = type("Handler", (_FlakyServer,), {"folder": str(folder), "one_in": one_in, "lock": threading.Lock()})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/film.mp4", handler
    finally:
        server.shutdown()
        server.server_close()


def test_decoding_processes_wait_for_a_store_and_tell_where_it_stays_away(tmp_path, monkeypatch):
    (tmp_path / "there").mkdir()
    path = make_film(
        tmp_path / "there" / "film.mp4", times=regular(10, 12), sound_to=12, size=(240, 320),
        paint=lambda time: np.random.default_rng(int(time * 1000)).integers(0, 255, (240, 320, 3), np.uint8),
    )  # fmt: skip
    config = tiny_config(f"data.sources=[{path}]", "data.stall_seconds=30")
    expected = list(SourceDecoder(config).rows(rows_of(find_sources(config))[0]))
    with serving(tmp_path / "there", one_in=3) as (url, handler), IsolatedDecoder(config) as decoder:
        source = replace(rows_of(find_sources(config))[0], path=url)
        found = list(decoder.rows(source))
        assert handler.num_faults >= 1 and repr(found) == repr(expected)  # NaN is not NaN
    monkeypatch.setenv(patience.VARIABLE, "0.3")
    with serving(tmp_path / "there", one_in=1) as (url, _), IsolatedDecoder(config) as decoder:
        with pytest.raises(StorageUnavailable, match="job.retry_seconds"):
            list(decoder.rows(replace(source, path=url)))
