import json
import pickle
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from proav.data.sources.finding import segment_id
from proav.data.store.parquet import DamagedShard
from proav.data.store.shards import SegmentStore, by_label, label_indices, read_manifest, read_rejects
from proav.errors import UserError
from proav.media.melframes import MelFrames
from tests.synthetic_clips import prepare
from tests.tiny import tiny_config


def test_segments_of_a_source_follow_each_other(data_dir):
    store = SegmentStore(data_dir)
    rows = [row for row in store.rows if row["source"] == "set/speech/c.mp4"]
    assert [(row["start_seconds"], row["num_frames"]) for row in rows] == [
        (0.0, 10),
        (2.0, 10),
        (4.0, 10),
    ]  # the last 0.2 s hold no clip of 4 frames
    assert [row["id"] for row in rows] == [segment_id("set/speech/c.mp4", start) for start in (0.0, 2.0, 4.0)]
    assert {row["label"] for row in rows} == {"speech"} and len({row["split"] for row in rows}) == 1


def test_window_is_a_slice_of_the_whole(data_dir, run_config):
    store, steps = SegmentStore(data_dir), 3200 // run_config.mel.hop
    for index in range(len(store)):
        whole = store.window(index)
        frames = store.rows[index]["num_frames"]
        assert (
            whole["video"].shape == (frames, 32, 32, 3)
            and whole["mel"].shape == (frames, 32, steps)
            and whole["audio"].shape == (frames * 3200,)
        )
        part = store.window(index, 1, 3)
        assert np.array_equal(part["video"], whole["video"][1:4]) and np.array_equal(
            part["mel"], whole["mel"][1:4]
        )
        assert np.array_equal(part["audio"], whole["audio"][3200:12800])


def test_stored_mel_is_that_of_the_stored_sound(data_dir, run_config):
    store = SegmentStore(data_dir)
    window = store.window(2)
    again = MelFrames(run_config).encode(torch.from_numpy(window["audio"])[None])[0].numpy()
    assert np.abs(again - window["mel"].astype(np.float32)).max() < 2e-3


def test_jpeg_store_is_near_the_raw_one(clips_dir, data_dir, tmp_path):
    config = tiny_config(f"run_dir={tmp_path}", f"data.sources=[{clips_dir}]", "data.frame_codec=jpeg")
    prepare(config)
    raw, jpeg = SegmentStore(data_dir), SegmentStore(f"{tmp_path}/data")
    assert raw.column("id").tolist() == jpeg.column("id").tolist()
    whole, part = jpeg.window(0)["video"], jpeg.window(0, 5, 4)["video"]
    assert np.array_equal(part, whole[5:9])
    assert np.abs(whole.astype(int) - raw.window(0)["video"]).mean() < 4


def test_store_pickles_small_and_selects(data_dir):
    store = pickle.loads(pickle.dumps(SegmentStore(data_dir)))
    assert len(pickle.dumps(store)) < 500
    sides = [store.indices(split=split).tolist() for split in ("train", "validation")]
    assert sorted(sum(sides, [])) == list(range(len(store))) and all(sides)
    shards = [shard["name"] for shard in store.manifest["shards"]]
    assert sum((store.indices(shard=name).tolist() for name in shards), []) == list(range(len(store)))


def test_labels_are_places_in_the_vocabulary(data_dir):
    store = SegmentStore(data_dir)
    assert store.labels == ("rain", "speech")
    expected = {"rain": 0, "speech": 1, "": 2}
    assert store.label_indices().tolist() == [[expected[row["label"]]] for row in store.rows]


