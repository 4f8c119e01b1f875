"""Storage that fails for a moment is tried again; lasting errors and damage are reported as such."""

import errno
import os
import pickle
from types import SimpleNamespace

import aiohttp
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
import requests
from fsspec.registry import register_implementation

from bench.helpers.flaky_storage import FlakyFileSystem
from proav import storage
from proav.data.store.parquet import DamagedShard, RowReader, write_shard
from proav.errors import StorageUnavailable, UserError
from proav.runs.checkpoint import list_checkpoints, load_checkpoint
from proav.storage import patience
from proav.storage.filesystems import PatientHandler
from tests.tiny import save_tiny_mdsa, tiny_config

SCHEMA = pa.schema([("name", pa.string()), ("data", pa.large_binary())])


@pytest.fixture
def flaky(tmp_path, monkeypatch):
    """(URI of a folder whose calls fail one time in four, its local path).

    Each fault adds a line to the file `faults` beside the folder.
    """
    register_implementation("flaky", FlakyFileSystem, clobber=True)
    monkeypatch.setattr(patience, "FIRST_PAUSE", 0.001)
    monkeypatch.setenv("FLAKY_ONE_IN", "4")
    monkeypatch.setenv("FLAKY_LOG", str(tmp_path / "faults"))
    return f"flaky://{tmp_path}/there", tmp_path / "there"


def failing(times, error):
    left = [error] * times

    def act():
        if left:
            raise left.pop()
        return "done"

    return act


@pytest.mark.parametrize(
    "error",
    [
        TimeoutError(errno.ETIMEDOUT, "timed out"),
        OSError(errno.EIO, "input/output error"),
        OSError(errno.ESTALE, "stale"),
        ConnectionResetError(),
        OSError("AWS Error UNKNOWN (HTTP status 503) during PutObject operation"),
        OSError("AWS Error SLOW_DOWN during PutObject operation"),
        OSError("AWS Error UNKNOWN (HTTP status 429)"),
    ],
)
def test_what_may_pass_is_tried_again(error, monkeypatch, capsys):
    monkeypatch.setattr(patience, "FIRST_PAUSE", 0.001)
    assert patience.patiently(failing(3, error), "reading x") == "done"
    said = capsys.readouterr().err
    assert "reading x failed" in said and "for up to 120 s" in said and "succeeded after 3 failures" in said


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError("no such key"),
        PermissionError(errno.EACCES, "permission denied"),
        OSError(errno.ENOSPC, "no space left"),
        OSError(errno.ENOSYS, "function not implemented"),
        OSError(errno.EILSEQ, "invalid or incomplete multibyte or wide character"),
        OSError(errno.EMLINK, "too many links"),
        OSError("AWS Error UNKNOWN (HTTP status 301) during HeadObject operation"),
        OSError("AWS Error ACCESS_DENIED during HeadObject operation"),
        OSError("AWS Error NO_SUCH_BUCKET during PutObject operation"),
        OSError("AWS Error UNKNOWN (HTTP status 400)"),
        ValueError("a defect"),
    ],
)
def test_what_stays_is_reported_at_once(error):
    with pytest.raises(type(error)) as raised:
        patience.patiently(failing(1, error), "reading x")
    assert raised.value is error


@pytest.mark.parametrize("name", ["forbidden city", "it's forbidden", "dogs' forbidden bone", "no such key"])
def test_names_do_not_say_whether_an_error_passes(name):
    arrow = f"When reading information for key 'clips/{name}.mp4' in bucket 'b': AWS Error "
    assert patience.may_pass(OSError(f"{arrow}NETWORK_CONNECTION: Timeout was reached"))
    assert not patience.may_pass(OSError(f"{arrow}ACCESS_DENIED during HeadObject operation"))
    assert patience.may_pass(OSError(f'cannot reach "{name}" at https://h/forbidden'))
    assert not patience.may_pass(OSError(f"can't open '{name}': access denied, and it won't change"))


def test_an_apostrophe_in_a_name_does_not_end_it():
    assert patience.may_pass(OSError("cannot reach 'it's forbidden.mp4'"))


def of_botocore(name, message, **fields):
    """An error of botocore, which is not installed here."""
    error = type(name, (Exception,), {"__module__": "botocore.exceptions"})(message)
    error.__dict__.update(fields)
    return error


def answer(status, library):
    """An error for an HTTP answer, as a client library makes it."""
    if library == "aiohttp":
        asked = SimpleNamespace(real_url="http://h/x.mp4")
        return aiohttp.ClientResponseError(asked, (), status=status, message="Forbidden")
    if library == "requests":
        response = requests.Response()
        response.status_code = status
        return requests.HTTPError("for url: http://h/forbidden.mp4", response=response)
    return of_botocore("ClientError", "", response={"ResponseMetadata": {"HTTPStatusCode": status}})


@pytest.mark.parametrize("library", ["aiohttp", "requests", "botocore"])
def test_the_status_of_an_answer_says_whether_an_error_passes(library):
    passing = [status for status in range(300, 505) if patience.may_pass(answer(status, library))]
    assert passing == [408, 409, 429, *range(500, 505)]


def test_what_client_libraries_refuse_is_raised_at_once_as_an_error_of_the_operating_system():
    assert patience.may_pass(aiohttp.ServerDisconnectedError())
    for error in (answer(403, "aiohttp"), of_botocore("NoCredentialsError", "Unable to locate credentials")):
        with pytest.raises(PermissionError, match="reading x was refused: ") as raised:
            patience.patiently(failing(1, error), "reading x")
        assert raised.value.__cause__ is error and str(error) in str(raised.value)


