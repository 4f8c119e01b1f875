"""Decoding processes that really die: they are killed, they are stopped, or their parent dies."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from proav.config.reading import config_to_dict
from proav.data.prepare.isolation import IsolatedDecoder
from proav.data.prepare.plan import make_plan
from proav.data.prepare.source_decoder import SourceDecoder
from proav.data.prepare.unit import process_unit
from proav.data.sources.finding import find_sources, rows_of
from proav.data.store.shards import read_rejects
from proav.errors import MediaError
from tests.synthetic_clips import make_clip
from tests.tiny import tiny_config

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A clip of 40 s, which leaves time to kill its decoder, a clip of 2 s, and a text."""
    root = tmp_path_factory.mktemp("sources")
    make_clip(1, seconds=40.0, height=240, width=320).save(str(root / "long.mp4"))
    make_clip(2, seconds=2.0).save(str(root / "short.mp4"))
    (root / "text.mp4").write_text("this is no video")
    return tiny_config(f"data.sources=[{root}]", "data.stall_seconds=60")


@pytest.fixture(scope="module")
def sources(config):
    return {row.key.rsplit("/", 1)[-1]: row for row in rows_of(find_sources(config))}


@pytest.fixture(scope="module")
def decoder(config):
    with IsolatedDecoder(config) as decoder:
        yield decoder


def segments(parts) -> list[dict]:
    return [part for part in parts if isinstance(part, dict)]


def strike_after(decoder, rows, number, blow) -> list[dict]:
    """Takes all rows and sends a signal once to each decoding process.

    decoder: the `IsolatedDecoder` whose process is hit.
    rows: its rows of one source.
    number: the signal is sent only after this many rows, of all tries together.
    blow: the signal, such as signal.SIGSEGV.
    """
    taken, struck = [], set()
    for row in rows:
        taken.append(row)
        pid = decoder._process.pid
        if len(taken) >= number and pid not in struck:
            struck.add(pid)
            os.kill(pid, blow)
    return taken


def test_rows_are_those_of_this_process(config, decoder, sources):
    for name in ("short.mp4", "long.mp4"):
        # compared as texts, since NaN does not equal itself
        assert repr(list(decoder.rows(sources[name]))) == repr(
            list(SourceDecoder(config).rows(sources[name]))
        )
    process = decoder._process
    with pytest.raises(MediaError, match="cannot be opened") as error:
        list(decoder.rows(sources["text.mp4"]))
    assert error.value.reason == "unreadable" and decoder._process is process  # no new process


def test_one_death_loses_nothing_and_doubles_nothing(config, decoder, sources, capfd):
    whole = [row["id"] for row in segments(SourceDecoder(config).rows(sources["long.mp4"]))]
    taken, killed = [], False
    for part in decoder.rows(sources["long.mp4"]):
        taken += [row["id"] for row in segments([part])]
        if len(taken) == 3 and not killed:
            killed = True
            os.kill(decoder._process.pid, signal.SIGKILL)
    assert killed and taken == whole
    assert "long.mp4: the decoder died of SIGKILL (try 1 of 2)" in capfd.readouterr().err


def test_a_source_that_kills_its_decoder_is_set_aside_and_its_neighbours_are_not(
    config, decoder, sources, tmp_path
):
    """The decoder dies twice on the same source, as with a file that crashes it."""
    (unit,) = [
        unit for unit in make_plan(find_sources(config)).units() if unit.sources[0] == sources["long.mp4"]
    ]
    unit = type(unit)("000000", (sources["short.mp4"], sources["long.mp4"], sources["text.mp4"]))

    class Struck:
        def rows(self, source):
            return (
                iter(strike_after(decoder, decoder.rows(source), 2, signal.SIGSEGV))
                if source == sources["long.mp4"]
                else decoder.rows(source)
            )

    record = process_unit(config, str(tmp_path), unit, Struck())
    rejects = {row["source"].rsplit("/", 1)[-1]: row for row in read_rejects(str(tmp_path)).to_pylist()}
    assert {name: row["reason"] for name, row in rejects.items()} == {
        "long.mp4": "crash",
        "text.mp4": "unreadable",
    }
    assert "died of SIGSEGV, 2 times" in rejects["long.mp4"]["message"] and record["rejects"]["rows"] == 2
    assert sum(shard["rows"] for shard in record["shards"]) >= 1


