"""Vectors of segments: from a function or a file to Parquet, and back as the rows that ST-DiT trains on."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from proav import storage
from proav.data.feeds.latent_feed import LatentFeed
from proav.data.prepare import vectors
from proav.data.prepare.vectors import VectorFile, store_vectors
from proav.data.prepare.verify import verify
from proav.data.store.parquet import DamagedShard, write_shard
from proav.data.store.shards import SegmentStore, read_manifest
from proav.data.store.vectors import VectorStore, open_vectors, read_vectors_manifest
from proav.diffusion.conditions import Conditions
from proav.errors import UserError
from proav.latents.encode import LATENT_SCHEMA
from tests.tiny import LABELS, tiny_config
from tests.train.tiny_run import NUM_SEGMENTS, write_segments

HERE = "tests.data.prepare.test_vectors"
WIDTH, CALLS = 3, []


def number_of(row) -> int:
    return int(row["source"].split(".")[0])


def numbers(rows):
    """A vector for each segment but the second; two segments share a shard."""
    CALLS.append(len(rows))
    return [None if number_of(row) == 1 else [number_of(row), 0.5, -1.0] for row in rows]


def loudness(rows):
    """A sequence of as many vectors as the segment's number and one more, of its sound and pictures."""
    return [
        np.full((number_of(row) + 1, 2), np.abs(row["audio"]).mean() + row["video"].mean()) for row in rows
    ]


def pairs(rows):
    return [[[number_of(row) + 1, 1.0]] for row in rows]


def too_few(rows):
    return numbers(rows)[1:]


def not_finite(rows):
    return [[1.0, float("nan"), 0.0] for _ in rows]


