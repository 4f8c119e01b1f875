"""Checkpoints come back as they were saved and are written whole or not at all.

Every kind of damage has its own message.
"""

import json
from pathlib import Path

import pytest
import torch

from proav.errors import CheckpointError
from proav.runs.checkpoint import (
    check_resumable,
    list_checkpoints,
    load_checkpoint,
    newest_good_checkpoint,
    save_checkpoint,
)
from tests.tiny import tiny_config

WEIGHTS = {"layer.weight": torch.arange(12.0).view(3, 4), "layer.bias": torch.zeros(3)}


def save(folder, clips=8, keep=2, config=None, **more) -> Path:
    settings = {
        "kind": "mdsa",
        "step": clips // 4,
        "config": config or tiny_config(),
        "tensors": {"model": WEIGHTS, "ema": WEIGHTS},
    }
    return Path(save_checkpoint(str(folder), clips=clips, keep=keep, **settings | more))


def test_what_goes_in_comes_out(tmp_path):
    tensors = {
        "model": {"transposed": WEIGHTS["layer.weight"].T},
        "ema": {"half": torch.tensor([0.5], dtype=torch.bfloat16)},
        "training/optimizer": {"n": torch.tensor(3)},
    }
    statistics = {"latent_mean": [[0.1, 0.2]] * 6, "latent_std": [[1.0, 2.0]] * 6}
    path = save(
        tmp_path,
        kind="stdit",
        labels=("rain", "speech"),
        mdsa_hash="abc",
        training={"seconds": 1.5},
        tensors=tensors,
        **statistics,
    )
    checkpoint = load_checkpoint(str(path), kind="stdit")
    assert (checkpoint.kind, checkpoint.clips, checkpoint.step, checkpoint.labels, checkpoint.mdsa_hash) == (
        "stdit",
        8,
        2,
        ("rain", "speech"),
        "abc",
    )
    assert checkpoint.config == tiny_config() and checkpoint.training == {"seconds": 1.5}
    assert checkpoint.latent_mean == ((0.1, 0.2),) * 6 and checkpoint.latent_std == ((1.0, 2.0),) * 6
    assert torch.equal(checkpoint.weights("model")["transposed"], WEIGHTS["layer.weight"].T)
    assert checkpoint.weights("ema")["half"].dtype == torch.float32
    assert checkpoint.weights("training/optimizer")["n"].dtype == torch.int64
    with pytest.raises(CheckpointError, match="holds no mdsa.safetensors"):
        checkpoint.weights("mdsa")


def test_a_checkpoint_is_found_by_its_folder_its_index_and_latest(tmp_path):
    path = save(tmp_path)
    found = [
        load_checkpoint(str(place)).path
        for place in (path, path / "checkpoint.json", tmp_path / "latest", tmp_path)
    ]
    assert found == [str(path)] * 4
    assert (tmp_path / "latest").read_text().strip() == "clips-000000000008"


def test_the_hash_is_of_the_content(tmp_path):
    first, same = save(tmp_path / "a"), save(tmp_path / "b")
    other = save(tmp_path / "c", tensors={"model": {"layer.bias": torch.ones(3)}})
    assert (
        load_checkpoint(str(first)).hash
        == load_checkpoint(str(same)).hash
        != load_checkpoint(str(other)).hash
    )


def test_the_newest_stay(tmp_path):
    for clips in (8, 16, 24, 32):
        save(tmp_path, clips)
    assert [clips for clips, _ in list_checkpoints(str(tmp_path))] == [32, 24]
    save(tmp_path, 16)  # training went on from an older checkpoint, so the later ones are obsolete
    assert [clips for clips, _ in list_checkpoints(str(tmp_path))] == [16]
    assert load_checkpoint(str(tmp_path)).clips == 16


def test_nothing_is_left_of_a_write_that_failed(tmp_path):
    save(tmp_path, 8)
    with pytest.raises(AttributeError):
        save(tmp_path, 16, tensors={"model": WEIGHTS, "ema": {"broken": "no tensor"}})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clips-000000000008", "latest"]


def damage_flip(path):
    file = path / "ema.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))


def damage_cut(path):
    file = path / "ema.safetensors"
    file.write_bytes(file.read_bytes()[:-5])


def damage_index(path):
    (path / "checkpoint.json").write_text("{")


def damage_table(path):
    index = json.loads((path / "checkpoint.json").read_text())
    del index["files"]["ema.safetensors"]
    (path / "checkpoint.json").write_text(json.dumps(index))


def damage_format(path, number=99):
    index = json.loads((path / "checkpoint.json").read_text())
    (path / "checkpoint.json").write_text(json.dumps(index | {"format": number}))


