from functools import partial

import numpy as np
import pytest
import torch

from proav.data.feeds.augment import PictureChanges, raised, recoloured
from proav.data.feeds.feed import ClipFeed
from proav.data.feeds.order import colours, flips, pitches, turns
from tests.tiny import tiny_config

SQUARE = tiny_config()
WIDE = tiny_config("clip.width=64")


def draw(config, count):
    shape = (count, 2, config.clip.height, config.clip.width, 3)
    return list(np.random.default_rng(0).integers(0, 256, shape, np.uint8))


def test_turns_are_the_symmetries_of_the_square():
    positions, (picture,) = np.arange(200), draw(SQUARE, 1)
    made = PictureChanges(SQUARE, 3, flip=True, turned=True)([picture] * 200, positions)
    eight = [np.rot90(side, count, (1, 2)) for side in (picture, picture[:, :, ::-1]) for count in range(4)]
    seen = [[np.array_equal(one.numpy(), other) for other in eight].index(True) for one in made]
    assert np.bincount(seen, minlength=8).min() > 10


def test_pictures_that_are_not_square_are_only_mirrored():
    positions, (picture,) = np.arange(60), draw(WIDE, 1)
    made = PictureChanges(WIDE, 3, flip=True, turned=True)([picture] * 60, positions)
    four = [picture, picture[:, ::-1], picture[:, :, ::-1], picture[:, ::-1, ::-1]]
    seen = {[np.array_equal(one.numpy(), other) for other in four].index(True) for one in made}
    assert seen == {0, 1, 2, 3}


@pytest.mark.parametrize(("contrast", "brightness"), [(1.0, 0.0), (1.3, 0.15), (0.7, -0.15), (1.2, -0.1)])
def test_colours_are_contrast_about_grey_and_brightness(contrast, brightness):
    values = torch.arange(256, dtype=torch.uint8)
    unit = values.double() / 127.5 - 1
    exact = ((contrast * unit + brightness).clamp(-1, 1) + 1) * 127.5
    made = recoloured(values, contrast, brightness)
    assert made.dtype == torch.uint8 and (made.double() - exact).abs().max() <= 0.5 + 1e-4
    assert contrast != 1 or torch.equal(made, values)


def test_draws_are_fair_and_apart():
    positions = np.arange(20_000)
    upside_down, transposed = turns(5, positions)
    draws = np.stack([flips(5, positions), upside_down, transposed])
    assert np.abs(draws.mean(1) - 0.5).max() < 0.02 and np.abs(np.corrcoef(draws) - np.eye(3)).max() < 0.03
    contrast, brightness = colours(5, positions, 0.3)
    assert 0.7 <= contrast.min() < 0.701 and 1.299 < contrast.max() < 1.3 and abs(contrast.mean() - 1) < 0.005
    assert -0.15 <= brightness.min() < -0.1495 and 0.1495 < brightness.max() < 0.15
    assert abs(np.corrcoef(contrast, brightness)[0, 1]) < 0.03


def test_raised_sound_is_moved_by_whole_bins_and_its_edge_fills_the_gap():
    mel = np.arange(2 * 5 * 3, dtype=np.float16).reshape(2, 5, 3)
    assert np.array_equal(raised(mel, 2)[:, 2:], mel[:, :3])
    assert np.array_equal(raised(mel, -1)[:, :4], mel[:, 1:])
    assert np.array_equal(raised(mel, 2)[:, :2], mel[:, [0, 0]]) and np.array_equal(raised(mel, 0), mel)
    assert np.array_equal(raised(mel, 99), np.broadcast_to(mel[:, :1], mel.shape))
    counts = np.bincount(pitches(5, np.arange(14_000), 3) + 3, minlength=7)
    assert len(counts) == 7 and np.abs(counts / 14_000 - 1 / 7).max() < 0.01


def test_pitch_belongs_to_positions_and_touches_sound_alone(data_dir, run_config):
    stored = ClipFeed(data_dir, run_config, seed=3, batch_size=4).batch(3)
    changed = ClipFeed(data_dir, run_config, seed=3, batch_size=4, pitch=2)
    whole, positions = changed.batch(3), changed.positions(3)
    assert torch.equal(stored["video"], whole["video"]) and not torch.equal(stored["mel"], whole["mel"])
    bins = pitches(3, positions, 2)
    assert len(set(bins.tolist())) > 1
    expected = [raised(mel.numpy(), count) for mel, count in zip(stored["mel"], bins.tolist(), strict=True)]
    assert np.array_equal(np.stack(expected), whole["mel"].numpy())
    halves = [changed.batch(3, rank=rank, world=2)["mel"] for rank in range(2)]
    assert torch.equal(torch.cat(halves), whole["mel"])


def test_changes_belong_to_positions_and_touch_pictures_alone(data_dir, run_config):
    make = partial(ClipFeed, data_dir, run_config, seed=3)
    plain, changed = make(batch_size=4), make(batch_size=4, flip=True, turned=True, colour=0.3)
    whole, halves = changed.batch(3), [changed.batch(3, rank=rank, world=2) for rank in range(2)]
    assert torch.equal(torch.cat([half["video"] for half in halves]), whole["video"])
    other = make(batch_size=2, flip=True, turned=True, colour=0.3)
    assert torch.equal(other.batch(7)["video"], whole["video"][2:])
    stored = plain.batch(3)
    assert torch.equal(stored["mel"], whole["mel"]) and not torch.equal(stored["video"], whole["video"])
    expected = PictureChanges(run_config, 3, flip=True, turned=True, colour=0.3)
    pictures = [video.numpy() for video in stored["video"]]
    assert torch.equal(expected(pictures, plain.positions(3)), whole["video"])