def test_patience_ends_as_a_failure_and_not_as_a_mistake(monkeypatch):
    monkeypatch.setenv(patience.VARIABLE, "0.3")
    with pytest.raises(
        StorageUnavailable, match=r"reading x failed .* times in \d+ s.*job.retry_seconds=0.3"
    ) as raised:
        patience.patiently(failing(999, TimeoutError("late")), "reading x")
    assert not isinstance(raised.value, UserError | OSError)
    assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)


def test_files_of_a_flaky_store_are_whole(flaky):
    uri, local = flaky
    for number in range(12):
        storage.write_text(f"{uri}/a/{number:02d}.txt", "x" * number)
    assert [len(storage.read_text(path)) for path in storage.list_files(f"{uri}/a")] == list(range(12))
    storage.delete_file(f"{uri}/a/03.txt")
    assert len(list(local.glob("a/*.txt"))) == 11 and not storage.exists(f"{uri}/a/03.txt")
    storage.delete_folder(f"{uri}/a")
    assert not (local / "a").exists()
    assert (
        len((local.parent / "faults").read_text().splitlines()) >= 5
    )  # at least 60 calls; only one run in 10,000 has fewer faults than this


def test_a_file_that_cannot_be_looked_at_is_not_missing(flaky):
    """pyarrow asks fsspec whether a file is there, and fsspec takes a time-out for a no."""
    uri, local = flaky
    local.mkdir()
    (local / "latest").write_text("x")
    for _ in range(60):
        assert storage.read_text(f"{uri}/latest") == "x" and storage.exists(f"{uri}/latest")
    with pytest.raises(FileNotFoundError):
        storage.read_text(f"{uri}/absent")


def test_a_listing_that_fails_is_not_an_empty_folder(flaky, monkeypatch):
    """fsspec leaves out folders that it cannot read.

    Checkpoints would then seem gone, and training would begin again.
    """
    uri, local = flaky
    save_tiny_mdsa(str(local / "checkpoints"), tiny_config())
    for _ in range(20):
        assert len(list_checkpoints(f"{uri}/checkpoints")) == 1
    monkeypatch.setenv("FLAKY_ONE_IN", "1")
    monkeypatch.setenv(patience.VARIABLE, "0.01")
    with pytest.raises(StorageUnavailable, match="listing"):
        list_checkpoints(f"{uri}/checkpoints")


def test_checkpoints_and_rows_come_through_a_flaky_store(flaky):
    uri, _ = flaky
    path = save_tiny_mdsa(f"{uri}/checkpoints", tiny_config())
    assert load_checkpoint(f"{uri}/checkpoints", kind="mdsa").path == path
    rows = [{"name": f"{n}", "data": os.urandom(1000 + n)} for n in range(20)]
    result = write_shard(f"{uri}/rows/a.parquet", rows, SCHEMA)
    reader = RowReader(f"{uri}/rows", digests={"a.parquet": result["sha256"]})
    assert [bytes(reader.read("a.parquet", n, ("data",))["data"]) for n in range(20)] == [
        row["data"] for row in rows
    ]


def test_a_patient_file_system_reads_what_the_plain_one_reads(tmp_path):
    plain = pafs.LocalFileSystem()
    patient = pickle.loads(pickle.dumps(pafs.PyFileSystem(PatientHandler(plain))))
    table = pa.table({"a": list(range(1000)), "b": [os.urandom(50) for _ in range(1000)]})
    with patient.open_output_stream(f"{tmp_path}/x.parquet") as stream:
        pq.write_table(table, stream, row_group_size=10)
    for pre_buffer in (False, True):  # pre-buffering reads from several threads
        assert (
            pq.ParquetFile(patient.open_input_file(f"{tmp_path}/x.parquet"), pre_buffer=pre_buffer)
            .read()
            .equals(table)
        )
    ours, theirs = (system.get_file_info(f"{tmp_path}/x.parquet") for system in (patient, plain))
    assert (ours.type, ours.size) == (theirs.type, theirs.size)
    with pytest.raises(FileNotFoundError):
        patient.open_input_stream(f"{tmp_path}/absent")


def test_only_bytes_that_stay_wrong_are_damage(tmp_path, monkeypatch):
    rows = [{"name": f"{n}", "data": os.urandom(1000)} for n in range(4)]
    result = write_shard(f"{tmp_path}/a.parquet", rows, SCHEMA)
    reader = RowReader(str(tmp_path), digests={"a.parquet": result["sha256"]})
    monkeypatch.setattr(reader, "_read", once_wrong(reader._read))
    assert bytes(reader.read("a.parquet", 1, ("data",))["data"]) == rows[1]["data"]  # read again, and right
    whole = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(whole[:-100])
    with pytest.raises(DamagedShard, match="a.parquet is damaged.*delete that file"):
        RowReader(str(tmp_path), digests={"a.parquet": result["sha256"]}).read("a.parquet", 1, ("data",))


def once_wrong(read):
    calls = []

    def wrong_at_first(*arguments):
        calls.append(arguments)
        if len(calls) == 1:
            raise OSError("Couldn't deserialize thrift")
        return read(*arguments)

    return wrong_at_first


def test_a_rename_whose_answer_was_lost_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(patience, "FIRST_PAUSE", 0.001)
    real, calls = os.replace, []

    def renames_and_fails(source, target):
        calls.append(source)
        real(source, target)
        if len(calls) == 1:
            raise OSError(errno.EIO, "the answer was lost")

    monkeypatch.setattr(os, "replace", renames_and_fails)
    storage.write_text(f"{tmp_path}/x.txt", "new")
    assert (tmp_path / "x.txt").read_text() == "new" and len(calls) == 2
