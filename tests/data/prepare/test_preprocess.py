import hashlib
import json
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from proav.config.reading import config_to_dict
from proav.data.prepare.plan import settle_plan
from proav.data.prepare.preprocess import finished_records
from proav.data.prepare.source_decoder import SourceDecoder
from proav.data.prepare.unit import WorkUnit, process_unit, read_record
from proav.data.prepare.verify import verify
from proav.data.sources.finding import find_sources, rows_of
from proav.data.store.shards import SegmentStore, read_manifest
from proav.errors import UserError
from tests.resources import wait_until_free
from tests.synthetic_clips import make_clip, prepare
from tests.tiny import tiny_config


def contents(data_dir) -> dict[str, str]:
    """Every file that a finished data set consists of, by checksum."""
    files = [path for path in Path(data_dir).rglob("*") if path.is_file()]
    return {
        path.relative_to(data_dir).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }


def test_two_runs_give_the_same_bytes_wherever_the_sources_are(clips_dir, tmp_path):
    shutil.copytree(clips_dir, tmp_path / "moved" / "set")
    folders = []
    for name, sources in (("one", clips_dir), ("two", tmp_path / "moved" / "set")):
        prepare(tiny_config(f"run_dir={tmp_path / name}", f"data.sources=[{sources}]"))
        folders.append(contents(tmp_path / name / "data"))
    assert folders[0] == folders[1] and len(folders[0]) > 15


def test_silent_sources_are_kept_and_reported(tmp_path, capsys):
    from proav.data.prepare.finish import summary

    for number, silent in enumerate((True, False)):
        make_clip(number, seconds=1.0, silent=silent).save(str(tmp_path / f"{number}.mp4"))
    manifest = prepare(tiny_config(f"run_dir={tmp_path / 'run'}", f"data.sources=[{tmp_path}]"))
    assert manifest["counts"]["silent_segments"] == 1
    assert any(line.startswith("SILENT: 1 of 2 segments") for line in summary(manifest, "x"))


def test_labels_are_composed_and_what_was_passed_over_is_reported(clips_dir, tmp_path):
    from proav.data.prepare.finish import summary

    composed, decomposed = "Caf\u00e9", "Cafe\u0301"
    for name in (f"{decomposed}/a.mp4", f"{composed}/b.mp4", "notes.txt", "c.vdo"):
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(f"{clips_dir}/rain/b.mp4", tmp_path / "set" / name)
    words = (f"run_dir={tmp_path}/run", f"data.sources=[{tmp_path}/set]", f"data.labels=[{decomposed}]")
    manifest = prepare(tiny_config(*words))
    assert manifest["labels"] == [composed] and manifest["label_counts"][composed]["sources"] == 2
    assert manifest["passed_over"] == {".txt": 1, ".vdo": 1}
    (line,) = [line for line in summary(manifest, "x") if line.startswith("PASSED OVER: 2 files")]
    assert ".vdo 1" in line
    store = SegmentStore(f"{tmp_path}/run/data")
    assert {row["source"] for row in store.rows} == {f"set/{decomposed}/a.mp4", f"set/{composed}/b.mp4"}
    assert np.array_equal(store.label_indices(), [[0], [0]])


def test_units_come_back_from_json(clips_dir):
    unit = WorkUnit("000003", tuple(rows_of(find_sources(tiny_config(f"data.sources=[{clips_dir}]")))[:2]))
    assert WorkUnit.from_json(unit.to_json()) == unit


def test_long_units_roll_over_into_more_shards(clips_dir, tmp_path):
    config = tiny_config(f"data.sources=[{clips_dir}]", "data.rows_per_shard=2")
    rows, decoder = tuple(rows_of(find_sources(config))), SourceDecoder(config)
    record = process_unit(config, str(tmp_path), WorkUnit("000000", rows), decoder)
    assert [(shard["name"], shard["rows"]) for shard in record["shards"]] == [
        (f"000000-{number:03d}.parquet", 2) for number in range(4)
    ] + [("000000-004.parquet", 1)]
    assert (
        record["rejects"]["rows"] == 4 and read_record(str(tmp_path / "units" / "000000.parquet")) == record
    )
    # as if sources had vanished in between
    fewer = process_unit(config, str(tmp_path), WorkUnit("000000", rows[:1]), decoder)
    assert [path.name for path in (tmp_path / "segments").iterdir()] == [
        shard["name"] for shard in fewer["shards"]
    ] and len(fewer["shards"]) < 5
    assert not list((tmp_path / "rejects").iterdir())