def test_a_decoder_that_stands_still_is_ended(config, sources):
    quick = config.model_copy(update={"data": config.data.model_copy(update={"stall_seconds": 1})})
    began = time.monotonic()
    with IsolatedDecoder(quick) as decoder:
        with pytest.raises(MediaError, match="got no further for 1 s, 2 times") as error:
            strike_after(decoder, decoder.rows(sources["long.mp4"]), 1, signal.SIGSTOP)
        assert error.value.reason == "hang" and time.monotonic() - began < 60
        decoder.config = config  # which allows longer pauses
        assert len(segments(decoder.rows(sources["short.mp4"]))) == 1


def test_a_process_that_does_not_start_is_reported(config, sources, monkeypatch):
    long = config.model_copy(update={"data": config.data.model_copy(update={"sources": ("x" * 2_000_000,)})})
    for program in ("/no/such/python", "/bin/false"):  # the second dies while the settings are sent
        monkeypatch.setattr(sys, "executable", program)
        with IsolatedDecoder(long) as decoder, pytest.raises(RuntimeError, match="did not start: .*"):
            list(decoder.rows(sources["short.mp4"]))


def test_stopping_in_the_middle_of_a_source_ends_the_process(config, sources):
    with IsolatedDecoder(config) as decoder:
        rows = decoder.rows(sources["long.mp4"])
        next(rows)
        process = decoder._process
        rows.close()
        assert process.poll() is not None
        assert len(segments(decoder.rows(sources["short.mp4"]))) == 1


def test_modules_of_the_folder_that_a_worker_stands_in_do_not_come_first(config, tmp_path):
    """A submitted job runs in a folder of the user. There proav may be importable by sys.path alone."""
    (tmp_path / "random.py").write_text("raise SystemExit('the wrong random')")
    script = f"""
        import json, os, sys
        sys.path.append({str(ROOT)!r})
        from proav.data.prepare.isolation import IsolatedDecoder
        from proav.data.sources.finding import find_sources, rows_of
        from proav.config.reading import config_from_dict
        os.chdir({str(tmp_path)!r})
        config = config_from_dict(json.loads('''{json.dumps(config_to_dict(config))}'''))
        (short,) = [row for row in rows_of(find_sources(config)) if row.key.endswith("short.mp4")]
        with IsolatedDecoder(config) as decoder:
            print(sum(isinstance(part, dict) for part in decoder.rows(short)))
    """
    done = subprocess.run(
        [sys.executable, "-P", "-c", textwrap.dedent(script)],
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "1\n", done.stderr


def test_the_decoder_dies_with_its_parent(config):
    script = f"""
        import json, os
        from proav.data.prepare.isolation import IsolatedDecoder
        from proav.data.sources.finding import find_sources, rows_of
        from proav.config.reading import config_from_dict
        config = config_from_dict(json.loads('''{json.dumps(config_to_dict(config))}'''))
        decoder = IsolatedDecoder(config)
        rows = decoder.rows(rows_of(find_sources(config))[0])
        next(rows)
        print(decoder._process.pid, flush=True)
        os.kill(decoder._process.pid, 19)  # SIGSTOP: a stopped decoder dies too
        os.kill(os.getpid(), 9)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=60
    )
    pid = int(done.stdout.split()[-1])
    deadline = time.monotonic() + 30
    with contextlib.suppress(psutil.NoSuchProcess):
        while psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline, "the decoder outlived its parent"
            time.sleep(0.05)
