"""Joins of given and made frames: given frames are exact, and made sound begins without a click."""

import numpy as np
import pytest
import torch

from proav.diffusion.masks import continue_frames
from proav.generation.finishing import finish_clips
from proav.generation.joining import (
    FADE_SECONDS,
    as_beginning,
    carry_over,
    hold_given,
    joined,
    part_of,
    window_seed,
    with_given_frames,
)
from proav.generation.requests import SampleRequest
from proav.generation.sampling_settings import SamplingSettings
from proav.media.container import Clip
from proav.media.melframes import MelFrames
from tests.tiny import tiny_config

FRAMES, FPS, RATE = 6, 10, 16_000
PER_FRAME, FADE = RATE // FPS, int(FADE_SECONDS * RATE)


def clip(value: int, audio: np.ndarray | float) -> Clip:
    video = np.full((FRAMES, 4, 4, 3), value, np.uint8)
    return Clip(video, np.broadcast_to(np.float32(audio), FRAMES * PER_FRAME).copy(), FPS, RATE)


def known(picture: str, sound: str) -> np.ndarray:
    return np.array([[mark == "x" for mark in row] for row in (picture, sound)])


@pytest.mark.parametrize(
    ("mask", "frames", "expected"),
    [
        ("xx....", 9, [0, 0, 8, 6, 4, 2]),  # spread evenly: 10 at the border, 0 beyond the end
        ("xx....", 1, [0, 0, 5, 0, 0, 0]),
        ("....xx", 9, [4, 8, 12, 16, 0, 0]),  # 20 at the last border
        ("xx..xx", 9, [0, 0, 10 * 2 / 3 + 20 / 3, 10 / 3 + 20 * 2 / 3, 0, 0]),
        ("xxxxxx", 9, [0] * 6),
        ("......", 9, [0] * 6),
    ],
)
def test_a_difference_at_a_border_is_spread_over_the_made_frames(mask, frames, expected):
    """Given frames are 10 above made ones in the first half, 20 in the second."""
    made = torch.randn(6, 2, 2, generator=torch.Generator().manual_seed(0))
    given = made + torch.tensor([10.0, 10, 10, 20, 20, 20])[:, None, None]
    known_T = torch.tensor([mark == "x" for mark in mask])
    difference = carry_over(made, given, known_T, frames) - made
    torch.testing.assert_close(difference, torch.tensor(expected)[:, None, None].expand(6, 2, 2).float())


@pytest.mark.parametrize(
    ("mask", "held", "spread"),
    [
        ("xx....", [0, 0, 6, 6, 6, 6], [0, 0, 4 / 2, 0, 0, 0]),  # the mean stays to the end of the clip
        ("....xx", [6, 6, 6, 6, 0, 0], [0, 0, 0, 4 / 2, 0, 0]),
        ("x....x", [0, 6, 6, 6, 6, 0], [0, 4 / 2, 0, 0, 4 / 2, 0]),  # 4/5 and 1/5, 3/5 and 2/5, ...
        ("......", [0] * 6, [0] * 6),
    ],
)
def test_the_mean_of_a_difference_is_held_and_the_rest_is_spread(mask, held, spread):
    """Given frames are 6 above made ones in the mean; 4 more in the left column, 4 less in the right one."""
    made = torch.randn(6, 3, 2, 1, generator=torch.Generator().manual_seed(0))
    given = made + torch.tensor([10.0, 2.0])[:, None]
    known_T = torch.tensor([mark == "x" for mark in mask])
    difference = carry_over(made, given, known_T, 1, hold_mean=True) - made
    torch.testing.assert_close(difference.mean((1, 2, 3)), torch.tensor(held).float())
    torch.testing.assert_close(
        (difference[:, 0, 0, 0] - difference[:, 0, 1, 0]) / 2, torch.tensor(spread).float()
    )


