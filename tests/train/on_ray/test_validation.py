"""Checkpoints are measured beside the trainer, each once, by the code of the evaluation.

In these tests the trainer runs in the test's own process.
"""

import dataclasses
import json
import shutil

import pytest
import torch

from proav.evaluate.reconstruction import evaluate_reconstruction
from proav.latents.encode import encode_latents
from proav.metrics.protocols import PROTOCOLS
from proav.reports.run_files import read_curves
from proav.runs.checkpoint import load_checkpoint
from proav.train.on_ray import validation
from proav.train.on_ray.validation import Validation, read_validation
from proav.train.worker import train_worker
from tests.tiny import save_tiny_mdsa
from tests.train.test_worker import TORCH, prepare

pytestmark = pytest.mark.ray
WORDS = (
    "train.num_clips=16",
    "train.checkpoint_every_clips=8",
    "train.keep_checkpoints=9",
    "train.validate_every_clips=8",
    "evaluate.split=train",
)


def test_checkpoints_are_measured_beside_the_trainer(tmp_path, ray_local, monkeypatch):
    monkeypatch.setattr(validation, "POLL_SECONDS", 0.1)
    config = prepare(tmp_path, "mdsa", *TORCH, *WORDS)
    with Validation(config, "mdsa"):
        train_worker(config, "mdsa", device=torch.device("cpu"))
    rows = read_validation(f"{tmp_path}/mdsa")
    assert [row["clips"] for row in rows] in (
        [8, 16],
        [16],
    )  # the first may have been overtaken by the second
    newest = load_checkpoint(f"{tmp_path}/mdsa/checkpoints")
    expected = evaluate_reconstruction(config, newest.path)
    assert (
        rows[-1]["psnr_db"] == pytest.approx(expected["psnr_db"], rel=1e-4)
        and rows[-1]["num_clips"] == expected["num_clips"]
    )
    clips, values = read_curves(f"{tmp_path}/mdsa").series["validation_psnr_db"]
    assert (clips[-1], values[-1]) == (16, rows[-1]["psnr_db"])
    with Validation(config, "mdsa"):
        pass
    assert read_validation(f"{tmp_path}/mdsa") == rows  # nothing is measured twice


def test_a_checkpoint_that_is_gone_is_reported(tmp_path, ray_local, monkeypatch, capsys):
    config = prepare(tmp_path, "mdsa", *TORCH, *WORDS)
    train_worker(config, "mdsa", device=torch.device("cpu"))
    found = validation.list_checkpoints(f"{tmp_path}/mdsa/checkpoints")
    monkeypatch.setattr(validation, "list_checkpoints", lambda folder: [(24, found[0][1] + "-gone")])
    with Validation(config, "mdsa"):
        pass
    assert (
        "24 clips was gone before it could be measured" in capsys.readouterr().out
        and read_validation(f"{tmp_path}/mdsa") == []
    )


def test_lines_beyond_the_training_that_is_resumed_are_removed(tmp_path, ray_local):
    """A user has deleted the checkpoints, or those of the last steps were damaged."""
    config = prepare(tmp_path, "mdsa", *TORCH, *WORDS)
    lines = [{"clips": clips, "psnr_db": 1.0} for clips in (16, 1000)]
    file = tmp_path / "mdsa" / validation.FILE
    file.parent.mkdir(exist_ok=True)
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    train_worker(config, "mdsa", device=torch.device("cpu"))  # up to 16 clips
    Validation(config, "mdsa")
    assert read_validation(f"{tmp_path}/mdsa") == lines[:1]
    shutil.rmtree(tmp_path / "mdsa" / "checkpoints")
    Validation(config, "mdsa")
    assert read_validation(f"{tmp_path}/mdsa") == []


def test_a_measurement_that_fails_leaves_the_training_and_later_checkpoints_alone(
    tmp_path, ray_local, monkeypatch, capsys
):
    def fails(config, checkpoint, *, device):
        raise RuntimeError("this one cannot be measured")

    config = prepare(tmp_path, "mdsa", *TORCH, *WORDS)
    train_worker(config, "mdsa", device=torch.device("cpu"))
    first, second = sorted(validation.list_checkpoints(f"{tmp_path}/mdsa/checkpoints"))
    monkeypatch.setattr(validation, "list_checkpoints", lambda folder: [first])
    watched = Validation(config, "mdsa")
    monkeypatch.setitem(validation.MEASURES, "mdsa", fails)
    watched._try_newest()
    assert "failed and is left out" in (said := capsys.readouterr().out) and "cannot be measured" in said
    monkeypatch.setattr(validation, "list_checkpoints", lambda folder: [second, first])
    monkeypatch.setitem(validation.MEASURES, "mdsa", evaluate_reconstruction)
    watched._try_newest(last=True)
    assert [row["clips"] for row in read_validation(f"{tmp_path}/mdsa")] == [16]


@pytest.mark.slow
def test_clips_are_made_from_a_checkpoint_and_measured_beside_the_trainer(tmp_path, ray_local, monkeypatch):
    monkeypatch.setattr(validation, "POLL_SECONDS", 0.1)
    monkeypatch.setitem(PROTOCOLS, "small", dataclasses.replace(PROTOCOLS["small"], scores=()))
    words = (
        "generate.steps=1",
        "evaluate.num_resamples=20",
        "evaluate.samples_beside_training=3",
        "train.checkpoint_every_clips=16",
    )
    config = prepare(tmp_path, "mdsa", *TORCH, *WORDS, *words)
    save_tiny_mdsa(f"{tmp_path}/mdsa/checkpoints", config)
    encode_latents(config)
    with Validation(config, "stdit"):
        train_worker(config, "stdit", device=torch.device("cpu"))
    (row,) = read_validation(f"{tmp_path}/stdit")
    table = json.loads((tmp_path / "stdit/validation/000000000016/eval/metrics.json").read_text())["tables"][
        0
    ]
    measured = {each["metric"]: each for each in table["rows"] if each["value"] is not None}
    assert (
        row["clips"] == 16
        and "loss" in row
        and row["generated_sKVD"] == measured["sKVD"]["value"]
        and measured["sKVD"]["clips"] == 3
    )
    assert read_curves(f"{tmp_path}/stdit").series["validation_generated_sKVD"] == (
        [16],
        [row["generated_sKVD"]],
    )
