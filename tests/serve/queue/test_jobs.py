"""Jobs on disk: what is written comes back, whatever else lies in the folder."""

import io
import json
import time
import zipfile

import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from pyarrow.fs import FileSelector

from proav import storage
from proav.errors import StorageUnavailable, UserError
from proav.serve.front.api_error import ApiError
from proav.serve.orders.requests import Order
from proav.serve.queue.jobs import (
    GROWTH_BYTES,
    MAX_INDEX_BYTES,
    Job,
    JobError,
    JobStore,
    check_writable,
    new_id,
    place_of,
)
from proav.vectors import to_text

PICTURES = np.arange(48, dtype=np.uint8).reshape(1, 4, 4, 3)


def make_job(**order):
    order = Order(
        **{
            "prompt": "Rain \ud800",
            "label": "rain",
            "task": "joint",
            "seed": 2**53 - 1,
            "steps": 3,
            "guidance_scale": 1.5,
            **order,
        }
    )
    return Job(
        id=new_id(), order=order, model="tiny", size="32x32", seconds="0.8", checkpoint="abc", created=100.25
    )


def test_a_job_comes_back_as_it_was(tmp_path):
    store, job = JobStore(str(tmp_path)), make_job()
    job.finish(200.0, 50.0, JobError(code="sampling_failed", message="no"))
    store.create(job, None)
    assert JobStore(str(tmp_path)).load() == [job]


@pytest.mark.parametrize(
    ("task", "given"),
    [
        ("a2v", {"audio": np.arange(8, dtype=np.float32)}),
        ("v2a", {"video": PICTURES}),
        ("inpaint", {"video": PICTURES, "audio": np.ones(4, np.float32)}),
    ],
)
def test_what_was_given_comes_back(tmp_path, task, given):
    store, job = JobStore(str(tmp_path)), make_job(task=task)
    store.create(job, given)
    back = store.read_given(job)
    assert back.keys() == given.keys()
    assert all(array.dtype == given[name].dtype for name, array in back.items())
    assert all(np.array_equal(array, given[name]) for name, array in back.items())


def test_jobs_are_loaded_oldest_first_and_damaged_ones_are_reported(tmp_path, caplog):
    store = JobStore(str(tmp_path))
    jobs = [make_job() for _ in range(3)]
    for job, created in zip(jobs, (3.0, 1.0, 2.0), strict=True):
        job.created = created
        store.create(job, None)
    (tmp_path / "video_damaged").mkdir()
    (tmp_path / "video_damaged" / "job.json").write_text('{"id": ')
    (tmp_path / "notes.txt").write_text("not a job")
    assert [job.created for job in store.load()] == [1.0, 2.0, 3.0]
    assert "video_damaged" in caplog.text


def changed(job, **fields):
    return json.dumps({**job.model_dump(mode="json"), **fields})


