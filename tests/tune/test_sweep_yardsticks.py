"""The yardsticks of a sweep: one for each size of the latents, measured once and kept."""

import json
from pathlib import Path

import pytest

from proav.errors import StorageUnavailable, UserError
from proav.evaluate.reconstruction import evaluate_yardsticks
from proav.evaluate.yardsticks import (
    YARDSTICK_SCORES,
    load_yardsticks,
    make_yardsticks,
    plan_yardsticks,
)
from proav.tune.record import TrialRecord
from proav.tune.sweep_yardsticks import shared_fit, sweep_yardsticks, yardstick_lines
from proav.tune.trial_measure import _aside
from tests.tiny import tiny_config
from tests.train.tiny_run import write_segments
from tests.tune.test_results import rung

CHANNELS, WIDTH = "mdsa.latent_channels", "mdsa.width"
AXES = f"tune.axes={{{CHANNELS}: [2, 4], {WIDTH}: [16, 32]}}"


def record(number, channels, width, *, rungs=(8,)):
    return TrialRecord(
        id=str(number),
        point={CHANNELS: channels, WIDTH: width},
        data_hash="abc",
        number=number,
        rungs=[rung(clips, 10, 5) for clips in rungs],
    )


@pytest.mark.ray
def test_one_for_each_size_of_the_latents_and_measured_once(tmp_path, ray_local):
    config = tiny_config(f"run_dir={tmp_path}", "evaluate.max_clips=4", AXES)
    write_segments(config, splits=("train", "validation"))
    records = [record(0, 4, 16), record(1, 2, 16), record(2, 4, 32), record(3, -1, 16, rungs=())]
    small, large = sweep_yardsticks(config, records)
    assert [each["values_per_stream"]["audio"] for each in (small, large)] == [2 * 3 * 16, 4 * 3 * 16]
    for name in ("psnr_linear_planes_db", "psnr_cosine_db"):
        assert small[name] < large[name]  # more numbers keep more
    fitted = load_yardsticks(f"{tmp_path}/eval/yardsticks-{large['hash']}.safetensors")
    expected = evaluate_yardsticks(config, fitted)
    assert all(large[name] == expected[name] for name in YARDSTICK_SCORES)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "eval").iterdir()}
    assert sweep_yardsticks(config, records) == [small, large]
    assert kept == {path: path.stat().st_mtime_ns for path in (tmp_path / "eval").iterdir()}
    assert len(kept) == 4
    assert json.loads((tmp_path / "eval" / f"yardsticks-{small['hash']}.json").read_text()) == small

    fewer = config.model_copy(update={"evaluate": config.evaluate.model_copy(update={"max_clips": 2})})
    assert sweep_yardsticks(fewer, records)[0]["num_clips"] == 2  # of other clips: measured anew


@pytest.mark.ray
def test_without_a_training_split_there_are_none(tmp_path, ray_local):
    config = tiny_config(f"run_dir={tmp_path}", AXES)
    write_segments(config, splits=("validation",))
    assert plan_yardsticks(config).needs and sweep_yardsticks(config, [record(0, 4, 16)]) == []


@pytest.mark.ray
def test_a_damaged_data_set_is_told_in_the_tasks_own_words(tmp_path, ray_local):
    config = tiny_config(f"run_dir={tmp_path}", AXES)
    write_segments(config, splits=("train", "validation"))
    for shard in (tmp_path / "data").rglob("*.parquet"):
        shard.unlink()
    with pytest.raises(UserError, match="^[^\n]*missing[^\n]*$"):
        sweep_yardsticks(config, [record(0, 4, 16)])


@pytest.mark.ray
@pytest.mark.parametrize("mistake", [UserError("no such file"), StorageUnavailable("s3 is down")])
def test_an_error_of_a_task_of_a_trial_is_told_in_its_own_words(ray_local, mistake):
    def fail():
        raise mistake

    with pytest.raises(type(mistake)) as caught:
        _aside(fail)
    assert str(caught.value) == str(mistake)


def test_trials_of_one_seed_share_a_fit(tmp_path):
    first, second, other = (
        tiny_config(
            f"run_dir={tmp_path}/{name}", f"data.prepared={tmp_path}/first/data", f"seed={seed}", *words
        )
        for name, seed, words in (
            ("first", 0, ()),
            ("second", 0, ("mdsa.width=32",)),
            ("other", 1, ()),
        )
    )
    write_segments(first, splits=("train", "validation"))
    shelf = str(tmp_path / "shelf")
    with shared_fit(first, shelf):
        assert plan_yardsticks(first).is_due()
        make_yardsticks(first, plan_yardsticks(first))
    with shared_fit(second, shelf):
        taken = plan_yardsticks(second)
        assert not taken.is_due()
    with shared_fit(other, shelf):
        assert plan_yardsticks(other).is_due()  # another seed draws other windows
    fitted = Path(plan_yardsticks(first).path)
    assert Path(taken.path).read_bytes() == fitted.read_bytes()
    assert [path.name for path in Path(shelf).iterdir()] == [fitted.name]


def test_no_yardsticks_no_lines():
    assert yardstick_lines([]) == []