def test_manifest_counts(data_dir):
    manifest, rejects = read_manifest(data_dir), read_rejects(data_dir).to_pylist()
    counts = manifest["counts"]
    assert (counts["sources"], counts["sources_used"], counts["segments"], counts["rejects"]) == (7, 5, 9, 4)
    assert {(row["source"], row["reason"], row["start_seconds"]) for row in rejects} == {
        ("set/rain/text.mp4", "unreadable", 0.0), ("set/speech/short.mp4", "too_short", 0.0),
        ("set/rain/a.mp4", "too_short", 4.0), ("set/speech/c.mp4", "too_short", 6.0),
    }  # fmt: skip
    assert manifest["rejects_by_reason"] == {"too_short": 3, "unreadable": 1}
    assert (
        sum(tally["segments"] for tally in manifest["label_counts"].values())
        == sum(tally["segments"] for tally in manifest["splits"].values())
        == 9
    )
    assert counts["seconds"] == pytest.approx(manifest["counts"]["frames"] / 5)


def test_stretches_are_whole_segments_or_shots(data_dir, tmp_path):
    store = SegmentStore(data_dir)
    segments, first, frames = store.stretches(num_frames=4, split="train")
    assert segments.tolist() == store.indices(split="train").tolist() and not first.any()
    assert frames.tolist() == store.column("num_frames")[segments].tolist()

    copy = shutil.copytree(data_dir, tmp_path / "data")
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["filters"]["avoid_shot_cuts"] = True
    (copy / "manifest.json").write_text(json.dumps(manifest))
    index = pq.read_table(copy / "index.parquet")
    lengths = index.column("num_frames").to_pylist()
    cuts = [[4, 5], [], [3, 6], *[[]] * 6]
    used = ["", "", "", "silent", *[""] * 5]
    for name, values in (("shot_starts", cuts), ("dropped", used)):
        place = index.schema.get_field_index(name)
        index = index.set_column(
            place, index.schema.field(place), pa.array(values, index.schema.field(place).type)
        )
    pq.write_table(index, copy / "index.parquet")
    found = list(
        zip(*(column.tolist() for column in SegmentStore(str(copy)).stretches(num_frames=4)), strict=True)
    )
    shots = [
        (segment, first, end - first)
        for segment in range(9)
        if not used[segment]
        for first, end in zip([0, *cuts[segment]], [*cuts[segment], lengths[segment]], strict=True)
    ]
    assert found == [shot for shot in shots if shot[2] >= 4] and len(found) < len(shots)


def test_unfinished_data_is_reported(tmp_path):
    with pytest.raises(UserError, match="ray_jobs/preprocess.py"):
        SegmentStore(str(tmp_path))
    (tmp_path / "manifest.json").write_text('{"format": 99}')
    with pytest.raises(UserError, match="format 99"):
        SegmentStore(str(tmp_path))


def test_a_damaged_index_or_manifest_is_reported_and_no_traceback(data_dir, tmp_path):
    broken = tmp_path / "data"
    shutil.copytree(data_dir, broken)
    index = broken / "index.parquet"
    content = bytearray(index.read_bytes())
    content[8 : len(content) // 2] = bytes(len(content) // 2 - 8)
    index.write_bytes(content)
    with pytest.raises(DamagedShard, match="index.parquet"):
        SegmentStore(str(broken))
    (broken / "manifest.json").write_text("[]")
    with pytest.raises(DamagedShard, match="it holds no JSON object; delete it and run preprocess again"):
        SegmentStore(str(broken))


def test_several_labels_become_their_places_and_count_for_each():
    lists = [["dog", "rain"], [], ["cat"], ["rain", "cat", "dog"], ["bird"]]
    index = pa.table({"id": list("abcde"), "labels": pa.array(lists, pa.list_(pa.string()))})
    vocabulary = ("rain", "dog")
    assert label_indices(index.column("labels"), vocabulary).tolist() == [
        [1, 0],
        [2, -1],
        [2, -1],
        [0, 1],
        [2, -1],
    ]
    assert label_indices(index.column("labels"), ()).tolist() == [[0]] * 5
    counted = by_label(index, vocabulary)
    pairs = sorted(zip(counted.column("label").to_pylist(), counted.column("id").to_pylist(), strict=True))
    assert pairs == [
        ("", "b"), ("", "c"), ("", "e"), ("dog", "a"), ("dog", "d"), ("rain", "a"), ("rain", "d"),
    ]  # fmt: skip
