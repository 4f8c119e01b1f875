"""The zero-shot methods that trained tasks are compared with (`bench/train/zero_shot.py`)."""

import dataclasses

import numpy as np
import pytest
import torch

from bench.train.zero_shot import Measure, trained, unrelated_places, zero_shot
from proav.errors import UserError
from proav.generation.finishing import given_streams
from proav.generation.pipeline import SoundingVideoPipeline
from proav.generation.requests import SampleRequest
from proav.generation.sampling_settings import SamplingSettings
from proav.media.container import Clip
from tests.tiny import save_tiny_stdit, tiny_config


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    config = tiny_config("diffusion.task_weights={joint: 1, a2v: 1, v2a: 1}")
    return SoundingVideoPipeline.from_checkpoint(save_tiny_stdit(str(tmp_path_factory.mktemp("run")), config))


def requests_for(pipeline, task, steps=4):
    clip = pipeline.config.clip
    settings = SamplingSettings(task=task, steps=steps).filled(pipeline.process)
    draw = np.random.default_rng(0)
    video = draw.integers(0, 256, (clip.num_frames, clip.height, clip.width, 3), np.uint8)
    audio = draw.normal(0, 0.1, clip.num_frames * clip.sample_rate // clip.fps).astype(np.float32)
    given = Clip(video, audio, clip.fps, clip.sample_rate)
    return [SampleRequest(3, place, "rain", given, settings) for place in range(2)]


def assert_same(ours, theirs):
    assert (ours[0].int() - theirs[0].int()).abs().max() <= 1
    torch.testing.assert_close(ours[1], theirs[1], atol=1e-4, rtol=1e-4)


def test_without_what_is_given_it_is_the_task_joint(pipeline):
    requests = requests_for(pipeline, "v2a")
    joint = [
        dataclasses.replace(one, given=None, settings=dataclasses.replace(one.settings, task="joint"))
        for one in requests
    ]
    assert_same(zero_shot(pipeline, requests, reads=False), trained(pipeline, joint))


@pytest.mark.parametrize(("task", "given", "made"), [("v2a", slice(0, 3), slice(3, 6)),
                                                     ("a2v", slice(3, 6), slice(0, 3))])  # fmt: skip
def test_given_planes_are_kept_and_the_gradient_moves_the_others(pipeline, task, given, made, monkeypatch):
    """A step from pure noise reads nothing, since there is no share of what is given in it; two steps do."""
    monkeypatch.setattr(pipeline.coder, "decode", lambda stack: stack)
    for steps, moves in ((1, False), (2, True)):
        requests = requests_for(pipeline, task, steps)
        lone = pipeline.coder.encode(*given_streams(pipeline.coder.mel_frames, requests), lone=True)
        plain, guided, unread = (
            zero_shot(pipeline, requests, **words) for words in ({}, {"weight": 1.0}, {"reads": False})
        )
        for stack in (plain, guided):
            torch.testing.assert_close(stack[:, :, given], lone[:, :, given], atol=1e-5, rtol=1e-5)
        assert torch.equal(plain[:, :, made], guided[:, :, made]) is not moves
        assert torch.allclose(plain[:, :, made], unread[:, :, made], atol=1e-6) is not moves


def test_unrelated_pairs_are_of_other_sources_and_of_one_label_where_there_is_another():
    labels, sources = list("aabbaacb"), list("11223344")
    found = unrelated_places(labels, sources)
    assert all(sources[other] != sources[place] for place, other in enumerate(found))
    assert [labels[other] for other in found] == ["a", "a", "b", "b", "a", "a", "b", "b"]  # c is alone
    with pytest.raises(UserError, match="of one source, and unrelated pairs need two"):
        unrelated_places(["a", "b"], ["1", "1"])


@pytest.mark.parametrize("task", ["a2v", "v2a"])
def test_a_lead_is_positive_where_the_trained_task_is_nearer_to_the_truth(task, pipeline):
    """Clips with less noise are nearer. Their lead is the difference of the two numbers."""
    settings, draw = pipeline.config.clip, np.random.default_rng(0)
    shape = (settings.num_frames, settings.height, settings.width, 3)
    videos = draw.integers(64, 192, (6, *shape))
    sounds = draw.normal(0, 0.02, (6, settings.num_frames * settings.sample_rate // settings.fps))

    def clips(noise):
        made = np.clip(videos + draw.normal(0, 200 * noise, videos.shape), 0, 255).astype(np.uint8)
        heard = (sounds + draw.normal(0, noise / 2, sounds.shape)).astype(np.float32)
        return [Clip(*one, settings.fps, settings.sample_rate) for one in zip(made, heard, strict=True)]

    rows = [{"label": "rain", "source_id": str(place)} for place in range(6)]
    measure = Measure(pipeline, task, clips(0), rows, is_world=False)
    near, far = measure(clips(0.02), is_reference=True), measure(clips(0.2))
    assert "to truth, lead" not in near
    assert far["to truth, lead"] == pytest.approx(abs(near["to truth"] - far["to truth"]))
    low, high = far["to truth, lead_interval"]
    assert 0 < low <= far["to truth, lead"] <= high
    assert ("motion, lead" in far) == (task == "a2v")