def test_all_sources_rejected_is_an_error_with_counts(tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.mp4").write_text("no video")
    (tmp_path / "3.mp4").write_bytes(b"")
    with pytest.raises(
        UserError, match=r"none of the 4 sources can be used \(unreadable: 3, empty_file: 1\).*rejects"
    ):
        prepare(tiny_config(f"run_dir={tmp_path}/run", f"data.sources=[{tmp_path}]"))
    assert not (tmp_path / "run" / "data" / "manifest.json").exists()


def test_listed_files_that_are_gone_are_rejects(clips_dir, tmp_path):
    (tmp_path / "clips.csv").write_text(
        f"path,start_seconds,end_seconds,split\n{clips_dir}/rain/a.mp4,1,3,train\nabsent.mp4,,,validation\n"
    )
    manifest = prepare(tiny_config(f"run_dir={tmp_path}/run", f"data.listing={tmp_path}/clips.csv"))
    assert (
        manifest["rejects_by_reason"] == {"not_found": 1}
        and manifest["counts"]["segments"] == 1
        and manifest["counts"]["seconds"] == 2.0
    )


def test_a_unit_whose_rejects_are_deleted_is_made_again(clips_dir, tmp_path):
    """docs/data.md tells users to delete these rejects once the files are mended."""
    config = tiny_config(f"run_dir={tmp_path}/run", f"data.sources=[{clips_dir}]")
    prepare(config)
    plan = settle_plan(config, f"{tmp_path}/run/data", find_sources(config))
    assert len(finished_records(f"{tmp_path}/run/data", plan)) == len(plan)
    lost = min((tmp_path / "run/data/rejects").iterdir())
    lost.unlink()
    assert plan.names == sorted([*finished_records(f"{tmp_path}/run/data", plan), lost.stem])


def test_other_settings_or_sources_are_refused_and_nothing_is_changed(clips_dir, tmp_path):
    config = tiny_config(f"run_dir={tmp_path}", f"data.sources=[{clips_dir}]")
    sources = find_sources(config)
    settle_plan(config, f"{tmp_path}/data", sources)
    before = contents(tmp_path)
    with pytest.raises(UserError, match=r"data.fit=crop there, pad now.*run_dir=DIR"):
        settle_plan(tiny_config(f"data.sources=[{clips_dir}]", "data.fit=pad"), f"{tmp_path}/data", sources)
    with pytest.raises(UserError, match=r"1 gone \(such as set/speech/short.mp4\)"):
        settle_plan(config, f"{tmp_path}/data", sources.slice(0, len(sources) - 1))
    inversion = ("mel.griffin_lim_iterations=9", "mel.griffin_lim_magnitude=pseudo_inverse")
    harmless = tiny_config(f"data.sources=[{clips_dir}]", "data.num_workers=7", *inversion, "seed=5")
    assert len(settle_plan(harmless, f"{tmp_path}/data", sources)) == 7
    assert contents(tmp_path) == before


@pytest.mark.ray
def test_killed_and_resumed_equals_uninterrupted(on_ray_local, clips_dir, tmp_path, capsys):
    from proav.data.prepare.preprocess import preprocess

    whole, killed = (
        tiny_config(f"run_dir={tmp_path / name}", f"data.sources=[{clips_dir}]")
        for name in ("whole", "killed")
    )
    manifest = prepare(whole)  # made without Ray, with the same bytes
    assert verify(f"{tmp_path}/whole/data") == {
        "sources": 7, "shards": 6, "rows": 9, "rejects": 4, "bytes": manifest["counts"]["bytes"],
        "silent": 0, "seconds": manifest["seconds"],
    }  # fmt: skip

    script = f"""
        import json, os, threading, time, ray
        from pathlib import Path
        from proav.data.prepare import preprocess
        from proav.data.prepare.unit import process_unit
        from proav.config.reading import config_from_dict

        def two_units_are_done():
            return len(list(Path("{tmp_path}/killed/data/units").glob("*.parquet"))) >= 2

        def process_unit_or_wait(*arguments):
            while two_units_are_done():
                time.sleep(0.01)
            return process_unit(*arguments)

        def kill_when_two_units_are_done():
            while not two_units_are_done():
                time.sleep(0.01)
            os._exit(9)

        ray.init(logging_level="error")
        threading.Thread(target=kill_when_two_units_are_done, daemon=True).start()
        preprocess.process_unit = process_unit_or_wait
        preprocess.preprocess(config_from_dict(json.loads('''{json.dumps(config_to_dict(killed))}''')))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env=on_ray_local,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 9, done.stderr
    wait_until_free()  # a worker that outlived the driver for a moment writes no more
    finished = sorted((tmp_path / "killed" / "data" / "units").glob("*.parquet"))
    times = {path: path.stat().st_mtime_ns for path in finished}
    assert 2 <= len(finished) < 7 and not (tmp_path / "killed" / "data" / "manifest.json").exists()

    capsys.readouterr()
    preprocess(killed)
    assert f"{len(finished)} of 7 units are there from an earlier run" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in finished} == times  # not decoded again
    assert contents(tmp_path / "killed" / "data") == contents(tmp_path / "whole" / "data")

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "whole").rglob("*")}
    assert preprocess(whole) == manifest
    assert "nothing changed" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "whole").rglob("*")} == before

    lost = tmp_path / "whole" / "data" / "segments" / manifest["shards"][2]["name"]
    lost.unlink()
    preprocess(whole)  # makes what is missing, to the same bytes
    assert contents(tmp_path / "whole" / "data") == contents(tmp_path / "killed" / "data")
    with pytest.raises(UserError, match="clip.fps=5 there, 10 now"):
        preprocess(tiny_config(f"run_dir={tmp_path}/whole", f"data.sources=[{clips_dir}]", "clip.fps=10"))


def test_remote_run_folder(clips_dir):
    import fsspec

    try:
        manifest = prepare(tiny_config("run_dir=memory://proav-test-run", f"data.sources=[{clips_dir}]"))
        assert (
            read_manifest("memory://proav-test-run/data") == manifest
            and verify("memory://proav-test-run/data")["rows"] == 9
        )
        assert SegmentStore("memory://proav-test-run/data").window(3, 2, 4)["video"].shape == (4, 32, 32, 3)
    finally:
        fsspec.filesystem("memory").rm("/proav-test-run", recursive=True)
