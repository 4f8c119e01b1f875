"""Masks of the tasks in closed form, and what replaces frames that are not given."""

import pytest
import torch

from proav.config import Config
from proav.diffusion.masks import around_a_span, beginning, continue_frames, fill_unknown, first_picture
from proav.errors import UserError
from tests.tiny import tiny_config

FRAMES = 6
CONFIG = Config().model_copy(update={"clip": Config().clip.model_copy(update={"num_frames": FRAMES})})


def uniforms(*values):
    return torch.tensor([*values, 0.5], dtype=torch.float64)


def test_the_first_picture_is_given_without_sound():
    assert first_picture(CONFIG, uniforms(0.1, 0.2, 0.3)).int().tolist() == [[1, 0, 0, 0, 0, 0], [0] * FRAMES]


@pytest.mark.parametrize(("frames", "expected"), [(None, 3), (2, 2)])
def test_the_beginning_of_both_is_given(frames, expected):
    config = CONFIG.model_copy(
        update={"diffusion": CONFIG.diffusion.model_copy(update={"continue_frames": frames})}
    )
    assert continue_frames(config) == expected
    row = [True] * expected + [False] * (FRAMES - expected)
    assert beginning(config, uniforms(0.1, 0.2, 0.3)).tolist() == [row, row]


def test_all_of_a_clip_cannot_be_its_beginning():
    with pytest.raises(UserError, match=r"continue_frames=4 leaves nothing .* expected at most 3"):
        tiny_config("diffusion.continue_frames=4")


@pytest.mark.parametrize(
    ("drawn", "picture", "sound"),
    [
        ((0.4, 0.0, 0.99), [1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 0]),  # both; one frame, as late as it can be
        ((0.4, 0.99, 0.0), [0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 1]),  # all but the last
        ((0.6, 0.2, 0.5), [1, 1, 0, 0, 1, 1], [1, 1, 1, 1, 1, 1]),  # the picture alone
        ((0.8, 0.2, 0.5), [1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 1, 1]),  # the sound alone
    ],
)
def test_a_span_is_to_be_made(drawn, picture, sound):
    assert around_a_span(CONFIG, uniforms(*drawn)).int().tolist() == [picture, sound]


def test_every_length_of_a_span_is_as_frequent_as_the_others():
    draws = torch.rand(6000, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    known_B2T = torch.stack([around_a_span(CONFIG, row) for row in draws])
    lengths = (~known_B2T).sum(2).amax(1)
    shares = torch.bincount(lengths, minlength=FRAMES + 1) / len(draws)
    assert shares.tolist() == pytest.approx([0, *[1 / (FRAMES - 1)] * (FRAMES - 1), 0], abs=0.02)


def test_unknown_pictures_are_the_nearest_known_one_and_unknown_sound_is_silence():
    video = torch.arange(1, FRAMES + 1, dtype=torch.uint8)[None, :, None, None, None].repeat(3, 1, 2, 2, 3)
    mel = torch.full((3, FRAMES, 4, 2), 0.5)
    known = torch.tensor(
        [
            [[0, 1, 0, 0, 0, 1], [1, 0, 0, 0, 0, 1]],
            [[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]],
            [[0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]],
        ]
    ).bool()
    filled, heard = fill_unknown(video, mel, known)
    assert filled.dtype == torch.uint8
    assert filled[:, :, 0, 0, 0].tolist() == [[2, 2, 2, 2, 6, 6], [1, 2, 3, 4, 5, 6], [0] * FRAMES]
    assert heard[:, :, 0, 0].tolist() == [[0.5, -1, -1, -1, -1, 0.5], [0.5] * FRAMES, [-1] * FRAMES]
    other = torch.where(known[:, 0, :, None, None, None], video, 99)
    assert torch.equal(fill_unknown(other, mel, known)[0], filled)  # unknown frames are not read
