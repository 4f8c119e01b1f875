"""Learning rates in closed form: warm-up, decay, and what a longer run changes."""

import pytest

from proav.train.schedule import FINAL_SHARE, learning_rates, rate_share
from tests.train.toy import BATCH, toy_train


def shares(**settings):
    train = toy_train(**settings)
    return [rate_share(train, clips) for clips in range(0, train.num_clips, train.batch_size)]


def test_warm_up_counts_the_clips_of_the_step():
    assert shares(num_clips=6 * BATCH, warmup_clips=4 * BATCH) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_the_decay_is_a_line_to_the_final_share():
    expected = [1.0] * 6 + [1 - (1 - FINAL_SHARE) * step / 4 for step in (1, 2, 3, 4)]
    assert shares(warmup_clips=0, decay_fraction=0.4) == pytest.approx(expected, rel=1e-12)


def test_warm_up_and_decay_may_meet():
    rising, falling = [0.2, 0.4, 0.6, 0.8, 1.0], [1 - (1 - FINAL_SHARE) * step / 5 for step in range(1, 6)]
    expected = [min(pair) for pair in zip(rising, falling, strict=True)]
    found = shares(num_clips=5 * BATCH, warmup_clips=5 * BATCH, decay_fraction=1.0)
    assert found == pytest.approx(expected, rel=1e-12)


def test_a_last_batch_beyond_the_end_has_the_final_share():
    train = toy_train(num_clips=2 * BATCH + 1, warmup_clips=0, decay_fraction=0.5)
    assert rate_share(train, 2 * BATCH) == pytest.approx(FINAL_SHARE)
    assert rate_share(train.model_copy(update={"decay_fraction": 0.0}), 2 * BATCH) == 1.0


def test_a_longer_run_moves_the_decay():
    longer, constant = (shares(num_clips=20 * BATCH, decay_fraction=fraction) for fraction in (0.4, 0.0))
    assert longer[:12] == constant[:12] and longer[12] < constant[12]


def test_each_optimizer_has_its_rates():
    train = toy_train(learning_rate=2.0, warmup_clips=4 * BATCH)
    assert learning_rates(train, 0) == {"learning_rate": 0.5}
    train = toy_train(learning_rate=2.0, warmup_clips=4 * BATCH, optimizer="muon", muon_learning_rate=8.0)
    assert learning_rates(train, BATCH) == {"learning_rate": 1.0, "muon_learning_rate": 4.0}