@pytest.mark.parametrize(
    ("mask", "columns", "expected"),
    [
        ("xx......", 9, [0, 0, 3, 2, 1, 0, 0, 0]),  # at most half of the stretch; 3/4, 2/4, 1/4 of 4
        ("xx......", 1, [0, 0, 2, 0, 0, 0, 0, 0]),
        ("xx......", 0, [0] * 8),
        ("....xxxx", 9, [0, 0, 4 / 3, 8 / 3, 0, 0, 0, 0]),
        ("xx....xx", 9, [0, 0, 8 / 3, 4 / 3, 4 / 3, 8 / 3, 0, 0]),
        ("........", 9, [0] * 8),
        ("xxxxxxxx", 9, [0] * 8),
    ],
)
def test_given_sound_is_held_beside_a_border(mask, columns, expected):
    """Given columns are 8 above the others. The error is 5, like half_trust: all weights are halved."""
    joined, made, given = torch.zeros(8, 2), torch.full((8, 2), 3.0), torch.full((8, 2), 8.0)
    known_J = torch.tensor([mark == "x" for mark in mask])
    held = hold_given(joined, made, given, known_J, columns, half_trust=5.0)
    torch.testing.assert_close(held, torch.tensor(expected)[:, None].expand(8, 2).float())


def test_a_model_that_makes_the_given_sound_exactly_is_not_changed():
    draw = torch.Generator().manual_seed(0)
    made, joined = torch.randn(8, 3, generator=draw), torch.randn(8, 3, generator=draw)
    known_J = torch.tensor([True, True, False, False, False, False, True, True])
    given = torch.where(known_J[:, None], made, 9.0)
    assert torch.equal(hold_given(joined, made, given, known_J, 2, half_trust=0.1), joined)


def test_given_frames_come_back_bit_for_bit():
    draw = np.random.default_rng(0)
    given = clip(7, draw.uniform(-1, 1, FRAMES * PER_FRAME))
    made = clip(9, draw.uniform(-1, 1, FRAMES * PER_FRAME))
    mask = known("xx..x.", ".xx..x")
    joined = with_given_frames(made, given, mask)
    assert joined.video[:, 0, 0, 0].tolist() == [7, 7, 9, 9, 7, 9]
    heard = np.repeat(mask[1], PER_FRAME)
    assert np.array_equal(joined.audio[heard], given.audio[heard])
    assert not np.array_equal(joined.audio[~heard], given.audio[~heard])


def test_made_sound_stays_as_it_is_beyond_the_fades():
    given, made = clip(0, 0.5), clip(0, -0.25)
    joined = with_given_frames(made, given, known("......", "xx..xx")).audio
    first, last = 2 * PER_FRAME, 4 * PER_FRAME
    assert (joined[first + FADE : last - FADE] == -0.25).all()
    fades = joined[first : first + FADE], joined[last - FADE : last][::-1]
    assert np.allclose(*fades)  # both borders alike, mirrored
    angle = (np.arange(FADE) + 0.5) / FADE * np.pi / 2
    assert np.allclose(fades[0], 0.5 * np.cos(angle) - 0.25 * np.sin(angle), atol=1e-6)


def test_a_tone_goes_on_without_a_click_and_with_its_power():
    seconds = np.arange(FRAMES * PER_FRAME) / RATE
    given, made = (clip(0, 0.5 * np.sin(2 * np.pi * 440 * seconds + phase)) for phase in (0.0, 2.5))
    joined = with_given_frames(made, given, known("......", "xxx...")).audio
    border = 3 * PER_FRAME
    steps = np.abs(np.diff(joined))
    cut = np.abs(made.audio[border] - given.audio[border - 1])
    inside = np.abs(np.diff(given.audio)).max()
    assert cut > 3 * inside and steps[border - 1] <= inside * 1.01


