"""The protocol `world` through the evaluation itself: true clips beside late sound and rubbish."""

import importlib
from pathlib import Path

import numpy as np
import pytest

from proav.evaluate.job import evaluate
from proav.evaluate.measure import Measured
from proav.evaluate.numbers import Resampling, score_numbers
from proav.media.container import Clip
from proav.metrics.world.world_scores import WORLD_SCORES, world_scale
from proav.reports.kit.tables import number_table
from tests.tiny import tiny_config

ROOT = Path(__file__).parents[2]
WINDOWS = [
    "clip.num_frames=8",
    "clip.fps=10",
    "clip.height=64",
    "clip.width=64",
    "mdsa.plane_size=8",
    "evaluate.protocol=world",
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two folders: six clips of the world with sounds, and the same clips with sound three frames late.

    Beside the late ones are two clips that are not of this world.
    """
    root = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "examples" / "world")
        make, physics = importlib.import_module("make"), importlib.import_module("physics")
    scenes = (physics.make_scene(2, index) for index in range(20))
    for index, scene in enumerate([scene for scene in scenes if scene.events and scene.bodies][:6]):
        clip = make.make_clip(scene, fps=10, size=64)
        late = np.roll(clip.audio, 3 * clip.sample_rate // clip.fps)
        name = f"{scene.material.name}/{index}.mp4"
        for folder, audio in (("true", clip.audio), ("late", late)):
            (root / folder / name).parent.mkdir(parents=True, exist_ok=True)
            Clip(clip.video, audio, clip.fps, clip.sample_rate).save(str(root / folder / name))
    (root / "late" / "none").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3), np.uint8)
    for number, video in enumerate((noise, np.zeros_like(noise))):
        silence = np.zeros(12_800, np.float32)
        Clip(video, silence, 10, 16_000).save(str(root / "late" / "none" / f"{number}.mp4"))
    return root


def rows_of(metrics: dict) -> dict[str, dict]:
    (table,) = metrics["tables"]
    assert [row["metric"] for row in table["rows"]] == list(WORLD_SCORES)
    return {row["metric"]: row for row in table["rows"]}


@pytest.mark.ray
def test_late_sound_is_distinguished_from_true_sound(folders, tmp_path, ray_local, capsys):
    words = [f"run_dir={tmp_path}", f"evaluate.real={folders}/true", f"evaluate.fake={folders}/late"]
    metrics = evaluate(tiny_config(*WINDOWS, *words, "evaluate.num_resamples=20"))
    rows = rows_of(metrics)
    assert rows["impacts_heard"]["floor"] == 1 and rows["impacts_heard"]["value"] < 0.6
    assert rows["median_offset_ms"]["floor"] < 10 < 50 < rows["median_offset_ms"]["value"]
    assert rows["label_fits"]["floor"] == 1 and rows["impacts_heard"]["low"] < rows["impacts_heard"]["high"]
    # Twelve windows have the same pictures, one has noise, and one is black. In the black one nothing can be
    # followed.
    assert rows["impacts"]["value"] == pytest.approx(rows["impacts"]["floor"] * 12 / 14)
    assert rows["followed"]["value"] == pytest.approx(12 / 13)
    assert "undefined for 1 clips" in rows["followed"]["note"]
    said = capsys.readouterr().out
    assert "impacts_heard of known clips: true clips " in said and "another clip's sound" in said
    assert "1 frame late" in str(number_table(metrics["tables"][0]))
    scale = world_scale()["windows"]["scores"]
    said = metrics["tables"][0]["scale"]["impacts_heard"]
    assert said.startswith(f"true clips {scale['true clips']['impacts_heard']:.3g}, ")


def test_shares_are_of_all_impacts_and_offsets_are_medians():
    names = [f"{number}" for number in range(3)]
    scores = {
        "impacts_heard": np.array([1.0, 0.0, np.nan]),
        "impacts": np.array([3.0, 1.0, 0.0]),
        "median_offset_ms": np.array([5.0, 300.0, 7.0]),
    }
    measured = Measured(names, names, names, scores, {}, {}, {})
    heard, offset, impacts = score_numbers(
        ["impacts_heard", "median_offset_ms", "impacts"], measured, Resampling(20, 0), real=measured
    )
    assert heard.value == heard.floor == 0.75 and heard.clips == 2 and "undefined for 1 clips" in heard.note
    assert offset.value == 7 and impacts.value == pytest.approx(4 / 3)
