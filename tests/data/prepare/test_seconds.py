"""The seconds of every source are in segments, or in rejects with a reason and a span.

`verify` proves it.
"""

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from proav.data.prepare.finish import summary
from proav.data.prepare.verify import verify
from proav.data.store.parquet import DamagedShard
from proav.data.store.shards import SegmentStore, manifest_hash, read_accounts, read_rejects
from proav.media.container import Clip
from proav.storage import file_sha256
from tests.media.flash_and_beep import make_film, regular
from tests.media.test_tracks import tone, write_film
from tests.synthetic_clips import make_clip, prepare
from tests.tiny import tiny_config


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """Films of every kind of ending and beginning, listed in clips.csv.

    One of them is listed by two stretches, one is text, and one does not exist.
    """
    root = tmp_path_factory.mktemp("recordings")
    parts = []
    for number, seconds in enumerate((4, 3)):
        path, times = root / f"{number}.part.ts", regular(25, seconds)
        parts.append(Path(make_film(path, times=times, sound_to=float(seconds), audio="mp2")).read_bytes())
    (root / "joined.ts").write_bytes(b"".join(parts))
    for part in root.glob("*.part.ts"):
        part.unlink()
    make_film(root / "hole.mkv", times=regular(5, 45), sound_to=45.0, hole=(4.0, 40.0), audio="libopus")
    make_film(root / "mute_end.mkv", times=regular(25, 5), sound_to=3.3)
    make_film(root / "still.mkv", times=[Fraction(0), Fraction(2)], tick=Fraction(1, 1000), sound_to=6.0)
    write_film(root / "two_tracks.mov", tone(300, 0.0), tone(700))
    write_film(root / "cancelled.mov", np.concatenate([tone(300), -tone(300)]))
    make_film(root / "no_sound.mp4", times=regular(25, 2), audio=None)
    make_clip(1, seconds=7.0).save(str(root / "listed.mp4"))
    (root / "text.mp4").write_text("this is no video")
    rows = [f"{path.name},," for path in sorted(root.iterdir()) if path.name != "listed.mp4"]
    rows += ["listed.mp4,0.5,2.9", "listed.mp4,4,8", "absent.mp4,10,20"]
    (root / "clips.csv").write_text("\n".join(["path,start_seconds,end_seconds", *rows]) + "\n")
    return root


def prepared(recordings, tmp_path, *words):
    config = tiny_config(f"run_dir={tmp_path}/run", f"data.listing={recordings}/clips.csv", *words)
    return prepare(config), f"{tmp_path}/run/data"


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("data.segment_seconds=0.8", "data.fit=pad"),
        ("data.segment_seconds=30",),
        ("clip.fps=4", "mel.hop=250"),
    ],
)
def test_all_seconds_are_accounted_for(recordings, tmp_path, words):
    manifest, data_dir = prepared(recordings, tmp_path, *words)
    seconds = manifest["seconds"]
    assert verify(data_dir)["seconds"] == seconds
    accounts = {
        (Path(row["source"]).name, row["start_seconds"]): row for row in read_accounts(data_dir).to_pylist()
    }
    assert len(accounts) == 11
    lengths = {
        key[0]: round(row["end_seconds"] - row["start_seconds"], 1)
        for key, row in accounts.items()
        if key[1] == 0
    }
    assert (
        lengths["joined.ts"] == 7.0
        and lengths["hole.mkv"] == 45.0
        and lengths["still.mkv"] == 6.0
        and lengths["no_sound.mp4"] == 2.0
    )
    assert lengths["mute_end.mkv"] == 5.0 and lengths["text.mp4"] == 0.0
    listed = accounts["listed.mp4", 4.0]
    assert listed["end_seconds"] == 8.0 and listed["used_seconds"] + listed[
        "rejected_seconds"
    ] == pytest.approx(4.0)
    rejects = [
        (Path(row["source"]).name, row["start_seconds"], row["end_seconds"], row["reason"])
        for row in read_rejects(data_dir).to_pylist()
    ]
    assert ("absent.mp4", 10.0, 20.0, "not_found") in rejects and (
        "text.mp4",
        0.0,
        None,
        "unreadable",
    ) in rejects
    assert ("no_sound.mp4", 0.0, 2.0, "no_audio") in rejects and (
        "listed.mp4",
        7.0,
        8.0,
        "past_end",
    ) in rejects
    assert any(
        name == "mute_end.mkv" and reason == "no_sound" and end == 5.0 for name, _, end, reason in rejects
    )
    assert any(
        name == "hole.mkv" and reason == "no_sound" and end - start > 35
        for name, start, end, reason in rejects
    )
    assert abs(seconds["declared"] - seconds["used"] - seconds["rejected"]) < 0.25 * len(accounts)
    if not words:
        assert accounts["joined.ts", 0.0]["used_seconds"] == pytest.approx(7.0) and accounts[
            "still.mkv", 0.0
        ]["used_seconds"] == pytest.approx(6.0)