def of_two_widths(rows):
    return [[1.0] * (2 + number_of(row) // 2) for row in rows]


def nothing(rows):
    return [[0.0, 0.0] for _ in rows]


@pytest.fixture
def run(tmp_path):
    """(configuration, data folder) of a run with six prepared segments in three shards."""
    config = tiny_config(f"run_dir={tmp_path}")
    write_segments(config)
    return config, f"{tmp_path}/data"


def with_vectors(config, **origins):
    return config.model_copy(update={"data": config.data.model_copy(update={"vectors": origins})})


def test_a_functions_vectors_come_back_by_shard_and_row(run):
    config, data_dir = run
    store_vectors(with_vectors(config, face=f"{HERE}:numbers", words=f"{HERE}:loudness"), data_dir)
    segments = SegmentStore(data_dir)
    face, words = VectorStore(data_dir, "face", (3,)), VectorStore(data_dir, "words", (7, 2))
    for index, row in enumerate(segments.rows):
        number = number_of(row)
        expected = [0, 0, 0] if number == 1 else [number, 0.5, -1]
        assert face.read(row["shard"], row["row"]).tolist() == expected
        heard = segments.window(index)
        level = np.float32(np.abs(heard["audio"]).mean() + heard["video"].mean())
        sequence = words.read(row["shard"], row["row"])
        assert (
            sequence.shape == (7, 2)
            and (sequence[: number + 1] == level).all()
            and not sequence[number + 1 :].any()
        )
    manifest = read_vectors_manifest(data_dir, "face")
    assert (manifest["width"], manifest["longest"], manifest["segments_told"]) == (3, 0, NUM_SEGMENTS - 1)
    assert read_vectors_manifest(data_dir, "words")["longest"] == NUM_SEGMENTS


def test_latents_come_with_the_vectors_of_their_segments(run, tmp_path):
    """Latents of the same shards, in another order and with several windows a segment."""
    config, data_dir = run
    store_vectors(with_vectors(config, face=f"{HERE}:numbers"), data_dir)
    store = SegmentStore(data_dir)
    for shard in read_manifest(data_dir)["shards"]:
        of_window = {"flipped": False, "joint": b"\0\0", "lone": b"\0\0", "shape": [1]}
        rows = [
            {key: row[key] for key in ("id", "source_id", "label", "labels", "split")}
            | of_window
            | {"start_frame": start}
            for start in (2, 0)
            for row in list(store.rows)[::-1]
            if row["shard"] == shard["name"]
        ]
        write_shard(f"{tmp_path}/latents/{shard['name']}", rows, LATENT_SCHEMA)
    stores = open_vectors(data_dir, {"face": (WIDTH,)})
    feed = LatentFeed(f"{tmp_path}/latents", labels=LABELS, batch_size=12, vectors=stores)
    batch = feed.batch(0)
    number = {row["id"]: number_of(row) for row in store.rows}
    expected = [[0, 0, 0] if number[id] == 1 else [number[id], 0.5, -1] for id in batch["segment_id"]]
    assert batch["vector.face"].tolist() == expected and batch["vector.face"].dtype == torch.float32
    assert Conditions.of_rows(batch).vectors.keys() == {"face"}
    loaded = next(feed.iterate(loader_workers=1))
    assert torch.equal(loaded["vector.face"], batch["vector.face"])


@pytest.mark.parametrize("ending", ["parquet", "npy"])
@pytest.mark.parametrize("key", ["id", "source"])
def test_a_files_vectors_are_found_by_their_key(run, tmp_path, ending, key):
    config, data_dir = run
    store, path = SegmentStore(data_dir), str(tmp_path / f"face.{ending}")
    rows = list(store.rows)[::-1]
    keys, values = [row[key] for row in rows], [[number_of(row) + 1.0, 2.0] for row in rows]
    if ending == "npy":
        table = np.zeros(len(rows), [(key, "U40"), ("face", "f4", 2)])
        table[key], table["face"] = keys, values
        np.save(path, table)
    else:
        values[2] = None
        pq.write_table(pa.table({key: keys, "face": values}), path)
    store_vectors(with_vectors(config, face=path), data_dir)
    stored = VectorStore(data_dir, "face", (2,))
    for row, value in zip(rows, values, strict=True):
        assert stored.read(row["shard"], row["row"]).tolist() == (value or [0, 0])


def test_what_is_there_stays_and_what_is_missing_is_made(run, capsys):
    config, data_dir = run
    config = with_vectors(config, face=f"{HERE}:numbers")
    CALLS.clear()
    store_vectors(config, data_dir)
    store_vectors(config, data_dir)
    assert CALLS == [2, 2, 2] and capsys.readouterr().out.count("for 5 of 6 segments") == 2
    folder, before = f"{data_dir}/vectors/face", read_vectors_manifest(data_dir, "face")
    storage.delete_file(f"{folder}/manifest.json")  # a job that was stopped after two of three shards
    storage.delete_file(f"{folder}/{before['shards'][1]['name']}")
    store_vectors(config, data_dir)
    assert CALLS == [2, 2, 2, 2] and read_vectors_manifest(data_dir, "face") == before
    said = "was made from .*:numbers, which is not .*:loudness; delete it to make it from .*loudness, or"
    with pytest.raises(UserError, match=said):
        store_vectors(with_vectors(config, face=f"{HERE}:loudness"), data_dir)


def test_the_index_is_read_once_and_a_written_file_not_again(run, monkeypatch):
    config, data_dir = run
    stores = []
    monkeypatch.setattr(vectors, "SegmentStore", lambda folder: stores.append(folder) or SegmentStore(folder))
    with monkeypatch.context() as writing:
        writing.setattr(storage, "file_sha256", None)
        store_vectors(with_vectors(config, face=f"{HERE}:numbers", words=f"{HERE}:loudness"), data_dir)
    assert stores == [data_dir]
    for shard in read_vectors_manifest(data_dir, "face")["shards"]:
        found = storage.file_sha256(f"{data_dir}/vectors/face/{shard['name']}")
        assert found == (shard["sha256"], shard["bytes"]) and shard["rows"] == 2


def test_only_keys_of_a_users_table_become_python_objects(tmp_path):
    """Other columns may be embeddings of gigabytes; a list of numbers takes ten times the memory."""
    path = str(tmp_path / "clips.parquet")
    pq.write_table(pa.table({"id": ["a"], "face": [[1.0]], "voice": [[2.0]]}), path)
    columns = VectorFile(path, "face")._read()
    assert columns["id"] == ["a"]
    assert all(isinstance(columns[name], pa.ChunkedArray) for name in ("face", "voice"))


def test_vectors_of_other_contents_or_segments_are_told_apart(run, tmp_path):
    config, data_dir = run
    path, rows = tmp_path / "face.parquet", list(SegmentStore(data_dir).rows)
    for width in (1, 2):
        values = {"id": [row["id"] for row in rows], "face": [[1.0] * width for _ in rows]}
        pq.write_table(pa.table(values), path)
        if width == 1:
            store_vectors(with_vectors(config, face=str(path)), data_dir)
    with pytest.raises(UserError, match="vectors/face was made from other contents of face.parquet; delete"):
        store_vectors(with_vectors(config, face=str(path)), data_dir)
    store_vectors(with_vectors(config, words=f"{HERE}:pairs"), data_dir)
    manifest = json.loads(storage.read_text(f"{data_dir}/manifest.json"))
    manifest["shards"][0]["sha256"] = "other"
    storage.write_text(f"{data_dir}/manifest.json", json.dumps(manifest))
    with pytest.raises(UserError, match="vectors/words was made from other segments; delete it to make it"):
        store_vectors(with_vectors(config, words=f"{HERE}:pairs"), data_dir)


def test_files_that_verification_tells_to_delete_are_made_again(run, monkeypatch):
    config, data_dir = run
    config = with_vectors(config, face=f"{HERE}:numbers")
    store_vectors(config, data_dir)
    before = read_vectors_manifest(data_dir, "face")
    paths = [f"{data_dir}/vectors/face/{shard['name']}" for shard in before["shards"]]
    content = storage.read_bytes(paths[0])
    CALLS.clear()
    storage.delete_file(paths[0])
    store_vectors(config, data_dir)
    assert CALLS == [2] and storage.read_bytes(paths[0]) == content
    assert read_vectors_manifest(data_dir, "face") == before
    # the function has changed: what is there stays
    storage.delete_file(paths[0])
    monkeypatch.setitem(globals(), "numbers", pairs)
    with pytest.raises(UserError, match="gave vectors of 3 .* and sequences .* of 2 .*delete .*vectors/face"):
        store_vectors(config, data_dir)
    assert [storage.exists(path) for path in paths] == [False, True, True]


@pytest.mark.parametrize(
    ("origin", "said"),
    [
        (f"{HERE}:too_few", "too_few gave 1 results for 2; expected one each"),
        (f"{HERE}:not_finite", "not_finite: result 0 holds numbers that are not finite"),
        (
            f"{HERE}:of_two_widths",
            "gave vectors of 2 numbers and vectors of 3 numbers and vectors of 4 numbers",
        ),
        (f"{HERE}:nothing", "gave nothing at all"),
        (f"{HERE}:absent", "has no function absent; expected package.module:function"),
        ("no_such_module:embed", "No module named 'no_such_module'"),
        ("embed", "face=embed: expected package.module:function"),
        ("absent.parquet", "no such file: absent.parquet"),
    ],
)
def test_what_gives_no_vectors_is_named(run, origin, said):
    config, data_dir = run
    with pytest.raises(UserError, match=said):
        store_vectors(with_vectors(config, face=origin), data_dir)
    assert read_vectors_manifest(data_dir, "face") is None


@pytest.mark.parametrize("ending", ["parquet", "npy"])
def test_keys_may_be_bytes(run, tmp_path, ending):
    config, data_dir = run
    rows, path = list(SegmentStore(data_dir).rows), str(tmp_path / f"face.{ending}")
    keys, values = [row["id"].encode() for row in rows], [[number_of(row) + 1.0, 2.0] for row in rows]
    if ending == "npy":
        table = np.zeros(len(rows), [("id", "S16"), ("face", "f4", 2)])
        table["id"], table["face"] = keys, values
        np.save(path, table)
    else:
        pq.write_table(pa.table({"id": pa.array(keys, pa.binary()), "face": values}), path)
    store_vectors(with_vectors(config, face=path), data_dir)
    stored = VectorStore(data_dir, "face", (2,))
    assert [stored.read(row["shard"], row["row"]).tolist() for row in rows] == values


@pytest.mark.parametrize("ending", ["parquet", "npy"])
@pytest.mark.parametrize("content", [b"", b"PAR1 and no more", b"PK\3\4", b"\x93NUMPY\1\0\4\0(((\n"])
def test_a_users_file_that_cannot_be_read_is_not_to_be_deleted(run, tmp_path, ending, content):
    config, data_dir = run
    path = tmp_path / f"face.{ending}"
    path.write_bytes(content)
    with pytest.raises(
        UserError, match=f"^data.vectors: face: cannot read .*{path.name}: .*; expected"
    ) as caught:
        store_vectors(with_vectors(config, face=str(path)), data_dir)
    assert "delete" not in str(caught.value)


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"id": ["a"], "voice": [[1.0]]}, "has the columns id, voice; expected face, and id or source"),
        ({"source": ["0.mp4", "0.mp4"], "face": [[1.0]] * 2}, "rows of the same source; expected each once"),
        (
            {"source": ["0.mp4"], "face": [[1.0]]},
            "has no row with source=1.mp4; expected one for each segment",
        ),
        ({"source": [f"{n}.mp4" for n in range(6)], "face": [["x"]] * 6}, "face of source=0.mp4 .* no array"),
    ],
)
def test_a_file_that_does_not_fit_is_reported(run, tmp_path, columns, said):
    config, data_dir = run
    pq.write_table(pa.table(columns), tmp_path / "face.parquet")
    with pytest.raises(UserError, match=said):
        store_vectors(with_vectors(config, face=str(tmp_path / "face.parquet")), data_dir)


