"""Blockiness of images worked out by hand, of noise and of mosaics, and cases without a value."""

import math

import numpy as np
import pytest

from proav.metrics.blockiness import blockiness, blockiness_sound

NUM_DRAWS = 300


def as_video(rows):
    """A grey picture [H, W] as one frame of three equal colours."""
    return np.repeat(np.array(rows, np.uint8)[None, :, :, None], 3, axis=3)


def test_a_hand_made_image():
    # 4 x 4 pixels in patches of 2 x 2. Steps along W: 1 within, 9 across, 3 within; along H: 0, 4 across, 0.
    upper, lower = [0, 1, 10, 13], [4, 5, 14, 17]
    video = as_video([upper, upper, lower, lower])
    across = (4 * 9 + 4 * 4) / 8  # four steps along W in each of four rows; four along H
    within = (4 * (1 + 3) + 8 * 0) / 16
    assert blockiness(video, side=2) == pytest.approx(across / within) == pytest.approx(6.5)


def test_noise_has_none():
    """Steps between independent pixels are alike, so the mean over draws is 1 within 4 standard errors."""
    values = [
        blockiness(np.random.default_rng(seed).integers(0, 256, (2, 16, 16, 3), np.uint8), side=4)
        for seed in range(NUM_DRAWS)
    ]
    error = np.std(values) / NUM_DRAWS**0.5
    assert abs(np.mean(values) - 1) < 4 * error and error < 0.003
    sounds = [
        blockiness_sound(np.random.default_rng(seed).uniform(-1, 1, (8, 12, 4))) for seed in range(NUM_DRAWS)
    ]
    error = np.std(sounds) / NUM_DRAWS**0.5
    assert abs(np.mean(sounds) - 1) < 4 * error and error < 0.01


def test_mosaics_are_large_and_the_more_so_the_flatter_their_patches():
    generator = np.random.default_rng(0)
    patches = np.kron(generator.integers(40, 216, (2, 4, 4)), np.ones((1, 4, 4)))[..., None].repeat(3, 3)
    noisy = [
        (patches + generator.normal(0, noise, patches.shape)).clip(0, 255).astype(np.uint8)
        for noise in (20, 5, 1)
    ]
    found = [blockiness(video, side=4) for video in noisy]
    assert 2 < found[0] < found[1] < found[2] and found[2] > 20
    assert blockiness(patches.astype(np.uint8), side=4) == math.inf
    frames = np.repeat(generator.uniform(-1, 1, (8, 12, 1)), 4, axis=2)
    assert blockiness_sound(frames + generator.normal(0, 0.01, frames.shape)) > 20


def test_frames_of_sound_worked_out_by_hand():
    mel = np.array([[[0, 0.25, 0.5]], [[1.0, 1.25, 1.5]]])  # two frames of one bin and three columns
    assert blockiness_sound(mel) == pytest.approx(0.5 / 0.25)


def test_what_does_not_change_and_what_is_not_cut_is_undefined():
    flat = np.full((2, 16, 16, 3), 77, np.uint8)
    assert math.isnan(blockiness(flat, side=4)) and math.isnan(blockiness(flat, side=16))
    noise = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    assert all(math.isnan(blockiness(noise, side=side)) for side in (1, 5, 16))
    assert math.isnan(blockiness_sound(np.full((4, 8, 4), -1.0)))
    assert math.isnan(blockiness_sound(np.random.default_rng(0).uniform(size=(1, 8, 4))))
    assert math.isnan(blockiness_sound(np.random.default_rng(0).uniform(size=(4, 8, 1))))


def test_an_axis_without_steps_of_both_kinds_does_not_count():
    video = np.zeros((1, 4, 8, 3), np.uint8)
    video[:, ::2] = 200  # rows of one pixel a patch: stripes along H are borders only
    video[..., 4:, :] += 10
    video[..., 1::2, :] += 5
    assert np.abs(np.diff(video[0, 0, :, 0].astype(int))).tolist() == [5] * 7
    assert blockiness(video, side=4) == pytest.approx(1)
