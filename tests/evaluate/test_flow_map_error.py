"""The error of a flow map needs windows that differ."""

import json

import pytest

from proav.errors import UserError
from proav.evaluate.flow_map_error import evaluate_flow_map
from proav.runs.checkpoint import load_checkpoint, save_checkpoint
from tests.tiny import LABELS, save_tiny_mdsa, save_tiny_stdit, tiny_config
from tests.train.tiny_run import write_latents


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(words of a run with latents of 10 training windows and an ST-DiT, checkpoint of a flow map of it)."""
    folder = tmp_path_factory.mktemp("flow_map")
    words = (f"run_dir={folder}", "evaluate.split=train")
    config = tiny_config(*words)
    write_latents(config, load_checkpoint(save_tiny_mdsa(f"{folder}/mdsa", config), kind="mdsa").hash)
    teacher = load_checkpoint(save_tiny_stdit(f"{folder}/stdit/checkpoints", config), kind="stdit")
    map_config = tiny_config("diffusion.objective=flow_map", "generate.steps=null")
    student = load_checkpoint(save_tiny_stdit(f"{folder}/plain", map_config), kind="stdit")
    path = save_checkpoint(
        f"{folder}/distill/checkpoints",
        kind="stdit",
        clips=8,
        step=2,
        config=map_config,
        tensors={name: student.weights(name) for name in ("model", "ema", "mdsa")},
        labels=LABELS,
        latent_mean=[list(row) for row in student.latent_mean],
        latent_std=[list(row) for row in student.latent_std],
        teacher_hash=teacher.hash,
    )
    return words, path


def test_two_windows_give_numbers(run):
    words, checkpoint = run
    found = evaluate_flow_map(tiny_config(*words, "evaluate.max_clips=2"), checkpoint)
    assert found["num_windows"] == 2 and found["error_1_step"] > 0
    json.dumps(found, allow_nan=False)


def test_one_window_is_refused(run):
    words, checkpoint = run
    with pytest.raises(UserError) as raised:
        evaluate_flow_map(tiny_config(*words, "evaluate.max_clips=1"), checkpoint)
    said = str(raised.value)
    assert said.startswith("evaluate.max_clips=1 and the train split's windows, 10 in all, leave 1 ")
    assert said.endswith("expected 2 or more: write evaluate.max_clips=2 or more")
