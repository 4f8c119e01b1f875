"""Storage that fails for a moment while a source is read: nothing of the source is lost."""

import contextlib
import errno
import http.server
import io
import os
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from proav.data.prepare import isolation
from proav.data.prepare.isolation import IsolatedDecoder
from proav.data.prepare.source_decoder import SourceDecoder
from proav.data.prepare.unit import WorkUnit, process_unit
from proav.data.sources.finding import find_sources, rows_of
from proav.errors import MediaError, Stopped, StorageUnavailable, UserError
from proav.media.container import read_clip, read_segments
from proav.media.opening import Watch, opened
from proav.storage import patience
from proav.storage.filesystems import LocalFile, PatientFile
from tests.media.flash_and_beep import make_film, regular
from tests.synthetic_clips import make_clip
from tests.tiny import tiny_config

SMALL = {"fps": 10, "sample_rate": 16_000, "height": 32, "width": 32}


@pytest.fixture
def flaky_disk(monkeypatch):
    """Every third read of a local file fails with EIO. The list returned has an entry for each read."""
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
            whole.setattr(LocalFile, "read_at", _unhurt)
            expected = list(read_segments(path, **options))
        before = len(flaky_disk)
        found = list(read_segments(path, **options))
        assert len(flaky_disk) - before > 6
        assert [start for start, _ in found] == [start for start, _ in expected]
        for (_, mine), (_, theirs) in zip(found, expected, strict=True):
            assert np.array_equal(mine.video, theirs.video) and np.array_equal(mine.audio, theirs.audio)


def _unhurt(file, num_bytes, offset):
    return os.pread(file._file.fileno(), num_bytes, offset)


def _noise(time) -> np.ndarray:
    return np.random.default_rng(int(time * 1000)).integers(0, 255, (64, 80, 3), np.uint8)


@pytest.mark.parametrize("error", [errno.EIO, errno.EACCES, errno.ENOENT])
@pytest.mark.parametrize("ending", ["mkv", "ts"])
def test_storage_that_stays_away_is_no_damage(tmp_path, monkeypatch, ending, error):
    """After the first segment no byte comes any more. That is not taken for the end of the file."""
    path = make_film(
        tmp_path / f"film.{ending}", times=regular(25, 20), sound_to=20, video="mpeg4", bit_rate=4_000_000,
        paint=_noise,
    )  # fmt: skip
    monkeypatch.setenv(patience.VARIABLE, "0.2")
    config = tiny_config(f"data.sources=[{path}]", "data.segment_seconds=2", f"run_dir={tmp_path}/run")
    source, began = rows_of(find_sources(config))[0], []
    real = LocalFile.read_at

    def read_at(self, num_bytes, offset):
        if began:
            raise OSError(error, os.strerror(error))
        return real(self, num_bytes, offset)

    monkeypatch.setattr(LocalFile, "read_at", read_at)
    rows = SourceDecoder(config).rows(source)
    while not isinstance(next(rows), dict):
        pass
    began.append(True)
    with pytest.raises(StorageUnavailable, match=f"reading .*film.{ending} failed"):
        list(rows)
    began.clear()

    def failing(part):
        began.append(isinstance(part, dict))
        return part

    decoder = SimpleNamespace(rows=lambda source: map(failing, SourceDecoder(config).rows(source)))
    with pytest.raises(StorageUnavailable):
        process_unit(config, str(tmp_path / "data"), WorkUnit("unit", (source,)), decoder)
    assert not list((tmp_path / "data").glob("rejects/*")) and not list((tmp_path / "data").glob("units/*"))


def test_a_request_to_stop_is_not_lost_while_a_file_is_read(tmp_path, monkeypatch):
    """If a callback of PyAV raises something that is no Exception, PyAV drops it."""
    path = make_film(tmp_path / "film.mkv", times=regular(25, 2), sound_to=2)

    def stopped(self, num_bytes, offset):
        raise Stopped("stop")

    monkeypatch.setattr(LocalFile, "read_at", stopped)
    with pytest.raises(Stopped):
        read_clip(path, **SMALL)