def test_other_tracks_and_cancelled_mixes_are_reported(recordings, tmp_path):
    manifest, data_dir = prepared(recordings, tmp_path, "filters.min_rms_db=-60")
    accounts = {Path(row["source"]).name: row for row in read_accounts(data_dir).to_pylist()}
    assert (
        accounts["two_tracks.mov"]["sound_track"] == 1
        and "since 0 is silent" in accounts["two_tracks.mov"]["note"]
    )
    assert (
        manifest["counts"]["sources_with_other_tracks"] == 1 and manifest["counts"]["cancelled_segments"] == 2
    )
    rows = [row for row in SegmentStore(data_dir).rows if row["source"].endswith("cancelled.mov")]
    assert (
        all(row["cancelled"] and not row["silent"] and row["dropped"] == "cancelled" for row in rows)
        and len(rows) == 2
    )
    assert manifest["dropped_by_reason"]["cancelled"] == 2
    lines = summary(manifest, data_dir)
    assert (
        sum(
            line.startswith(("OTHER TRACKS: 1", "CANCELLED: in 2", "seconds of the sources"))
            for line in lines
        )
        == 3
    )


def test_a_chosen_track_is_taken_and_one_that_is_not_there_is_a_reject(recordings, tmp_path):
    manifest, data_dir = prepared(recordings, tmp_path, "data.sound_track=1")
    reasons = {
        Path(row["source"]).name: row
        for row in read_rejects(data_dir).to_pylist()
        if row["reason"] == "no_track"
    }
    assert (
        set(reasons) >= {"joined.ts", "still.mkv", "listed.mp4"} and manifest["counts"]["sources_used"] == 1
    )
    assert "no sound track 1; there are: 0 (aac mono)" in reasons["listed.mp4"]["message"]


def restate(data_dir, folder, key, path):
    """Makes the manifest agree with a changed file.

    data_dir: the data set.
    folder: of the file; unused.
    key: the manifest's list that names the file, such as "accounts".
    path: the changed file.
    """
    place = Path(data_dir) / "manifest.json"
    manifest = json.loads(place.read_text())
    for entry in manifest[key]:
        if entry["name"] == path.name:
            entry["sha256"], entry["bytes"] = file_sha256(str(path))
            entry["rows"] = pq.read_metadata(path).num_rows
    manifest["hash"] = manifest_hash(manifest)
    place.write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows[:-1],
        lambda rows: [*rows[:-1], rows[-1] | {"end_seconds": rows[-1]["end_seconds"] - 0.4}],
        lambda rows: [*rows[:-1], rows[-1] | {"start_seconds": rows[-1]["start_seconds"] - 0.4}],
    ],
)
def test_a_lost_or_doubled_second_is_found(recordings, tmp_path, change):
    _, data_dir = prepared(recordings, tmp_path)
    (path,) = [
        path
        for path in (Path(data_dir) / "rejects").iterdir()
        if "mute_end" in str(pq.read_table(path).column("source").to_pylist())
    ]
    table = pq.read_table(path)
    rows = sorted(
        table.to_pylist(), key=lambda row: (not row["source"].endswith("mute_end.mkv"), row["start_seconds"])
    )
    mine = [row for row in rows if row["source"].endswith("mute_end.mkv")]
    changed = change(mine) + [row for row in rows if not row["source"].endswith("mute_end.mkv")]
    pq.write_table(pa.Table.from_pylist(changed, schema=table.schema), path)
    restate(data_dir, "rejects", "rejects", path)
    with pytest.raises(
        DamagedShard, match="have seconds that are in neither segments nor rejects, or are there twice"
    ):
        verify(data_dir)


def test_a_source_without_an_account_is_found(recordings, tmp_path):
    _, data_dir = prepared(recordings, tmp_path)
    path = sorted((Path(data_dir) / "sources").iterdir())[0]
    table = pq.read_table(path)
    pq.write_table(table.slice(1), path)
    restate(data_dir, "sources", "accounts", path)
    with pytest.raises(DamagedShard, match="accounts for 10 of 11 planned stretches"):
        verify(data_dir)


def test_a_silent_clip_stays_a_silent_one(tmp_path):
    Clip(np.zeros((20, 32, 32, 3), np.uint8), np.zeros(32000, np.float32), 10, 16000).save(
        str(tmp_path / "silent.mp4")
    )
    manifest = prepare(tiny_config(f"run_dir={tmp_path}/run", f"data.sources=[{tmp_path}/silent.mp4]"))
    assert (manifest["counts"]["silent_segments"], manifest["counts"]["cancelled_segments"]) == (1, 0)
