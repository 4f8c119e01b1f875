"""A flow map from a trained tiny flow: resumed, sampled in few steps, measured, served, and refused."""

import numpy as np
import pytest
import torch

from proav.diffusion import make_process
from proav.errors import CheckpointError, UserError
from proav.evaluate.flow_map_error import evaluate_flow_map
from proav.generation.pipeline import SampleRequest, SoundingVideoPipeline
from proav.generation.sampling_settings import SamplingSettings
from proav.runs.checkpoint import load_checkpoint
from proav.serve.orders.model_card import ModelCard
from proav.serve.settings import ServeSettings
from proav.train.worker import train_worker
from tests.tiny import LABELS, save_tiny_stdit, tiny_config
from tests.train.test_worker import CPU, TORCH, interrupted_equals_uninterrupted, prepare

OWN = "distill.guidance_scale=2"
STILL = ["stdit.train.learning_rate=1e-30", "distill.train.learning_rate=1e-30"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The configuration of a run with a flow map."""
    words = (*TORCH, OWN, "generate.guidance_interval=[0.1,0.8]")
    config = prepare(tmp_path_factory.mktemp("distill"), "distill", *words)
    assert train_worker(config, "distill", device=CPU)["clips"] == 16
    return config


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """A flow map with random weights, so that every step matters: the run's weights are still near zero."""
    words = ("diffusion.objective=flow_map", "stdit.depth=3", "generate.steps=null", OWN)
    path = save_tiny_stdit(str(tmp_path_factory.mktemp("map")), tiny_config(*words))
    return SoundingVideoPipeline.from_checkpoint(path)


def test_resuming_equals_not_stopping(tmp_path):
    interrupted_equals_uninterrupted(str(tmp_path), TORCH, stages=("distill",))


def test_a_checkpoint_makes_clips_alone_and_says_where_it_is_from(run):
    pipeline = SoundingVideoPipeline.from_checkpoint(f"{run.run_folder}/distill/checkpoints/latest")
    assert pipeline(steps=1)[0].video.shape == (4, 32, 32, 3)
    teacher, student = (
        load_checkpoint(f"{run.run_folder}/{stage}/checkpoints", kind="stdit")
        for stage in ("stdit", "distill")
    )
    assert student.teacher_hash == pipeline.teacher_hash == teacher.hash and teacher.teacher_hash is None
    assert student.config.diffusion.objective == "flow_map" and teacher.config.diffusion.objective == "flow"
    assert student.labels == LABELS and student.mdsa_hash == teacher.mdsa_hash
    mdsa = student.weights("mdsa")
    assert all(torch.equal(tensor, mdsa[name]) for name, tensor in teacher.weights("mdsa").items())


def test_tokens_that_are_too_wide_are_told_here_too(tmp_path, capfd):
    config = prepare(tmp_path, "distill", *TORCH, "stdit.width=8", "distill.train.num_clips=4")
    capfd.readouterr()  # the teacher's own line
    train_worker(config, "distill", device=CPU)
    assert "distill: WIDE TOKENS: a token holds 16 numbers" in capfd.readouterr().err


def test_one_student_samples_in_one_two_and_four_steps(pipeline):
    made = {}
    for steps in (1, 2, 4, None):
        calls = []
        made[steps] = pipeline(
            num_samples=2, label="rain", steps=steps, on_step=lambda done, total: calls.append((done, total))
        )
        assert calls == [(done + 1, steps or 4) for done in range(steps or 4)]
    videos = {steps: np.stack([clip.video for clip in clips]) for steps, clips in made.items()}
    assert np.array_equal(videos[4], videos[None]) and not np.array_equal(videos[1], videos[4])
    assert videos[1].shape == (2, 4, 32, 32, 3)
    alone = pipeline.sample([SampleRequest(index=1, label="rain", settings=SamplingSettings(steps=2))])
    assert np.abs(alone[0].video.astype(int) - videos[2][1].astype(int)).max() <= 1


def test_unlike_steps_share_a_batch(pipeline):
    requests = [SampleRequest(index=i, settings=SamplingSettings(steps=i + 1)) for i in range(3)]
    for one, request in zip(pipeline.sample(requests), requests, strict=True):
        (alone,) = pipeline.sample([request])
        assert np.abs(one.video.astype(int) - alone.video.astype(int)).max() <= 1


def test_guidance_is_the_flow_maps_own(pipeline):
    settings = SamplingSettings().filled(pipeline.process)
    assert settings.guidance_scale == 2 and settings.steps == 4
    with pytest.raises(UserError, match="has learned guidance_scale=2 .*distill.guidance_scale=3"):
        pipeline(guidance_scale=3.0)
    with pytest.raises(UserError, match=r"guidance_interval=\[0.1,0.8\]: this flow map has learned"):
        pipeline(guidance_interval=(0.1, 0.8))
    with pytest.raises(UserError, match="solver=heun does not follow .*expected one of flow_map"):
        pipeline(solver="heun")


def test_a_server_offers_the_flow_maps_own_steps_and_guidance(run):
    checkpoint = load_checkpoint(f"{run.run_folder}/distill/checkpoints", kind="stdit")
    settings = ServeSettings(checkpoint=checkpoint.path)
    card, process = ModelCard.of(checkpoint, settings), make_process(checkpoint.config)
    own = SamplingSettings.from_config(checkpoint.config).filled(process)
    assert own == SamplingSettings().filled(process)  # the run's interval of guidance was the teacher's
    assert (card.steps, card.guidance_scale, card.guidance_range) == (4, 2.0, (2.0, 2.0))
    assert (card.audio_guidance_scale, card.audio_guidance_range) == (None, (2.0, 2.0))
    with pytest.raises(UserError, match="this flow map has learned guidance_scale=2 "):
        ModelCard.of(checkpoint, settings.model_copy(update={"guidance_scale": 3.0}))


def test_its_error_is_the_distance_to_its_teachers_samples(run, tmp_path):
    """A teacher whose velocity is zero leaves the noise as it is, and so does its untrained flow map."""
    everything = run.model_copy(update={"evaluate": run.evaluate.model_copy(update={"split": "train"})})
    checkpoint = f"{run.run_folder}/distill/checkpoints"
    errors = evaluate_flow_map(everything, checkpoint)
    assert 0 < errors["error_4_steps"] < 1 and 0 < errors["error_1_step"] < 1 and errors["num_windows"] == 10
    still = prepare(tmp_path, "distill", *TORCH, "distill.train.num_clips=4", *STILL)
    train_worker(still, "distill", device=CPU)
    still = still.model_copy(update={"evaluate": everything.evaluate})
    found = evaluate_flow_map(still, f"{tmp_path}/distill/checkpoints")
    assert [found[f"error_{name}"] for name in ("1_step", "2_steps", "4_steps")] == [0, 0, 0]
    with pytest.raises(UserError, match="was not made from the ST-DiT that this run names"):
        evaluate_flow_map(still, checkpoint)


def test_what_cannot_be_distilled_is_reported(tmp_path, run):
    with pytest.raises(CheckpointError, match="no checkpoint at .*stage=stdit"):
        train_worker(prepare(tmp_path / "none", "stdit", *TORCH), "distill", device=CPU)
    with pytest.raises(UserError, match="stage=stdit cannot train diffusion.objective=flow_map"):
        flow_map = prepare(tmp_path / "map", "stdit", *TORCH, "diffusion.objective=flow_map")
        train_worker(flow_map, "stdit", device=CPU)
    here = f"run_dir={run.run_folder}"
    with pytest.raises(UserError, match="a flow map is made from an ST-DiT with diffusion.objective=flow"):
        again = tiny_config(here, *TORCH, f"distill.teacher={run.run_folder}/distill/checkpoints")
        train_worker(again, "distill", device=CPU)
    other = prepare(tmp_path / "other", "distill", *TORCH, "seed=1")
    longer = ("train.num_clips=24", f"distill.teacher={other.run_folder}/stdit/checkpoints")
    with pytest.raises(CheckpointError, match="was made from another ST-DiT than the one"):
        train_worker(tiny_config(here, "stage=distill", *TORCH, OWN, *longer), "distill", device=CPU)
    with pytest.raises(CheckpointError, match="made with distill.guidance_scale=2.0; this run has .*=1.0"):
        train_worker(tiny_config(here, *TORCH), "distill", device=CPU)
