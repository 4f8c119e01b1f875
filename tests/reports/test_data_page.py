"""The page of a data set: counts, what filters leave out, and the page of missing or half prepared data."""

import json
import math
import re

import numpy as np
import pyarrow as pa

from proav.config import FilterConfig
from proav.data.store.frames import encode_frames
from proav.data.store.parquet import write_shard
from proav.data.store.schema import BULKY_COLUMNS, FORMAT, INDEX_SCHEMA, REJECT_SCHEMA, SEGMENT_SCHEMA
from proav.data.store.shards import index_bytes
from proav.reports.data_clips import _copies
from proav.reports.run_page import write_data_report, write_report
from tests.reports.test_run_page import HOSTILE, Page, small_config


def write_data(run, config, *, num_segments=5, dropped=None, copies=(0, 0)):
    """Writes a finished data set of small segments, as preprocessing leaves it.

    run: the folder of the run
    config: the configuration of the run
    num_segments: number of segments
    dropped: {segment: reason} for segments that are left out
    copies: two segments with equal hashes and checksums
    """
    dropped = dropped or {}
    data, rng = run / "data", np.random.default_rng(0)
    shard = str(data / "segments" / "part-00000.parquet")
    shape, frames = (10, 64, 64, 3), 10
    samples = frames * config.clip.sample_rate // config.clip.fps
    mel_shape = (frames, config.mel.num_bins, config.clip.sample_rate // config.clip.fps // config.mel.hop)
    rows = []
    for index in range(num_segments):
        video = np.broadcast_to(rng.integers(0, 255, (1, 1, 1, 3)), shape).astype(np.uint8).copy()
        video[np.arange(frames), 20:36, 4 * np.arange(frames)] = 255
        content, offsets = encode_frames(video, codec="jpeg", quality=92)
        audio = (
            np.zeros(samples, np.int16)
            if index == 1
            else (rng.standard_normal(samples) * 3000).astype(np.int16)
        )
        name = HOSTILE if index == 0 else "sea"
        row = {
            "id": f"s{index}", "source": f"/videos/{name}.mp4", "source_id": f"source{index}",
            "label": name, "labels": [name], "split": "validation" if index == 2 else "train",
            "start_seconds": 2.0 * index, "num_frames": frames, "fps": config.clip.fps,
            "sample_rate": config.clip.sample_rate, "has_audio": True,
            "rms": float(np.sqrt(np.mean((audio / 32767.0) ** 2))), "peak": 0.5,
            "clipped": 0.01 if index == 3 else 0.0, "silent": index == 1, "cancelled": False,
            "mean_luma": 0.4, "motion": 0.01 * index, "black": 0.0,
            "frozen": 0.0, "shot_starts": [5] if index == 3 else [],
            "sync": math.nan if index == 1 else 0.1 * index, "sync_lag": 0.02,
            "picture_hash": rng.bytes(32), "sound_hash": rng.bytes(32), "checksum": f"{index:032x}",
            "video_codec": "jpeg", "video_shape": list(shape), "video_dtype": "uint8",
            "audio_shape": [samples], "audio_dtype": "int16", "mel_shape": list(mel_shape),
            "mel_dtype": "float16", "frame_offsets": offsets, "video": content, "audio": audio.tobytes(),
            "mel": rng.uniform(-1, 1, mel_shape).astype(np.float16).tobytes(),
        }  # fmt: skip
        rows.append(row)
    for name in ("picture_hash", "sound_hash", "checksum"):
        rows[copies[1]][name] = rows[copies[0]][name]
    written = write_shard(shard, rows, SEGMENT_SCHEMA)
    places = [
        {"shard": "part-00000.parquet", "row": number, "dropped": dropped.get(number, "")}
        for number in range(num_segments)
    ]
    thin = [
        place | {key: value for key, value in row.items() if key not in BULKY_COLUMNS}
        for place, row in zip(places, rows, strict=True)
    ]
    (data / "index.parquet").write_bytes(index_bytes(pa.Table.from_pylist(thin, schema=INDEX_SCHEMA)))
    reject = {"id": "r", "source": f"/videos/{HOSTILE}.mp4", "source_id": "r"}
    reject |= {"start_seconds": 0.0, "end_seconds": 1.5}
    reject |= {"reason": "no_audio", "message": "there is no sound track"}
    write_shard(str(data / "rejects" / "part-00000.parquet"), [reject], REJECT_SCHEMA)
    manifest = {
        "format": FORMAT,
        "labels": ["sea", HOSTILE],
        "shards": [written],
        "counts": {"segments": num_segments, "rejects": 1},
    }
    manifest["filters"] = FilterConfig(duplicates="near" if dropped else "keep").model_dump(mode="json")
    (data / "manifest.json").write_text(json.dumps(manifest))


def test_data_page_counts_and_shows(tmp_path):
    config = small_config(tmp_path)
    write_data(tmp_path, config)
    path = write_data_report(config)
    assert path == str(tmp_path / "data" / "report.html")
    page = Page((tmp_path / "data" / "report.html").read_text("utf-8"))
    for words in (
        "5 segments of 5 sources",
        "10 s of picture",
        "1 segment of 1 source",
        "there is no sound track",
        HOSTILE,
    ):
        assert words in page.text
    facts = dict(
        re.findall(
            r"(Stored, silent|Stored, clipped sound|Files not found)[^0-9]*?(?:60 dB\) )?(\d+)", page.text
        )
    )
    assert facts == {"Stored, silent": "1", "Stored, clipped sound": "1", "Files not found": "0"}
    assert len(page.all("video")) == 5 and len(page.all("script")) == 1
    write_report(config)
    assert (
        "drawn from" not in Page((tmp_path / "report.html").read_text("utf-8")).text
    )  # nothing is trained yet


def test_data_page_says_what_filters_leave_out(tmp_path):
    config = small_config(tmp_path)
    reasons = {1: "silent", 4: "clipped", 5: "shot_cuts", 7: "duplicate", 8: "near_duplicate"}
    write_data(tmp_path, config, num_segments=9, dropped=reasons, copies=(2, 7))
    write_data_report(config)
    text = (tmp_path / "data" / "report.html").read_text("utf-8")
    page = Page(text)
    for words in (
        "In use 4",
        "Left out by filters 5",
        "Silent: sea",
        "Clipped: sea",
        "Shot cuts: sea",
        "The same bytes",
        "of 512 bits",
        "synchrony 0.20",
    ):
        assert words in page.text, words
    assert page.text.count("Play both, hear the one in use") == 2
    assert len(page.all("video")) == 4 + 3 + 2 * 2  # all in use, one of each reason, two pairs
    row = re.search(
        r"Near copies, alike in picture and sound filters.duplicates near (\d+) near (\d+)", page.text
    )
    assert row and row.groups() == ("1", "1")
    write_data_report(config)
    assert (tmp_path / "data" / "report.html").read_text("utf-8") == text


def test_a_copy_is_shown_beside_a_segment_in_use():
    reasons = {1: "near_duplicate", 2: "duplicate", 4: "duplicate"}  # 1 has the bytes of 2, and 3 those of 4
    checksums = ["a", "b", "b", "c", "c"]
    hashes = [bytes(32), bytes(32), bytes(32), b"x" * 32, b"x" * 32]
    columns = {"checksum": checksums, "picture_hash": hashes, "sound_hash": hashes}
    segments = pa.table({"dropped": [reasons.get(number, "") for number in range(5)], **columns})
    assert [(kept, copy) for kept, copy, _ in _copies(segments)] == [(3, 4), (0, 1)]


def test_a_filter_that_is_set_to_0_is_not_off(tmp_path):
    config = small_config(tmp_path)
    write_data(tmp_path, config, dropped={3: "clipped", 2: "low_motion"})
    path = tmp_path / "data" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["filters"] |= {"max_clipped": 0.0, "max_black": 0, "min_sync": None, "duplicates": "keep"}
    path.write_text(json.dumps(manifest))
    write_data_report(config)
    text = Page((tmp_path / "data" / "report.html").read_text("utf-8")).text
    shown = dict(re.findall(r"filters\.(\w+) (\S+ \d+) ", text))
    expected = {"max_clipped": "0 1", "max_black": "0 0", "min_sync": "off 0", "avoid_shot_cuts": "off 0"}
    assert shown == shown | expected and shown["duplicates"] == "off 0"


def test_data_page_of_nothing_and_of_half(tmp_path):
    config = small_config(tmp_path)
    write_data_report(config)
    assert "preprocess.py" in Page((tmp_path / "data" / "report.html").read_text("utf-8")).text
    write_data(tmp_path, config)
    (tmp_path / "data" / "manifest.json").unlink()
    (tmp_path / "data" / "index.parquet").unlink()
    (tmp_path / "data" / "segments" / "part-00001.parquet").write_bytes(b"PAR1 cut off")
    write_data_report(config)
    words = Page((tmp_path / "data" / "report.html").read_text("utf-8")).text
    assert (
        "5 segments of 5 sources" in words
        and "part-00001.parquet" in words
        and "preprocessing has not finished" in words
    )
