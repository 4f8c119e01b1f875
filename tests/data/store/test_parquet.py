import pickle
import subprocess
import sys
import textwrap

import pyarrow as pa
import pytest

from proav.data.store.parquet import DamagedShard, RowReader, ShardWriter, only_writer, write_shard
from proav.errors import UserError
from proav.storage import file_sha256, remove_leftovers

SCHEMA = pa.schema([("id", pa.string()), ("data", pa.large_binary()), ("shape", pa.list_(pa.int32()))])


def make_rows(count):
    return [
        {"id": f"row {number}", "data": bytes([number]) * (100 + number), "shape": [number, 2]}
        for number in range(count)
    ]


def test_rows_come_back_in_any_order(tmp_path):
    rows = make_rows(11)
    result = write_shard(str(tmp_path / "a.parquet"), rows, SCHEMA, rows_per_group=3)
    assert result["rows"] == 11 and (result["sha256"], result["bytes"]) == file_sha256(
        str(tmp_path / "a.parquet")
    )
    reader = RowReader(str(tmp_path), cache_bytes=200)
    for number in (10, 0, 3, 2, 10):
        assert reader.read("a.parquet", number, ("id", "data", "shape")) == rows[number]


def test_same_rows_same_bytes(tmp_path):
    first, second = (
        write_shard(str(tmp_path / name), make_rows(5), SCHEMA)["sha256"]
        for name in ("a.parquet", "b.parquet")
    )
    assert first == second


def test_reader_pickles_small(tmp_path):
    write_shard(str(tmp_path / "a.parquet"), make_rows(3), SCHEMA)
    reader = RowReader(str(tmp_path))
    reader.read("a.parquet", 1, ("data",))
    content = pickle.dumps(reader)
    assert len(content) < 500 and pickle.loads(content).read("a.parquet", 2, ("id",)) == {"id": "row 2"}


def test_an_error_leaves_no_file(tmp_path):
    with pytest.raises(ZeroDivisionError), ShardWriter(str(tmp_path / "a.parquet"), SCHEMA) as writer:
        writer.write(make_rows(1)[0])
        1 / 0  # noqa: B018
    assert not list(tmp_path.iterdir())


def test_leftovers_of_a_killed_run_are_removed(tmp_path):
    (tmp_path / ".a.parquet.01234567.tmp").write_bytes(b"half")
    write_shard(str(tmp_path / "a.parquet"), make_rows(1), SCHEMA)
    remove_leftovers(str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["a.parquet"]


def test_a_folder_has_one_writer_at_a_time(tmp_path):
    with (
        only_writer(str(tmp_path)),
        pytest.raises(UserError, match="another job is at work in"),
        only_writer(str(tmp_path)),
    ):
        raise AssertionError
    with only_writer(str(tmp_path)), only_writer("memory://anything"):
        pass


def test_a_writer_whose_file_is_taken_away_says_so(tmp_path):
    writer = ShardWriter(str(tmp_path / "a.parquet"), SCHEMA)
    remove_leftovers(str(tmp_path))
    with pytest.raises(UserError, match="a.parquet: its unfinished file is gone; is another job"):
        writer.close()


def test_damage_is_reported(tmp_path):
    path = tmp_path / "a.parquet"
    write_shard(str(path), make_rows(4), SCHEMA)
    with pytest.raises(DamagedShard, match="has 4 rows, but row 4"):
        RowReader(str(tmp_path)).read("a.parquet", 4, ("id",))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DamagedShard, match="a.parquet is damaged.*delete that file"):
        RowReader(str(tmp_path)).read("a.parquet", 0, ("id",))
    with pytest.raises(DamagedShard, match="b.parquet is missing"):
        RowReader(str(tmp_path)).read("b.parquet", 0, ("id",))


def test_a_full_disk_is_the_users_error_and_leaves_no_file(tmp_path):
    script = (
        """
        import pyarrow as pa, resource
        from proav.data.store.parquet import write_shard
        from proav.errors import UserError
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))"""
        f"""  # what a quota does: a write beyond it fails
        rows = ({{"data": bytes(300_000)}} for _ in range(9))
        try:
            write_shard("{tmp_path}/a.parquet", rows, pa.schema([("data", pa.large_binary())]))
        except UserError as error:
            print(error)
    """
    )
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=60
    )
    assert "cannot write" in done.stdout and "make room" in done.stdout, done.stdout + done.stderr
    assert not list(tmp_path.iterdir())


def test_remote_shards(tmp_path):
    import fsspec

    path = "memory://proav-test-rows/a.parquet"
    result = write_shard(path, make_rows(3), SCHEMA)
    try:
        assert file_sha256(path) == (result["sha256"], result["bytes"])
        assert RowReader("memory://proav-test-rows").read("a.parquet", 2, ("id",)) == {"id": "row 2"}
    finally:
        fsspec.filesystem("memory").rm("/proav-test-rows", recursive=True)
