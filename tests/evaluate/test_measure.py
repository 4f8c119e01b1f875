"""Units of measurements do not depend on the workers. They are kept, and made again only if they are gone."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from proav.errors import UserError
from proav.evaluate.clip_sets import files_below
from proav.evaluate.measure import (
    UNIT_CLIPS,
    Measurer,
    Measures,
    SetToMeasure,
    measure_sets,
    measured_folder,
    read_measured,
    unit_items,
)
from tests.tiny import tiny_config

pytestmark = pytest.mark.ray
NETWORKS = {"surrogate-video": None, "surrogate-audio": None}


def measures(**changes):
    return Measures(
        **{"config": tiny_config(), "networks": NETWORKS, "scores": ("av_align", "synchrony"), **changes}
    )


def files(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def test_workers_change_nothing_and_units_are_kept(folders, view, tmp_path, ray_local):
    clips, told = files_below("real", folders[0], view, max_clips=100), measures(scores=("synchrony",))
    fewer = files_below("fewer", folders[0], view, max_clips=20)
    other = SetToMeasure(fewer, measures(scores=()), f"{tmp_path}/other")
    (one,) = measure_sets([SetToMeasure(clips, told, f"{tmp_path}/1")], num_workers=1, use_gpu=False)
    # two sets share two actors
    sets = [SetToMeasure(clips, told, f"{tmp_path}/2"), other]
    two, of_other = measure_sets(sets, num_workers=2, use_gpu=False)
    whole = dict(zip(one.ids, one.features["surrogate-video"], strict=True))
    assert of_other.ids == [item.id for item in fewer.items] and not of_other.scores
    for name, features in zip(of_other.ids, of_other.features["surrogate-video"], strict=True):
        np.testing.assert_array_equal(features, whole[name])
    assert (
        files(tmp_path / "1") == files(tmp_path / "2")
        and len(files(tmp_path / "1")) == -(-len(clips.items) // UNIT_CLIPS) == 3
    )
    assert one.ids == two.ids == [item.id for item in clips.items] and one.features["surrogate-video"][
        0
    ].shape == (1, 64)
    assert {"read", "scores", "surrogate-video"} <= set(one.cost)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "1").iterdir()}
    lost = tmp_path / "1" / "000001.parquet"
    before = lost.read_bytes()
    lost.unlink()
    (again,) = measure_sets([SetToMeasure(clips, told, f"{tmp_path}/1")], num_workers=1, use_gpu=False)
    assert lost.read_bytes() == before and again.ids == one.ids
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items() if path != lost)


def test_a_clip_is_measured_as_if_it_were_alone(folders, view, tmp_path):
    clips, told = files_below("real", folders[0], view, max_clips=100), measures()
    measurer = Measurer([SetToMeasure(clips, told, str(tmp_path))])
    rows, _ = measurer.measure(0, unit_items(clips, 0))
    (alone,), _ = measurer.measure(0, clips.items[5:6])
    assert (
        rows[5]["id"] == alone["id"]
        and rows[5]["features:surrogate-video"] == alone["features:surrogate-video"]
    )
    assert rows[5]["features:surrogate-audio"] == alone["features:surrogate-audio"]
    np.testing.assert_equal(rows[5]["av_align"], alone["av_align"])


def test_clips_that_cannot_be_read_are_counted_and_left_out(folders, view, tmp_path):
    clips, told = files_below("made", folders[1], view, max_clips=100), measures(scores=())
    to_measure = SetToMeasure(clips, told, str(tmp_path))
    assert Measurer([to_measure])({"set": 0, "unit": 0})["error"] == ""
    measured = read_measured(to_measure)
    assert (
        len(measured) == 9 and measured.problems == {"unreadable": 1} and "broken.mp4@0" not in measured.ids
    )


def test_the_folder_follows_from_all_that_the_numbers_follow_from(folders, view):
    clips, fewer = (files_below("real", folders[0], view, max_clips=count) for count in (100, 30))
    larger = files_below("real", folders[0], dataclasses.replace(view, height=64), max_clips=100)
    names = {
        measured_folder("run", clips, measures()),
        measured_folder("run", fewer, measures()),
        measured_folder("run", larger, measures()),
        measured_folder("run", clips, measures(scores=("synchrony",))),
        measured_folder("run", clips, measures(networks={"surrogate-video": None})),
        measured_folder("run", clips, measures(config=tiny_config("mel.num_bins=16"))),
    }
    assert len(names) == 6 and measured_folder("run", clips, measures()) in names


def test_a_mistake_comes_out_as_its_line(folders, view, tmp_path, ray_local):
    clips = files_below("made", folders[1], view, max_clips=100)
    with pytest.raises(UserError, match="not a safetensors file"):
        (tmp_path / "i3d.safetensors").write_text("no weights")
        told = measures(networks={"i3d-kinetics400": str(tmp_path / "i3d.safetensors")}, scores=())
        measure_sets([SetToMeasure(clips, told, f"{tmp_path}/out")], num_workers=1, use_gpu=False)
    assert not list((tmp_path / "out").iterdir())
