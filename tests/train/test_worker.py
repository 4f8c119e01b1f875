"""One worker through both stages on tiny models: resuming equals not stopping.

Anything that is missing or does not fit is reported.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from proav import storage
from proav.data.feeds.feed import ClipFeed
from proav.errors import CheckpointError, UserError
from proav.runs.checkpoint import load_checkpoint
from proav.runs.metrics_log import read_metrics
from proav.runs.stages import find_stage
from proav.train import worker
from proav.train.loop import WAITS
from proav.train.worker import train_worker
from tests.tiny import LABELS, save_tiny_mdsa, tiny_config
from tests.train.tiny_run import write_latents, write_segments
from tests.train.toy import assert_sharded, on_workers, shard_everything

CPU = torch.device("cpu")
OF_THE_MACHINE = ("seconds", "clips_per_second", *WAITS, "device", "peak_memory_gib")
TORCH = ("train.engine=torch", "mdsa.loss.adversarial_start_clips=4", "train.keep_checkpoints=9")
ZERO_2 = ("train.engine=deepspeed", "train.zero_stage=2", *TORCH[1:])
ZERO_3 = ("train.engine=deepspeed", "train.zero_stage=3", *TORCH[1:])
MUON = ("mdsa.train.optimizer=muon", "stdit.train.optimizer=muon")


def prepare(folder, stage, *overrides, damaged_segment=None):
    config = tiny_config(f"run_dir={folder}", *overrides)
    if stage == "mdsa":
        write_segments(config, damaged=damaged_segment)
    else:
        write_latents(
            config, load_checkpoint(save_tiny_mdsa(f"{folder}/mdsa/checkpoints", config), kind="mdsa").hash
        )
    if stage == "distill":  # its teacher, then the words for itself
        alone = (*TORCH, "train.zero_stage=0", "train.num_workers=1", "train.num_clips=8")
        train_worker(tiny_config(f"run_dir={folder}", *overrides, *alone), "stdit", device=CPU)
        config = tiny_config(f"run_dir={folder}", "stage=distill", *overrides)
    return config


def curve(folder, stage):
    return [
        {name: value for name, value in line.items() if name not in OF_THE_MACHINE}
        for line in read_metrics(f"{folder}/{stage}")
    ]


def interrupted_equals_uninterrupted(folder, overrides, stages=("mdsa", "stdit")):
    for stage in stages:
        whole = prepare(f"{folder}/{stage}-whole", stage, *overrides)
        train_worker(whole, stage, device=CPU)
        for clips in (8, 16):  # the same run, stopped at its first checkpoint, then run again
            config = prepare(f"{folder}/{stage}-parts", stage, *overrides, f"train.num_clips={clips}")
            summary = train_worker(config, stage, device=CPU)
            assert summary["clips"] == clips
        assert curve(config.run_folder, stage) == curve(whole.run_folder, stage)
        assert [line["clips"] for line in curve(config.run_folder, stage)] == [4, 8, 12, 16]
        one, other = (
            load_checkpoint(f"{place.run_folder}/{stage}/checkpoints", kind=find_stage(stage).kind)
            for place in (whole, config)
        )
        assert one.files == other.files  # every file, by checksum


@pytest.mark.parametrize("more", [(), MUON], ids=["adamw", "muon"])
def test_resuming_equals_not_stopping(tmp_path, more):
    interrupted_equals_uninterrupted(str(tmp_path), (*TORCH, *more))


def test_another_optimizer_does_not_go_on(tmp_path):
    train_worker(prepare(tmp_path, "stdit", *TORCH, "train.num_clips=8"), "stdit", device=CPU)
    index = Path(tmp_path, "stdit/checkpoints/clips-000000000008/checkpoint.json")
    saved = json.loads(index.read_text())
    del saved["config"]["stdit"]["train"]["optimizer"]  # as in checkpoints from before this setting
    index.write_text(json.dumps(saved))
    with pytest.raises(CheckpointError, match="optimizer=adamw, muon cannot resume it"):
        train_worker(prepare(tmp_path, "stdit", *TORCH, *MUON), "stdit", device=CPU)
    assert train_worker(prepare(tmp_path, "stdit", *TORCH), "stdit", device=CPU)["clips"] == 16


def interrupted_equals_uninterrupted_with_each_optimizer(folder):
    interrupted_equals_uninterrupted(folder, ZERO_2)
    interrupted_equals_uninterrupted(f"{folder}/muon", (*ZERO_2, *MUON), stages=("stdit",))


def test_resuming_equals_not_stopping_with_zero_2(tmp_path):
    on_workers(1, interrupted_equals_uninterrupted_with_each_optimizer, str(tmp_path))


def sharded_models_train(configs, half):
    """Runs on two workers, every weight sharded. Trains to the end, and again from the checkpoint `half`."""
    shard_everything()
    engines, make_engine = [], worker.make_engine
    worker.make_engine = lambda *given, **named: engines.append(make_engine(*given, **named)) or engines[-1]
    rank, world = dist.get_rank(), dist.get_world_size()
    for stage, config in configs:
        train_worker(config, stage, device=CPU, rank=rank, world=world)
        assert_sharded(engines[-1].module)
        dist.barrier()
        if rank == 0:
            shutil.copytree(config.run_folder, f"{config.run_folder}-again")
            storage.delete_folder(f"{config.run_folder}-again/{stage}/checkpoints/clips-{2 * half:012d}")
        dist.barrier()
        again = config.model_copy(update={"run_dir": f"{config.run_folder}-again"})
        assert train_worker(again, stage, device=CPU, rank=rank, world=world)["clips"] == 2 * half


def test_models_whose_every_weight_is_sharded_train_as_on_one_worker(tmp_path):
    configs = []
    for stage, more in (("mdsa", MUON), ("stdit", ()), ("distill", ())):
        alone = prepare(tmp_path / f"{stage}-alone", stage, *TORCH, *more)
        train_worker(alone, stage, device=CPU)
        configs.append((stage, prepare(tmp_path / stage, stage, *ZERO_3, *more, "train.num_workers=2")))
    on_workers(2, sharded_models_train, configs, 8)
    for stage, _ in configs:
        runs = (f"{stage}-alone", stage, f"{stage}-again")
        folders = [f"{tmp_path}/{name}/{stage}/checkpoints" for name in runs]
        kind = find_stage(stage).kind
        alone, sharded, again = (load_checkpoint(folder, kind=kind) for folder in folders)
        assert sharded.files == again.files  # every file, by checksum
        for part in ("model", "ema"):
            expected, found = alone.weights(part), sharded.weights(part)
            assert expected.keys() == found.keys()
            for name, tensor in expected.items():
                torch.testing.assert_close(found[name], tensor, rtol=0, atol=5e-4)


def test_another_batch_size_goes_on_with_the_next_clip(tmp_path, monkeypatch):
    seen, at = [], ClipFeed.at
    monkeypatch.setattr(
        ClipFeed, "at", lambda feed, positions: seen.extend(positions.tolist()) or at(feed, positions)
    )
    for words in (("train.num_clips=8",), ("train.batch_size=2",)):
        train_worker(prepare(tmp_path, "mdsa", *TORCH, *words), "mdsa", device=CPU)
    assert seen == list(range(8)) + list(range(16))  # the linear planes' fit, once, then training


def test_a_crash_between_checkpoints_leaves_no_trace_in_the_curve(tmp_path):
    config = prepare(tmp_path, "mdsa", *TORCH)
    train_worker(config, "mdsa", device=CPU)
    expected = curve(tmp_path, "mdsa")
    storage.delete_folder(
        f"{tmp_path}/mdsa/checkpoints/clips-000000000016"
    )  # as if killed after the line at 16 clips, before its checkpoint
    train_worker(config, "mdsa", device=CPU)
    assert curve(tmp_path, "mdsa") == expected


def test_a_damaged_newest_checkpoint_is_passed_over(tmp_path, capfd):
    config = prepare(tmp_path, "mdsa", *TORCH)
    train_worker(config, "mdsa", device=CPU)
    expected = load_checkpoint(f"{tmp_path}/mdsa/checkpoints").files
    Path(tmp_path, "mdsa/checkpoints/clips-000000000016/model.safetensors").write_bytes(b"damaged")
    train_worker(config, "mdsa", device=CPU)
    assert "continuing from the older checkpoint" in capfd.readouterr().err
    assert load_checkpoint(f"{tmp_path}/mdsa/checkpoints").files == expected


def test_tokens_that_are_too_wide_are_told_when_training_begins(tmp_path, capfd):
    for width, told in ((16, False), (8, True)):
        train_worker(
            prepare(tmp_path / str(width), "stdit", *TORCH, f"stdit.width={width}"), "stdit", device=CPU
        )
        assert ("stdit: WIDE TOKENS: a token holds 16 numbers" in capfd.readouterr().err) == told


def test_a_generator_checkpoint_makes_clips_alone(tmp_path):
    config = prepare(tmp_path, "stdit", *TORCH)
    train_worker(config, "stdit", device=CPU)
    mdsa, stdit = (
        load_checkpoint(f"{tmp_path}/{stage}/checkpoints", kind=stage) for stage in ("mdsa", "stdit")
    )
    assert (
        stdit.labels == LABELS
        and stdit.mdsa_hash == mdsa.hash
        and stdit.latent_std == ((0.5,) * config.mdsa.latent_channels,) * 6
    )
    assert all(
        torch.equal(tensor, stdit.weights("mdsa")[name]) for name, tensor in mdsa.weights("ema").items()
    )


def test_what_is_missing_is_reported_with_the_command_to_type(tmp_path):
    with pytest.raises(UserError, match="no prepared data in .*run: python ray_jobs/preprocess.py"):
        train_worker(tiny_config(f"run_dir={tmp_path}", *TORCH), "mdsa", device=CPU)
    with pytest.raises(UserError, match="no latents in .*run: python ray_jobs/encode.py"):
        train_worker(tiny_config(f"run_dir={tmp_path}", *TORCH), "stdit", device=CPU)
    config = prepare(tmp_path, "stdit", *TORCH)
    storage.delete_folder(f"{tmp_path}/mdsa")
    with pytest.raises(CheckpointError, match="no checkpoint at .*train.py stage=mdsa"):
        train_worker(config, "stdit", device=CPU)
    with pytest.raises(UserError, match="stage=vocoder cannot be trained"):
        train_worker(config, "vocoder", device=CPU)


def test_latents_of_another_autoencoder_are_refused(tmp_path):
    config = prepare(tmp_path, "stdit", *TORCH)
    train_worker(config, "stdit", device=CPU)
    stats = json.loads((tmp_path / "latents/stats.json").read_text())
    (tmp_path / "latents/stats.json").write_text(json.dumps(stats | {"mdsa_checkpoint": "another"}))
    with pytest.raises(UserError, match="made by another MDSA checkpoint .*encode.py .*encode.replace=true"):
        train_worker(config, "stdit", device=CPU)
    (tmp_path / "latents/stats.json").write_text(
        json.dumps(stats | {"std": [[0.25] * config.mdsa.latent_channels] * 6})
    )
    with pytest.raises(CheckpointError, match="was trained on other latents than those in"):
        train_worker(config, "stdit", device=CPU)


def test_filters_that_change_are_reported_and_their_latents_refused(tmp_path, capfd):
    config = prepare(tmp_path, "mdsa", *TORCH, "train.num_clips=4")
    train_worker(config, "mdsa", device=CPU)
    stricter = tiny_config(f"run_dir={tmp_path}", *TORCH, "train.num_clips=8", "filters.duplicates=exact")
    with pytest.raises(UserError, match="was filtered otherwise .filters.duplicates=keep there, exact now"):
        train_worker(stricter, "mdsa", device=CPU)
    write_segments(stricter)
    train_worker(stricter, "mdsa", device=CPU)
    assert "the filters DIFFER from those of" in capfd.readouterr().err
    mdsa = load_checkpoint(f"{tmp_path}/mdsa/checkpoints", kind="mdsa")
    write_latents(config, mdsa.hash)
    stats = json.loads((tmp_path / "latents/stats.json").read_text())
    (tmp_path / "latents/stats.json").write_text(json.dumps(stats | {"data": "another"}))
    with pytest.raises(UserError, match="were made of other data than .* now holds .*encode.replace=true"):
        train_worker(config, "stdit", device=CPU)


@pytest.mark.ray
def test_what_loads_the_batches_changes_nothing(tmp_path, ray_local):
    files = []
    for name, words in (
        ("none", ()),
        ("processes", ("train.loader_workers=1",)),
        ("actors", ("train.loader_workers=1", "train.loader=actors")),
    ):
        config = prepare(
            tmp_path / name,
            "mdsa",
            *TORCH,
            *words,
            "train.num_clips=8",
            "stage=mdsa",
            "train.augment_gain_db=6",
        )
        train_worker(config, "mdsa", device=CPU)
        files.append(load_checkpoint(f"{config.run_folder}/mdsa/checkpoints", kind="mdsa").files)
    assert files[0] == files[1] == files[2]


def test_another_model_in_the_same_run_is_refused(tmp_path):
    train_worker(prepare(tmp_path, "mdsa", *TORCH), "mdsa", device=CPU)
    with pytest.raises(CheckpointError, match="was made with mdsa.width=16; this run has mdsa.width=32"):
        train_worker(tiny_config(f"run_dir={tmp_path}", *TORCH, "mdsa.width=32"), "mdsa", device=CPU)