HUGE = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000000,), }"
DAMAGED = {
    "brackets": lambda job: "[" * 10_000,
    "nested": lambda job: '{"id":' * 100_000,
    "nothing": lambda job: "",
    "not a record": lambda job: "[1, 2]",
    "not text": lambda job: b"\xff\xfe{}",
    "created NaN": lambda job: changed(job, created=float("nan")),
    "created infinite": lambda job: changed(job).replace("100.25", "1e999"),
    "created long ago": lambda job: changed(job, created=-1e300),
    "expires NaN": lambda job: changed(job, expires=float("nan")),
    "guidance NaN": lambda job: changed(job).replace('"guidance_scale": 1.5', '"guidance_scale": NaN'),
    "unknown task": lambda job: changed(job).replace('"joint"', '"delete"'),
    "completed, but when": lambda job: changed(job, status="completed"),
    "failed without an error": lambda job: changed(job, status="failed", completed=1.0),
    "many digits": lambda job: changed(job, progress=7).replace(": 7,", f": {'7' * 10_000},"),
    "twenty megabytes": lambda job: changed(job, model="x" * 20 * 2**20),
    "of another": lambda job: changed(job, id=new_id(1.0)),
    "of the folder above": lambda job: changed(job, id=".."),
    "of a path": lambda job: changed(job, id=f"../{job.id}"),
    "of no id": lambda job: changed(job, id="video_brackets"),
    "of all": lambda job: changed(job, id=""),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_record_is_left_alone(tmp_path, caplog, kind):
    """It stops nothing and is not listed. It stays, so that somebody can look at it."""
    store, good, bad = JobStore(str(tmp_path)), make_job(), make_job()
    for job in (good, bad):
        store.create(job, None)
    damaged = DAMAGED[kind](bad)
    data = damaged if isinstance(damaged, bytes) else damaged.encode()
    (tmp_path / bad.id / "job.json").write_bytes(data)
    assert store.load() == [good] and bad.id in caplog.text and len(caplog.text) < 2000
    assert (tmp_path / bad.id / "job.json").read_bytes() == data


def test_a_record_whose_disk_fails_for_long_is_left_alone(tmp_path, caplog, monkeypatch):
    store, good, bad = JobStore(str(tmp_path)), make_job(), make_job()
    for job in (good, bad):
        store.create(job, None)
    read_bytes = storage.read_bytes

    def read(path):
        if bad.id in path:
            raise StorageUnavailable(f"reading {path} failed 20 times")
        return read_bytes(path)

    monkeypatch.setattr(storage, "read_bytes", read)
    assert store.load() == [good] and bad.id in caplog.text and "failed 20 times" in caplog.text


def test_an_order_is_refused_if_no_later_server_would_read_it(tmp_path):
    """Each of these letters takes 6 bytes in job.json."""
    store, audio, most = JobStore(str(tmp_path)), np.zeros(4, np.float32), MAX_INDEX_BYTES - GROWTH_BYTES
    size = len(json.dumps(make_job(texts={"caption": ""}, task="a2v").model_dump(mode="json")))
    fitting = "\u96e8" * ((most - size) // 6)
    large = make_job(texts={"caption": fitting + "\u96e8"}, task="a2v")
    with pytest.raises(ApiError, match=rf"[0-9]+ are for texts .*expected at most {most} in all") as refused:
        store.create(large, {"audio": audio})
    assert (refused.value.status, refused.value.param) == (400, "vectors") and not list(tmp_path.iterdir())
    with pytest.raises(ApiError, match=r"22369\d{3} for vectors; .*leave some vectors out"):
        store.create(make_job(vectors={"caption": to_text(np.zeros((1024, 4096), np.float32))}), None)
    job = make_job(texts={"caption": fitting}, task="a2v")
    store.create(job, {"audio": audio})
    job.finish(200.123456, 50.0, JobError(code="sampling_failed", message="\u96e8" * 500))
    store.save(job)
    assert store.load() == [job]


def test_a_record_in_a_folder_below_is_left_alone(tmp_path):
    """If it were deleted, the folder of the same name above would be removed."""
    store, job = JobStore(str(tmp_path)), make_job()
    store.create(job, None)
    JobStore(str(tmp_path / "copy")).create(job, None)
    assert store.load() == [job]
    assert JobStore(f"file://{tmp_path}/").load() == [job]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x93NUMPY",
        b"PK\x03\x04",
        b"\x93NUMPY\x01\x00\x76\x00" + HUGE.ljust(117) + b"\n",
        b"\x93NUMPY\x01\x00\x76\x00" + HUGE.replace(b"0" * 15, b"0" * 30).ljust(117) + b"\n",
        b"\x93NUMPY\x01\x00\x00\x20" + (b"(" * 8000).ljust(8191) + b"\n",
    ],
)
def test_a_damaged_given_stream_is_reported(tmp_path, data):
    store, job = JobStore(str(tmp_path)), make_job(task="a2v")
    store.create(job, None)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as files:
        files.writestr("audio.npy", data)
    for damaged in (data, archive.getvalue(), archive.getvalue()[:-10]):
        (tmp_path / job.id / "given.npz").write_bytes(damaged)
        with pytest.raises(ValueError):
            store.read_given(job)


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA, 99])
def test_a_changed_method_of_compression_is_reported(tmp_path, method):
    """One byte of the archive's directory says how its files are packed."""
    store, job = JobStore(str(tmp_path)), make_job(task="a2v")
    store.create(job, {"audio": np.zeros(12_800, np.float32)})
    path = tmp_path / job.id / "given.npz"
    data = bytearray(path.read_bytes())
    data[data.rindex(b"PK\x01\x02") + 10] = method
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"given\.npz is damaged"):
        store.read_given(job)