def level_after_a_tone(error_db: float, flicker_db: float, seed: int = 0) -> float:
    """How much louder 20 ms of made sound are than the given tone before them, in dB.

    error_db: how much too loud the model makes the tone.
    flicker_db: standard deviation of the levels of made columns after the border.
    """
    config = tiny_config("diffusion.task_weights={joint: 1, continue: 1}")
    mel_frames, border = MelFrames(config), continue_frames(config)
    frames, fps, rate = config.clip.num_frames, config.clip.fps, config.clip.sample_rate
    tone = (0.25 * np.sin(2 * np.pi * 1000 * np.arange(frames * rate // fps) / rate)).astype(np.float32)
    video = np.zeros((frames, config.clip.height, config.clip.width, 3), np.uint8)
    request = SampleRequest(given=Clip(video, tone, fps, rate), settings=SamplingSettings(task="continue"))
    mel_BTMS = mel_frames.encode(torch.from_numpy(tone)[None])
    gain_T1S = torch.randn(frames, 1, mel_BTMS.shape[-1], generator=torch.Generator().manual_seed(seed))
    gain_T1S[:border] = 0
    decibels = error_db + flicker_db * gain_T1S
    made_BTMS = mel_BTMS + decibels / (10 * (config.mel.ceiling_log10 - config.mel.floor_log10))
    made_BTMS = torch.where(mel_BTMS > -1, made_BTMS, mel_BTMS).clamp(-1, 1)
    (clip,) = finish_clips(config, mel_frames, [request], torch.from_numpy(video)[None], made_BTMS)
    first = border * rate // fps
    assert np.array_equal(clip.audio[:first], tone[:first])
    return 10 * np.log10((clip.audio[first : first + rate // 50] ** 2).mean() / (tone**2).mean())


@pytest.mark.parametrize("error_db", [0.0, -12.0])
def test_a_tone_goes_on_at_its_level(error_db):
    assert abs(level_after_a_tone(error_db, 0.0)) < 0.5


@pytest.mark.parametrize("seed", [1, 2, 4])
def test_holding_the_given_sound_makes_a_jump_of_loudness_smaller(seed, monkeypatch):
    held = level_after_a_tone(-24.0, 6.0, seed)
    monkeypatch.setattr("proav.generation.finishing.HOLD_SECONDS", 0.0)
    assert abs(held) < 0.85 * abs(level_after_a_tone(-24.0, 6.0, seed))


@pytest.mark.parametrize("frames", [1, 3])
def test_the_end_of_a_clip_as_a_beginning(frames):
    draw = np.random.default_rng(0)
    long = Clip(
        draw.integers(0, 255, (9, 4, 4, 3), np.uint8),
        draw.uniform(-1, 1, 9 * PER_FRAME).astype(np.float32),
        FPS,
        RATE,
    )
    begun = as_beginning(long, frames, FRAMES)
    assert begun.video.shape == (FRAMES, 4, 4, 3) and begun.audio.shape == (FRAMES * PER_FRAME,)
    assert np.array_equal(begun.video[:frames], long.video[-frames:])
    assert np.array_equal(begun.audio[: frames * PER_FRAME], long.audio[-frames * PER_FRAME :])
    assert (begun.video[frames:] == long.video[-1]).all()
    assert np.array_equal(
        begun.audio[frames * PER_FRAME :][:PER_FRAME], long.audio[: -PER_FRAME - 1 : -1]
    )  # the sound goes back


def test_parts_make_the_whole(draw=np.random.default_rng(0)):
    long = clip(3, draw.uniform(-1, 1, FRAMES * PER_FRAME))
    whole = joined([part_of(long, 0, 1), part_of(long, 1, 3), part_of(long, 4, 2)])
    assert np.array_equal(whole.video, long.video) and np.array_equal(whole.audio, long.audio)


def test_windows_have_seeds_of_their_own_and_the_first_that_of_the_clip():
    seeds = [window_seed(5, window) for window in range(50)]
    assert seeds[0] == 5 and len(set(seeds)) == 50 and window_seed(6, 1) != window_seed(5, 1)
