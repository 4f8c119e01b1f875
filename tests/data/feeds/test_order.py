import numpy as np

from proav.data.feeds.order import EpochOrder, flips, gains, hash_uint64, permutation, slot_starts, uniform


def test_hash_is_fixed_for_good():
    # Recorded values. If a release changes them, every run that is resumed with it changes its order.
    assert hash_uint64(0, 0, 0, np.arange(2)).tolist() == [2391539541053276776, 7606012053026511699]


def test_uniform_flips_and_gains_are_fair():
    draws = uniform(3, 1, 5, np.arange(20_000))
    assert (
        0 <= draws.min()
        and draws.max() < 1
        and abs(draws.mean() - 0.5) < 0.01
        and abs(draws.std() - 12**-0.5) < 0.01
    )
    assert abs(flips(7, np.arange(20_000)).mean() - 0.5) < 0.02
    decibels = gains(7, np.arange(20_000), 6.0)
    assert -6 <= decibels.min() < -5.9 and 5.9 < decibels.max() < 6 and abs(decibels.mean()) < 0.1


def test_permutations_are_permutations_and_differ():
    first, second, other = permutation(0, 0, 100), permutation(0, 1, 100), permutation(1, 0, 100)
    assert all(np.array_equal(np.sort(order), np.arange(100)) for order in (first, second, other))
    assert not np.array_equal(first, second) and not np.array_equal(first, other)


def test_every_epoch_visits_every_slot_once():
    order = EpochOrder(5, 7)
    epochs, slots = order.slots(np.arange(28))
    assert epochs.tolist() == sorted(list(range(4)) * 7)
    assert all(sorted(slots[epochs == epoch].tolist()) == list(range(7)) for epoch in range(4))
    assert np.array_equal(order.slots(np.array([20, 3]))[1], slots[[20, 3]])


def test_starts_cover_all_choices_evenly_and_stay_in_their_strata():
    epochs = np.repeat(np.arange(4000), 3)
    slots = np.tile(np.arange(3), 4000)
    starts = slot_starts(
        0, epochs, slots, ordinals=slots, counts=np.full(12_000, 3), choices=np.full(12_000, 10)
    )
    share = np.bincount(starts, minlength=10) / 12_000
    assert len(share) == 10 and np.abs(share - 0.1).max() < 0.02
    assert np.all(starts[slots == 0] <= 3) and np.all(starts[slots == 2] >= 6)