def test_an_order_that_cannot_be_written_leaves_nothing(tmp_path):
    store, job = JobStore(str(tmp_path)), make_job(task="a2v")
    (tmp_path / job.id / "job.json").mkdir(parents=True)  # in the way of the record
    with pytest.raises(UserError, match="cannot write .*job.json"):
        store.create(job, {"audio": np.zeros(4, np.float32)})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("scheme", ["", "memory://"])
def test_folders_of_jobs_without_a_record_are_deleted_on_loading(tmp_path, scheme):
    """A server was killed between the two files of an order, or while it deleted a job."""
    folder = f"{scheme}{tmp_path}"
    store, job = JobStore(folder), make_job()
    store.create(job, None)
    for name in ("given.npz", "video.mp4", ".given.npz.0a1b2c3d.tmp"):
        storage.write_text(f"{folder}/{new_id()}/{name}", "cut off")
    storage.make_folder(f"{folder}/{new_id()}")
    for kept in ("video_mine/given.npz", f"mine/{new_id()}/given.npz", "video_00.mp4"):
        storage.write_text(f"{folder}/{kept}", "of somebody else")
    assert store.load() == [job]
    filesystem, inner = storage.open_filesystem(folder)
    left = {found.base_name for found in filesystem.get_file_info(FileSelector(inner))}
    assert left == {job.id, "video_mine", "mine", "video_00.mp4"}
    assert storage.exists(f"{folder}/video_mine/given.npz") and len(storage.list_files(f"{folder}/mine")) == 1


def test_deleting_removes_all_of_a_job(tmp_path):
    store, job = JobStore(str(tmp_path)), make_job()
    store.create(job, None)
    store.save_video(job.id, b"mp4")
    store.delete(job.id)
    store.delete(job.id)
    assert list(tmp_path.iterdir()) == [] and store.load() == []


def test_a_folder_that_cannot_be_written_is_reported(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="jobs_dir=DIR"):
        check_writable(str(tmp_path / "file" / "jobs"))
    check_writable(str(tmp_path / "jobs"))
    assert list((tmp_path / "jobs").iterdir()) == []


def test_a_bucket_where_nothing_may_be_deleted_is_reported(monkeypatch):
    def refused(*_, **__):
        raise OSError("AWS Error ACCESS_DENIED during\nDeleteObject operation")

    monkeypatch.setattr(MemoryFileSystem, "rm", refused)
    with pytest.raises(UserError, match="cannot delete memory://.*during DeleteObject .*jobs_dir=DIR"):
        check_writable("memory://undeletable/jobs")


def test_the_public_object_has_openais_fields_and_ours():
    job = make_job()
    shown = job.to_json(queue_position=2)
    assert (shown["object"], shown["status"], shown["progress"], shown["queue_position"]) == (
        "video",
        "queued",
        0,
        2,
    )
    assert (shown["created_at"], shown["expires_at"], shown["label"], shown["seed"], shown["error"]) == (
        100,
        None,
        "rain",
        2**53 - 1,
        None,
    )
    job.finish(160.0, 40.0)
    shown = job.to_json()
    assert (
        shown["status"],
        shown["progress"],
        shown["completed_at"],
        shown["expires_at"],
        shown["seconds_taken"],
    ) == (
        "completed",
        100,
        160,
        200,
        59.75,
    )


def test_an_id_says_when_its_job_was_made():
    for created in (0.0, 100.25, 1_790_000_000.123456, round(time.time(), 6)):
        job_id = new_id(created)
        assert place_of(job_id) == (created, job_id) and new_id(created) != job_id
    assert place_of("video_" + "0" * 24) is None and place_of("video_../x") is None