DAMAGES = [
    (damage_flip, "checksum of ema.safetensors differs"),
    (damage_cut, "ema.safetensors has .* bytes, expected"),
    (lambda path: (path / "model.safetensors").unlink(), "model.safetensors is missing"),
    (lambda path: (path / "checkpoint.json").unlink(), "half written"),
    (damage_index, "not JSON"),
    (damage_table, "does not match its hash"),
    (damage_format, "format 99, this proav .* reads format 3"),
    (lambda path: damage_format(path, 1), "reads format 3 .since format 1 MDSA has linear planes"),
    (lambda path: damage_format(path, 2), "reads format 3 .since format 2 .* lapped blocks"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
def test_each_damage_is_named(tmp_path, damage, message):
    path = save(tmp_path)
    damage(path)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(str(path))


def test_a_missing_checkpoint_says_what_to_type(tmp_path):
    with pytest.raises(CheckpointError, match=r"no checkpoint at .*nowhere; .*train.py stage=mdsa"):
        load_checkpoint(str(tmp_path / "nowhere"), kind="mdsa")
    with pytest.raises(CheckpointError, match="no checkpoint in .*train.py stage=stdit"):
        load_checkpoint(str(tmp_path), kind="stdit")
    (tmp_path / "latest").write_text("clips-000000000099\n")
    with pytest.raises(CheckpointError, match="names clips-000000000099, which is not there"):
        load_checkpoint(str(tmp_path))
    (tmp_path / "latest").write_text("../../secret")
    with pytest.raises(CheckpointError, match="does not name a checkpoint folder"):
        load_checkpoint(str(tmp_path))


def test_the_wrong_kind_is_refused(tmp_path):
    with pytest.raises(
        CheckpointError, match="is a checkpoint of mdsa, expected one of stdit; make one with: .*stage=stdit"
    ):
        load_checkpoint(str(save(tmp_path)), kind="stdit")


def test_a_damaged_newest_falls_back_loudly(tmp_path):
    save(tmp_path, 8)
    damage_flip(save(tmp_path, 16))
    warnings = []
    assert newest_good_checkpoint(str(tmp_path), kind="mdsa", warn=warnings.append).clips == 8
    assert "16 clips cannot be used" in warnings[0] and "continuing from the older checkpoint" in warnings[1]
    damage_cut(tmp_path / "clips-000000000008")
    with pytest.raises(
        CheckpointError, match="none of the 2 checkpoints .* can be used .*delete that folder to start anew"
    ):
        newest_good_checkpoint(str(tmp_path), kind="mdsa", warn=warnings.append)
    assert newest_good_checkpoint(str(tmp_path / "empty"), kind="mdsa") is None


def test_a_half_written_newest_is_passed_over(tmp_path):
    save(tmp_path, 8)
    (save(tmp_path, 16) / "checkpoint.json").unlink()
    assert newest_good_checkpoint(str(tmp_path), kind="mdsa").clips == 8


def test_only_what_gives_the_weights_their_meaning_must_stay_on_resume(tmp_path):
    checkpoint = load_checkpoint(str(save(tmp_path)))
    check_resumable(
        checkpoint,
        tiny_config(
            "train.num_clips=64",
            "train.batch_size=8",
            "train.num_workers=2",
            "run_dir=elsewhere",
            "mdsa.loss.pixel=1",
            "stdit.depth=3",
        ),
    )
    check_resumable(checkpoint, tiny_config("mel.griffin_lim_magnitude=pseudo_inverse"))
    with pytest.raises(
        CheckpointError, match=r"made with clip.fps=5, mdsa.width=16; this run has clip.fps=10, mdsa.width=32"
    ):
        check_resumable(checkpoint, tiny_config("mdsa.width=32", "clip.fps=10", "mel.hop=200"))
    with pytest.raises(CheckpointError, match="seed=0"):
        check_resumable(checkpoint, tiny_config("seed=1"))
    with pytest.raises(CheckpointError, match="knows the labels"):
        check_resumable(checkpoint, tiny_config(), labels=("rain",))


def test_a_remote_folder_works_like_a_local_one():
    folder = "memory://checkpoints"
    for clips in (8, 16, 24):
        save_checkpoint(
            folder,
            kind="mdsa",
            clips=clips,
            step=1,
            config=tiny_config(),
            tensors={"model": WEIGHTS, "training/optimizer": WEIGHTS},
        )
    assert [clips for clips, _ in list_checkpoints(folder)] == [24, 16]
    checkpoint = load_checkpoint(folder)
    assert checkpoint.clips == 24 and torch.equal(
        checkpoint.weights("training/optimizer")["layer.weight"], WEIGHTS["layer.weight"]
    )
