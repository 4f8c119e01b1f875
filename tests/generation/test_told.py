"""Conditions of samples: several labels, and vectors from any encoder."""

import numpy as np
import pytest
import torch

from proav.diffusion.conditions import Conditions
from proav.errors import UserError
from proav.generation.denoise import guided_prediction
from proav.generation.pipeline import SampleRequest, SoundingVideoPipeline
from proav.generation.sampling_settings import SamplingSettings
from tests.generation.test_pipeline import close
from tests.tiny import save_tiny_stdit, tiny_config

VECTORS = "stdit.vectors={caption: 6, words: [3, 4]}"


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("checkpoints"))
    return SoundingVideoPipeline.from_checkpoint(save_tiny_stdit(folder, tiny_config(VECTORS)))


def vector(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_guided_is_conditional_plus_scale_for_vectors_too():
    """A model whose velocity is the first number of a clip's vector: v + (s - 1)(v - 0)."""

    class Echo:
        null_label = 2

        def __call__(self, noisy, times_B2, conditions):
            assert len(noisy) == len(conditions)
            return conditions.vectors["caption"][:, :1, None, None, None].expand_as(noisy)

    told = torch.tensor([[3.0, 1.0], [0.0, 0.0], [5.0, 2.0]])
    conditions = Conditions(torch.tensor([2, 2, 0]), vectors={"caption": told})
    scales = torch.tensor([[2.5, 1.0], [4.0, 4.0], [1.0, 3.0]])
    made = guided_prediction(Echo(), torch.zeros(3, 1, 6, 2, 2), torch.ones(3, 2), conditions, scales)
    assert made[:, 0, :3, 0, 0].tolist() == [[7.5] * 3, [0.0] * 3, [5.0] * 3]
    assert made[:, 0, 3:, 0, 0].tolist() == [[3.0] * 3, [0.0] * 3, [15.0] * 3]


def test_samples_follow_their_vectors_and_guidance_pulls_towards_them(pipeline):
    caption = {"caption": vector(1, 6)}
    (told,), (plain,) = pipeline(vectors=caption, steps=2), pipeline(steps=2)
    (zeros,) = pipeline(vectors={"caption": np.zeros(6), "words": np.zeros((2, 4))}, steps=2)
    (guided,) = pipeline(vectors=caption, steps=2, guidance_scale=3.0)
    assert np.array_equal(zeros.video, plain.video) and np.array_equal(zeros.audio, plain.audio)
    assert not close(told, plain) and not close(guided, told)
    (words,) = pipeline(vectors={"words": vector(2, 2, 4).tolist()}, steps=2)
    assert not close(words, plain)


def test_samples_with_and_without_labels_and_vectors_share_a_batch(pipeline):
    settings = SamplingSettings(steps=2, guidance_scale=2.0)
    told = [
        {"label": "rain;speech"},
        {"label": None},
        {"label": ["speech"], "vectors": {"caption": vector(1, 6)}},
        {"vectors": {"words": vector(2, 3, 4), "caption": vector(3, 6)}},
        {"label": "rain", "vectors": {"words": vector(4, 1, 4)}},
    ]
    requests = [SampleRequest(0, index, settings=settings, **one) for index, one in enumerate(told)]
    together = pipeline.sample(requests)
    for clip, request in zip(together, requests, strict=True):
        assert close(clip, pipeline.sample([request])[0])


def test_several_labels_are_named_in_any_way_and_differ_from_each(pipeline):
    makes = lambda label: pipeline(label=label, steps=1)[0]
    both = makes("rain;speech")
    assert np.array_equal(both.video, makes(["rain", "speech"]).video)
    assert not any(close(both, makes(label)) for label in ("rain", "speech", None))
    assert pipeline.label_indices("speech; rain") == [1, 0] and pipeline.label_indices(None) == [2]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"label": "rain;thunder"}, "label='rain;thunder' is unknown .*one of: rain, speech"),
        ({"vectors": {"face": [1.0]}}, "takes no vectors 'face'; expected some of: caption, words"),
        (
            {"vectors": {"caption": [1.0] * 5}},
            r"caption has the shape \[5\]; the model takes one vector of 6",
        ),
        ({"vectors": {"caption": np.ones((2, 6))}}, "the model takes one vector of 6 numbers"),
        (
            {"vectors": {"words": np.ones(4)}},
            r"words has the shape \[4\]; the model takes 1 to 3 vectors of 4",
        ),
        ({"vectors": {"words": np.ones((4, 4))}}, "the model takes 1 to 3 vectors of 4 numbers"),
        ({"vectors": {"caption": [1.0] * 5 + [float("inf")]}}, "caption holds numbers that are not finite"),
        ({"vectors": {"caption": "a glass"}}, "caption is no array of numbers"),
    ],
)
def test_what_the_model_does_not_take_is_reported(pipeline, given, said):
    with pytest.raises(UserError, match=said):
        pipeline(steps=1, **given)
