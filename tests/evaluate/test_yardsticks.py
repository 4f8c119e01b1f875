"""Yardsticks of a run. They are fitted on training clips alone, equal for any number of workers, and kept. If
there are none, the result says why."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from proav.data.feeds.feed import ClipFeed
from proav.data.store.shards import SegmentStore
from proav.evaluate import yardsticks as module
from proav.evaluate.job import evaluate
from proav.evaluate.reconstruction import evaluate_yardsticks, mean_scores, trivial_scores
from proav.evaluate.yardsticks import (
    YARDSTICK_SCORES,
    fit_yardsticks,
    load_yardsticks,
    make_yardsticks,
    plan_yardsticks,
)
from proav.geometry import LatentGeometry
from proav.metrics.protocols import PROTOCOLS
from tests.tiny import save_tiny_mdsa, tiny_config
from tests.train.tiny_run import write_segments

SPLITS = ("train", "validation")


def prepared(folder, *words, splits=SPLITS, **options):
    config = tiny_config(f"run_dir={folder}", *words)
    write_segments(config, splits=splits, **options)
    return config


def tensors_of(config):
    return module._to_tensors(fit_yardsticks(config, plan_yardsticks(config)))


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_they_store_as_many_numbers_as_mdsa(tmp_path):
    config = prepared(tmp_path)
    plan, latents = plan_yardsticks(config), LatentGeometry.from_config(config)
    fitted = fit_yardsticks(config, plan)
    assert plan.record["values_per_stream"] == {"video": 4 * 3 * 16, "audio": 4 * 3 * 16}
    assert (
        len(fitted.video_cosine.kept) == len(fitted.audio_cosine.kept) == latents.values_per_stream("video")
    )
    window = SegmentStore(config.data_folder).window(0, 0, 4)
    video = torch.from_numpy(window["video"])[None].movedim(-1, 1).float() / 127.5 - 1
    mel = torch.from_numpy(window["mel"]).float()[None]
    codes = fitted.video_planes.encode(video), fitted.audio_planes.encode(mel[:, None])
    for code in codes:
        assert sum(plane.numel() for plane in code.values()) == latents.values_per_stream("video")
    for clips, made in ((video, fitted.pictures(video)), (mel, fitted.sounds(mel))):
        assert set(made) == {"linear_planes", "cosine"}
        assert all(each.shape == clips.shape and each.abs().max() <= 1 for each in made.values())


@pytest.mark.parametrize(
    "words", [("mel.hop=800", "mel.n_fft=2048"), ("mel.hop=1600", "mel.num_bins=2", "mel.n_fft=4096")]
)
def test_sound_that_the_planes_do_not_divide_is_repeated_and_comes_back(tmp_path, words):
    """4 or 2 columns a frame and 32 or 2 bins, on planes of side 8. There are enough channels for an exact
    code."""
    config = prepared(
        tmp_path, *words, "mdsa.audio_input=tiled", "mdsa.plane_size=8", "mdsa.latent_channels=64"
    )
    fitted = fit_yardsticks(config, plan_yardsticks(config))
    mel = ClipFeed(config.data_folder, config).batch(0)["mel"]
    made = fitted.sounds(mel)
    assert torch.allclose(made["linear_planes"], mel, atol=1e-4)


@pytest.mark.parametrize("changed", SPLITS)
def test_the_fit_sees_the_training_split_and_nothing_else(tmp_path, changed):
    """Other validation clips change no bit of the fit; other training clips do."""
    before = tensors_of(prepared(tmp_path / "before"))
    config = prepared(tmp_path / "after", other_split=changed)
    stores = [SegmentStore(f"{tmp_path}/{name}/data") for name in ("before", "after")]
    for index in stores[0].indices():
        windows = [store.window(int(index)) for store in stores]
        is_changed = stores[0].rows[int(index)]["split"] == changed
        assert np.array_equal(windows[0]["video"], windows[1]["video"]) != is_changed
        assert np.array_equal(windows[0]["mel"], windows[1]["mel"]) != is_changed
    assert same(before, tensors_of(config)) == (changed == "validation")


def test_data_seed_and_configuration_decide_every_bit(tmp_path):
    config = prepared(tmp_path)
    before, threads = tensors_of(config), torch.get_num_threads()
    torch.manual_seed(7)
    torch.set_num_threads(2)
    try:
        assert same(before, tensors_of(config))
    finally:
        torch.set_num_threads(threads)
    other_seed = config.model_copy(update={"seed": 1})
    assert not same(before, tensors_of(other_seed))
    other_size = tiny_config(f"run_dir={tmp_path}", "mdsa.latent_channels=5")
    plans = [plan_yardsticks(each) for each in (config, other_seed, other_size)]
    assert len({plan.hash for plan in plans}) == 3 and len({plan.path for plan in plans}) == 3


def test_they_are_kept_whole_and_not_fitted_again(tmp_path, monkeypatch):
    config = prepared(tmp_path)
    plan = plan_yardsticks(config)
    make_yardsticks(config, plan)
    assert [path.name for path in (tmp_path / "eval").iterdir()] == [f"yardsticks-{plan.hash}.safetensors"]
    assert same(module._to_tensors(load_yardsticks(plan.path)), tensors_of(config))
    monkeypatch.setattr(module, "fit_yardsticks", None)
    make_yardsticks(config, plan)


def test_long_and_large_clips_are_fitted_on_fewer_windows(tmp_path):
    config = prepared(tmp_path)
    assert plan_yardsticks(config).record["num_windows"] == module.MAX_WINDOWS
    large = config.model_copy(
        update={"clip": config.clip.model_copy(update={"num_frames": 8, "height": 1024, "width": 1024})}
    )
    plan = plan_yardsticks(large)
    assert plan.record["num_windows"] == module.MAX_VALUES // (8 * 1024 * 1024 * 3) == 10
    protocol = plan.to_dict()["protocol"]
    assert "first 10 windows" in protocol and f"at most {module.MAX_WINDOWS} windows" in protocol


def test_means_without_a_model_beside_a_hand_made_one(tmp_path):
    config = prepared(tmp_path, "evaluate.max_clips=2")
    plan = plan_yardsticks(config)
    means = evaluate_yardsticks(config, fit_yardsticks(config, plan))
    assert set(YARDSTICK_SCORES) <= set(means) and means["num_clips"] == 2
    assert set(YARDSTICK_SCORES).isdisjoint(evaluate_yardsticks(config, None))
    assert all(np.isfinite(means[name]) for name in YARDSTICK_SCORES)


def test_a_clip_of_one_colour_is_left_out_and_counted_as_of_the_mean_colour(tmp_path):
    config = prepared(tmp_path)
    fitted = fit_yardsticks(config, plan_yardsticks(config))
    pictures = torch.rand(3, 3, 4, 32, 32, generator=torch.Generator().manual_seed(0)) - 0.5
    pictures[1] = 0.25
    sounds = torch.rand(3, 4, 32, 16, generator=torch.Generator().manual_seed(1)) - 0.5
    scores = {
        name: values.numpy() for name, values in trivial_scores(config, pictures, sounds, fitted).items()
    }
    for name in ("psnr_mean_colour_db", "psnr_linear_planes_db", "psnr_cosine_db"):
        assert np.isinf(scores[name]).tolist() == [False, True, False]
    means = mean_scores(scores, sources=["a", "b", "c"], config=config)
    assert means["num_clips"] == 2 and means["num_one_colour_clips_left_out"] == 1
    assert means["psnr_cosine_db"] == pytest.approx(scores["psnr_cosine_db"][[0, 2]].mean())


def run_of(folder, *words, splits=SPLITS):
    """A run with a tiny MDSA of random weights and enough windows for several units."""
    config = prepared(
        folder, "evaluate.max_clips=64", "evaluate.num_resamples=20", *words, splits=splits, frames=24
    )
    save_tiny_mdsa(f"{folder}/mdsa/checkpoints", config)
    return config


@pytest.fixture
def quick(monkeypatch):
    """The protocol `small` without networks and without the scores that take time."""
    scores = tuple(
        name
        for name in PROTOCOLS["small"].scores
        if name not in ("lpips", "ssim", "av_align", "av_align_one_to_one", "synchrony")
    )
    monkeypatch.setitem(
        PROTOCOLS, "small", dataclasses.replace(PROTOCOLS["small"], distances=(), scores=scores)
    )


@pytest.mark.ray
def test_workers_change_nothing(tmp_path, ray_local, capsys, quick):
    configs = [run_of(tmp_path / str(workers), f"evaluate.num_workers={workers}") for workers in (1, 2)]
    one, two = (evaluate(config) for config in configs)
    assert all(one[part] == two[part] for part in ("tables", "reconstruction", "yardsticks"))
    files = [next((tmp_path / name / "eval").glob("yardsticks-*.safetensors")) for name in "12"]
    assert files[0].name == files[1].name and files[0].read_bytes() == files[1].read_bytes()
    assert len(list((tmp_path / "2" / "eval" / "measured").glob("reconstructed-*/*.parquet"))) == 2

    rows = {row["metric"]: row for row in one["tables"][0]["rows"]}
    for name in ("psnr_db", "psnr_mean_colour_db", *YARDSTICK_SCORES):
        assert rows[name]["value"] == pytest.approx(one["reconstruction"][name], abs=1e-9)
        assert rows[name]["clips"] == 18
    expected = evaluate_yardsticks(configs[0], load_yardsticks(str(files[0])))
    for name in YARDSTICK_SCORES:
        assert one["reconstruction"][name] == expected[name]  # a clip's number does not depend on its batch
    assert rows["blockiness"]["floor"] == pytest.approx(1, abs=0.02)  # the segments are noise
    said = capsys.readouterr().out
    assert f"linear planes {expected['psnr_linear_planes_db']:.2f} dB" in said
    assert "192 numbers a stream" in said
    assert one == json.loads((tmp_path / "1/eval/metrics.json").read_text()) == evaluate(configs[0])
    assert "done already" in capsys.readouterr().out


@pytest.mark.ray
def test_without_a_training_split_they_are_absent_with_the_reason(tmp_path, ray_local, capsys, quick):
    config = run_of(tmp_path, splits=("validation",))
    metrics = evaluate(config)
    assert "a training split to fit them on" in metrics["yardsticks"]["absent"]
    assert set(YARDSTICK_SCORES).isdisjoint(metrics["reconstruction"])
    assert metrics["reconstruction"]["psnr_db"] > 0
    rows = {row["metric"]: row for row in metrics["tables"][0]["rows"]}
    for name in YARDSTICK_SCORES:
        assert rows[name]["value"] is None and "a training split" in rows[name]["needs"]
    said = capsys.readouterr().out
    assert "without linear planes and cosine transform: they need a training split" in said
    assert "nan" not in said
    assert not list((tmp_path / "eval").glob("yardsticks-*"))