class _Shrinking(LocalFile):
    """A file that is cut to 10 bytes by the first read."""

    def read_at(self, num_bytes, offset):
        os.truncate(self._file.name, 10)
        return super().read_at(num_bytes, offset)


def test_ends_of_files_are_distinguished_from_storage_that_gives_nothing(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(range(100)))
    file = PatientFile(lambda: LocalFile(path), "file")
    assert file.read_at(90, 50) == bytes(range(90, 100))
    assert file.read_at(100, 5) == file.read_at(500, 5) == b""
    empty = [True]

    class Forgetful(LocalFile):
        def read_at(self, num_bytes, offset):
            return b"" if empty and empty.pop() else super().read_at(num_bytes, offset)

    assert PatientFile(lambda: Forgetful(path), "file").read_at(50, 10) == bytes(range(50, 60))
    assert PatientFile(lambda: _Shrinking(path), "file").read_at(0, 100) == bytes(range(10))
    file.close()
    with pytest.raises(ValueError, match="file is closed"):
        file.read_at(0, 1)


def test_what_failed_tries_and_the_pauses_after_them_took_is_reported(monkeypatch):
    told, now = [], [100.0]

    def sleep(seconds):
        now[0] += 3.0

    monkeypatch.setattr(patience, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=sleep))
    failures = [OSError(errno.EIO, ""), OSError(errno.EIO, "")]

    def act():
        now[0] += 1.0
        if failures:
            raise failures.pop()

    patience.patiently(act, "reading x", told.append)
    assert told == [4.0, 4.0]


def test_waiting_for_storage_is_not_time_for_decoding(monkeypatch):
    """Waiting has a limit of its own."""
    watch = Watch(deadline_seconds=0.5)
    clock = iter([0.0, 0.4, 30.4, 30.6])
    monkeypatch.setattr("proav.media.opening.time", SimpleNamespace(monotonic=lambda: next(clock)))
    watch.start("a.mp4")
    watch.sign()
    watch.add(30.0)
    watch.sign()
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


class _Server(http.server.BaseHTTPRequestHandler):
    """What both servers share: they differ in `_answer`."""

    folder, lock = "", threading.Lock()

    def do_HEAD(self):
        self._answer(body=False)

    def do_GET(self):
        self._answer(body=True)

    def _content(self) -> bytes:
        return Path(self.folder, os.path.basename(self.path)).read_bytes()

    def log_message(self, *_):
        pass


class _FlakyServer(_Server):
    """A store that fails for `away_seconds` after the first request for a file.

    It answers such requests with 503. If `silent`, it waits instead, at most 10 s, and then answers.
    """

    away_seconds, silent, began, num_faults = 0.0, False, None, 0

    def _answer(self, body: bool) -> None:
        data, kind = self._content(), type(self)
        with self.lock:
            if body and kind.began is None:
                kind.began = time.monotonic()
            fails = body and time.monotonic() - kind.began < kind.away_seconds
            kind.num_faults += fails
        if fails and kind.silent:
            time.sleep(min(kind.away_seconds, 10))
            fails = False
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


@contextlib.contextmanager
def serving(folder, *, kind=_FlakyServer, **own):
    """Yields (URL of film.mp4 in the folder, the handler's class). own: attributes of the handler's class."""
    handler = type("Handler", (kind,), {"folder": str(folder), "lock": threading.Lock(), **own})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/film.mp4", handler
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("silent", [False, True])
def test_decoding_processes_wait_for_a_store_and_tell_where_it_stays_away(tmp_path, monkeypatch, silent):
    """Waiting does not count as standing still, even if it lasts longer than data.stall_seconds."""
    (tmp_path / "there").mkdir()
    path = make_film(tmp_path / "there" / "film.mp4", times=regular(10, 4), sound_to=4)
    config = tiny_config(f"data.sources=[{path}]", "data.stall_seconds=2")
    source = rows_of(find_sources(config))[0]
    expected = list(SourceDecoder(config).rows(source))
    server = serving(tmp_path / "there", away_seconds=5, silent=silent)
    with server as (url, handler), IsolatedDecoder(config) as decoder:
        found = list(decoder.rows(replace(source, path=url)))
        # compared as texts, since NaN does not equal itself
        assert handler.num_faults and repr(found) == repr(expected)
    monkeypatch.setenv(patience.VARIABLE, "0.3")
    monkeypatch.setattr(isolation, "MAX_TRIES", 10)  # a process that is slow for a moment is asked again
    server = serving(tmp_path / "there", away_seconds=1e6, silent=silent)
    with server as (url, _), IsolatedDecoder(config) as decoder:
        with pytest.raises(StorageUnavailable, match="run the same command again"):
            list(decoder.rows(replace(source, path=url)))


