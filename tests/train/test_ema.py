"""The moving average against its closed form."""

import pytest
import torch

from proav.train.ema import ExponentialMovingAverage, ema_decay


def test_a_weight_halves_in_a_half_life():
    steps = [ema_decay(batch_clips=10, clips=1e12, half_life_clips=100, ramp_up=1.0) for _ in range(10)]
    assert torch.tensor(steps, dtype=torch.float64).prod().item() == pytest.approx(0.5)


def test_early_averages_are_short():
    assert ema_decay(batch_clips=10, clips=200, half_life_clips=1000, ramp_up=0.05) == pytest.approx(
        0.5
    )  # half-life 10 clips
    assert ema_decay(batch_clips=10, clips=10, half_life_clips=1000, ramp_up=0.0) == 0.0


def test_the_average_of_a_step_function_has_a_closed_form():
    weights = {"a": torch.zeros(3), "b": torch.ones(2, dtype=torch.bfloat16)}
    average = ExponentialMovingAverage(weights, half_life_clips=30, ramp_up=1e9)
    weights["a"].fill_(1.0)
    for step in range(1, 7):
        average.update(weights, clips=10 * step, batch_clips=10)
    assert torch.allclose(average.shards["a"], torch.full((3,), 1 - 0.5 ** (60 / 30)))
    assert average.shards["b"].dtype == torch.float32 and torch.equal(average.shards["b"], torch.ones(2))


def test_clips_count_not_steps():
    runs = []
    for batch in (5, 20):
        average = ExponentialMovingAverage(
            {"a": torch.zeros(1, dtype=torch.float64)}, half_life_clips=50, ramp_up=1e9
        )
        for clips in range(batch, 101, batch):
            average.update({"a": torch.ones(1)}, clips=clips, batch_clips=batch)
        runs.append(average.shards["a"])
    assert torch.allclose(*runs, atol=1e-6)