def test_training_asks_for_what_is_stored(run):
    config, data_dir = run
    with pytest.raises(
        UserError, match="stdit.vectors names face, but .* stores no such vectors; run: .*face"
    ):
        open_vectors(data_dir, {"face": (3,)})
    store_vectors(with_vectors(config, face=f"{HERE}:numbers", words=f"{HERE}:loudness"), data_dir)
    for name, shape in (("face", (4,)), ("face", (5, 3)), ("words", (2,)), ("words", (5, 2))):
        with pytest.raises(UserError, match=rf"the stored vectors {name} need stdit.vectors=\{{{name}: "):
            open_vectors(data_dir, {name: shape})
    manifest = json.loads(storage.read_text(f"{data_dir}/manifest.json"))
    manifest["shards"][0]["sha256"] = "other"
    storage.write_text(f"{data_dir}/manifest.json", json.dumps(manifest))
    with pytest.raises(UserError, match="was made from other segments; delete it"):
        open_vectors(data_dir, {"face": (3,)})


def test_verification_finds_a_changed_file(run):
    config, data_dir = run
    store_vectors(with_vectors(config, face=f"{HERE}:numbers"), data_dir)
    shard = f"{data_dir}/vectors/face/{read_vectors_manifest(data_dir, 'face')['shards'][0]['name']}"
    storage.write_bytes(shard, storage.read_bytes(shard).replace(b"PAR1", b"PAR2"))
    with pytest.raises(DamagedShard, match="vectors/face/.* has changed since it was written"):
        verify(data_dir)


@pytest.mark.parametrize("text", ['{"from": "a:b", "sha', "[]"])
def test_a_damaged_manifest_is_named(run, text):
    config, data_dir = run
    config, path = with_vectors(config, face=f"{HERE}:numbers"), f"{data_dir}/vectors/face/manifest.json"
    store_vectors(config, data_dir)
    before = storage.read_text(path)
    storage.write_text(path, text)
    for step in (lambda: verify(data_dir), lambda: store_vectors(config, data_dir)):
        with pytest.raises(DamagedShard, match="face/manifest.json is damaged: .*; delete it and run"):
            step()
    CALLS.clear()
    storage.delete_file(path)
    store_vectors(config, data_dir)
    assert storage.read_text(path) == before and not CALLS
