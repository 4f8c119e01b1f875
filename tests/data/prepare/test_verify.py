"""Each kind of damage is found and named, also if the files' own checksums were made to agree."""

import json
import shutil

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from proav.data.prepare.plan import settle_plan
from proav.data.prepare.verify import check_shard, verify
from proav.data.sources.finding import find_sources
from proav.data.store.parquet import DamagedShard
from proav.storage import file_sha256


@pytest.fixture
def copy(data_dir, tmp_path):
    return shutil.copytree(data_dir, tmp_path / "data")


def shards(copy):
    return sorted((copy / "segments").iterdir())


def restate(copy, path, key="shards"):
    """Makes the manifest agree with a file that was changed."""
    manifest = json.loads((copy / "manifest.json").read_text())
    entries = (
        [manifest["index"]]
        if key == "index"
        else [entry for entry in manifest[key] if entry["name"] == path.name]
    )
    for entry in entries:
        entry["sha256"], entry["bytes"] = file_sha256(str(path))
        entry["rows"] = pq.read_metadata(path).num_rows
    (copy / "manifest.json").write_text(json.dumps(manifest))
    return entries[0]


def rewrite(path, change):
    """Writes a shard again. `change` gets its rows as a list of dicts and changes them in place."""
    table = pq.read_table(path)
    rows = table.to_pylist()
    change(rows)
    pq.write_table(
        pa.Table.from_pylist(rows, schema=table.schema), path, row_group_size=1, use_dictionary=False
    )


def test_a_whole_set_is_proven(copy):
    assert verify(str(copy))["rows"] == 9
    assert (
        verify(str(copy), each=lambda function, items: reversed([function(item) for item in items]))["shards"]
        == 6
    )


def test_changed_missing_and_foreign_files(copy):
    shard = shards(copy)[1]
    content = bytearray(shard.read_bytes())
    content[200] ^= 1
    shard.write_bytes(bytes(content))
    with pytest.raises(DamagedShard, match=f"{shard.name} has changed.*run preprocess again"):
        verify(str(copy))
    shard.unlink()
    with pytest.raises(DamagedShard, match=f"{shard.name} is missing"):
        verify(str(copy))
    shutil.copy(shards(copy)[0], shard.with_name("000099-000.parquet"))
    with pytest.raises(DamagedShard, match="000099-000.parquet is not in the manifest"):
        verify(str(copy))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda row: row.update(audio=bytes(len(row["audio"]))),
            "row 0: its sound has a root mean square of 0.000000, not",
        ),
        (lambda row: row.update(audio=row["audio"][:-200]), "row 0: .* sound samples for 10 frames"),
        (lambda row: row.update(video=row["video"][:-1]), "row 0: .* bytes of pictures where"),
        (lambda row: row.update(mel=row["mel"][:-2]), r"row 0: mel frames \[10, 32, .*\] in .* bytes"),
        (
            lambda row: row.update(video=row["video"][:-1] + b"\0"),
            "row 0: its content does not have its checksum",
        ),
    ],
)
def test_mute_truncated_or_changed_rows_are_found_even_under_a_fresh_checksum(copy, change, said):
    shard = next(path for path in shards(copy) if pq.read_metadata(path).num_rows > 1)
    rewrite(shard, lambda rows: change(rows[0]))
    entry = restate(copy, shard)
    problems = check_shard((str(copy), entry))
    assert problems and all(", row 0: " in problem for problem in problems)
    with pytest.raises(DamagedShard, match=said):
        verify(str(copy))


def test_doubled_and_unlisted_rows_are_found(copy):
    index = pq.read_table(copy / "index.parquet")
    for table, said in (
        (pa.concat_tables([index, index.slice(0, 1)]), "share the id of another"),
        (index.slice(1), "does not list the rows of 000"),
        (
            index.filter(pc.not_equal(index.column("shard"), shards(copy)[2].name)),
            f"does not list the rows of {shards(copy)[2].name}",
        ),
    ):
        pq.write_table(table, copy / "index.parquet")
        restate(copy, copy / "index.parquet", "index")
        with pytest.raises(DamagedShard, match=said):
            verify(str(copy))


def test_a_source_without_segments_and_without_a_reason_is_found(copy):
    (rejects,) = [
        path
        for path in (copy / "rejects").iterdir()
        if "unreadable" in pq.read_table(path).column("reason").to_pylist()
    ]
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["rejects"] = [entry for entry in manifest["rejects"] if entry["name"] != rejects.name]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    rejects.unlink()
    with pytest.raises(DamagedShard, match="1 planned sources have neither a segment nor a reason"):
        verify(str(copy))


@pytest.mark.parametrize("damage", ["missing", "no footer", "rows"])
def test_a_plan_that_cannot_be_read_is_not_to_be_deleted(copy, run_config, clips_dir, damage):
    """No job can make plan.parquet again, so the advice for other files would cost the data."""
    plan = copy / "plan.parquet"
    content = plan.read_bytes()
    if damage == "missing":
        plan.unlink()
    elif damage == "no footer":
        plan.write_bytes(content[:-4])
    else:
        plan.write_bytes(content[:4] + bytes(byte ^ 0xFF for byte in content[4:400]) + content[400:])
    said = "plan.parquet is .*; it cannot be made again: restore it from a copy, or delete .*data to"
    with pytest.raises(DamagedShard, match=said) as caught:
        verify(str(copy))
    assert "run preprocess again" not in str(caught.value) and "delete that file" not in str(caught.value)
    if damage != "missing":  # test_plan.py has that one
        with pytest.raises(DamagedShard, match=said):
            settle_plan(run_config, str(copy), find_sources(run_config))


def test_lost_records_are_found(copy):
    sorted((copy / "units").iterdir())[0].unlink()
    with pytest.raises(DamagedShard, match="has 6 records, not 7"):
        verify(str(copy))
