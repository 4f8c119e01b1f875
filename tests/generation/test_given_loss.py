"""How much a model reads of what is given (`bench/train/given_loss.py`), and motion in `zero_shot.py`."""

import numpy as np
import pytest
import torch

from bench.train.given_loss import summary, task_losses
from bench.train.zero_shot import CELL, motion_agreement
from proav.diffusion.noise import noise_batch
from proav.generation.pipeline import SoundingVideoPipeline
from tests.tiny import save_tiny_stdit, tiny_config

TIMES = (0.25, 0.75)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    config = tiny_config("diffusion.task_weights={joint: 1, a2v: 1, v2a: 1}")
    return SoundingVideoPipeline.from_checkpoint(save_tiny_stdit(str(tmp_path_factory.mktemp("run")), config))


def rows_of(pipeline, count=3):
    draw = torch.Generator().manual_seed(1)
    joint, lone = (
        torch.randn((count, *pipeline.coder.latents.stack_shape), generator=draw) for _ in range(2)
    )
    return {"joint": joint, "lone": lone, "label": torch.zeros(count, 1, dtype=torch.int64)}


@pytest.mark.parametrize(("task", "given", "made"), [("v2a", slice(0, 3), slice(3, 6)),
                                                     ("a2v", slice(3, 6), slice(0, 3))])  # fmt: skip
@torch.no_grad()
def test_each_way_shows_the_model_what_it_says(pipeline, task, given, made, monkeypatch):
    rows, others, seen = rows_of(pipeline), [1, 2, 0], []

    def predict(noisy, times, conditions):
        seen.append((noisy, times))
        return torch.zeros_like(noisy)

    monkeypatch.setattr(pipeline, "stdit", predict)
    found = task_losses(pipeline, task, rows, others, TIMES)
    joint, lone = (pipeline.coder.normalize(rows[kind]) for kind in ("joint", "lone"))
    noise = noise_batch([(0, place) for place in range(3)], joint.shape[1:], purpose="evaluate")
    asked = iter(seen)
    for way, losses in found.items():
        shown = lone[others] if way.endswith("unrelated") else lone
        for time in TIMES:
            noisy, times_B2 = next(asked)
            level = {"trained": 0.0, "replacement": time, "nothing": 1.0}[way.split(",")[0]]
            assert times_B2.tolist() == [[level, time] if task == "v2a" else [time, level]] * 3
            mixed = (1 - level) * shown + level * noise
            torch.testing.assert_close(noisy[:, :, given], mixed[:, :, given])
            own = (1 - time) * joint + time * noise
            torch.testing.assert_close(noisy[:, :, made], own[:, :, made])
        # a prediction of zero has the loss of the target itself, in every way
        own_DP = torch.tensor(pipeline.coder.latents.channel_mask).T
        square = ((noise - joint) ** 2)[:, :, made].permute(1, 2, 0, 3, 4)[own_DP[:, made]]
        expected = square.mean((0, 2, 3)).double().numpy()
        np.testing.assert_allclose(losses, np.stack([expected] * 2, axis=1), rtol=1e-5)
    assert next(asked, None) is None


def test_what_is_less_is_a_mean_over_windows_and_times():
    sources = [str(place) for place in range(8)]
    trained = np.random.default_rng(0).normal(1, 1, (8, 2))
    rows = summary({"trained": trained, "replacement": trained + [0.1, 0.3]}, sources, TIMES)
    assert rows["trained"]["loss"] == pytest.approx(trained.mean())
    assert rows["replacement"]["less"] == pytest.approx(0.2)
    assert rows["replacement"]["less_interval"] == pytest.approx([0.2, 0.2])


def moving_square(starts, colour=200):
    """A clip of 8 x 8 cells in which a square of one cell is in cell (starts[t], 2) in frame t."""
    video = np.full((len(starts), 8 * CELL, 8 * CELL, 3), 90, np.uint8)
    for frame, row in enumerate(starts):
        video[frame, row * CELL : (row + 1) * CELL, 2 * CELL : 3 * CELL] = colour
    return video


def test_motion_agrees_if_it_is_in_the_same_places_at_the_same_times():
    falling, rising = moving_square(range(8)), moving_square(range(7, -1, -1))
    assert motion_agreement(falling, falling) == pytest.approx(1)
    assert motion_agreement(moving_square(range(8), colour=120), falling) == pytest.approx(1)
    assert motion_agreement(falling + 30, falling) == pytest.approx(1)  # another background
    # 8 of 512 cells move, never the same: -p / (1 - p) with p = 1 / 64
    assert motion_agreement(rising, falling) == pytest.approx(-1 / 63)
    assert motion_agreement(np.zeros_like(falling), falling) == 0