class _WholeFiles(_Server):
    """Sends whole files only; without their length if `chunked`, and refuses all but the first if `shy`."""

    protocol_version, chunked, shy, num_sent = "HTTP/1.1", False, False, 0

    def _answer(self, body: bool) -> None:
        data, kind = self._content(), type(self)
        kind.num_sent += body
        refused = body and self.shy and kind.num_sent > 1
        self.send_response(403 if refused else 200)
        self.send_header("Connection", "close")
        if self.chunked:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", "0" if refused else str(len(data)))
        self.end_headers()
        if body and not refused:
            with contextlib.suppress(ConnectionError):  # the reader may have enough
                self.wfile.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data) if self.chunked else data)


@pytest.fixture(scope="module")
def long_film(tmp_path_factory):
    """A folder with a film that is longer than the first block that fsspec reads."""
    folder = tmp_path_factory.mktemp("long")
    make_film(
        folder / "film.mp4", times=regular(25, 4), sound_to=4, video="mpeg4", bit_rate=40_000_000,
        paint=lambda time: np.tile(_noise(time), (4, 4, 1)), size=(256, 320),
    )  # fmt: skip
    assert (folder / "film.mp4").stat().st_size > 7 << 20
    return folder


@pytest.mark.parametrize("chunked", [False, True])
def test_a_server_that_sends_only_whole_files_is_reported(long_film, chunked):
    said = "film.mp4 cannot be read .*: its server does not send parts of files; copy the file first"
    with serving(long_film, kind=_WholeFiles, chunked=chunked) as (url, _):
        with pytest.raises(MediaError, match=said) as raised:
            read_clip(url, **SMALL)
    assert raised.value.reason == "unreadable"


def test_a_server_that_refuses_a_later_part_is_storage_that_fails(long_film):
    with serving(long_film, kind=_WholeFiles, shy=True) as (url, _):
        with pytest.raises(StorageUnavailable, match="reading .*film.mp4 failed .*403.*run the same command"):
            read_clip(url, **SMALL)


def test_an_address_of_an_unknown_kind_is_a_mistake():
    said = "cannot open nowhere://a.mp4"
    with pytest.raises(UserError, match=said) as raised, opened("nowhere://a.mp4", Watch()):
        pass
    assert type(raised.value) is UserError


def test_an_open_file_is_left_where_it_was_and_one_at_its_end_is_reported(tmp_path):
    make_clip(1, seconds=1.0).save(str(tmp_path / "clip.mp4"))
    with open(tmp_path / "clip.mp4", "rb") as file:
        with pytest.raises(RuntimeError), opened(file, Watch()):
            raise RuntimeError
        assert file.tell() == 0 and len(read_clip(file, **SMALL).video) == 10
        file.seek(0, os.SEEK_END)
        with pytest.raises(MediaError, match="has been read to its end"), opened(file, Watch()):
            pass


@pytest.mark.parametrize("ending", ["mp4", "avi", "mkv"])
def test_places_in_a_given_file_count_from_where_its_media_begin(tmp_path, ending):
    path = make_film(tmp_path / f"film.{ending}", times=regular(25, 4), sound_to=4, flashes=(1, 3))
    span = SMALL | {"start_seconds": 2.5, "num_frames": 10}
    expected = read_clip(path, **span)
    file = io.BytesIO(bytes(5000) + Path(path).read_bytes())
    file.seek(5000)
    clip = read_clip(file, **span)
    assert np.array_equal(clip.video, expected.video) and np.array_equal(clip.audio, expected.audio)
