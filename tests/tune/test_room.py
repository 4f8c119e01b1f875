"""How many trials a cluster holds at a time. Loading actors count, whether or not their number is an axis."""

import pytest

from proav.tune.room import concurrent_trials, resources
from tests.tiny import tiny_config

ACTORS = ("mdsa.train.loader=actors", "mdsa.train.loader_workers=2")
CPU_ONLY = "mdsa.train.use_gpu=false"
AXIS = "tune.axes.mdsa.multi_scale.scales=[[1],[1,2]]"


def test_a_trial_takes_its_workers_and_the_actors_that_load_for_them():
    train = tiny_config(
        CPU_ONLY, "train.num_workers=[2,4]", "train.batch_size=12", "train.cpus_per_worker=3", *ACTORS
    ).mdsa.train
    assert resources(train, most=False) == {"CPU": 2 * (3 + 2)} and resources(train, most=True) == {
        "CPU": 4 * (3 + 2)
    }
    processes = tiny_config(CPU_ONLY, "train.loader_workers=2").mdsa.train  # they share the worker's CPUs
    assert resources(processes, most=True) == {"CPU": 1}
    assert resources(tiny_config("mdsa.train.use_gpu=true").mdsa.train, most=True) == {"CPU": 1, "GPU": 1}


@pytest.mark.parametrize(
    ("words", "cpus", "at_a_time"), [((), 4, 4), (ACTORS, 4, 1), (ACTORS, 6, 2), (ACTORS, 2, 1)]
)
def test_as_many_trials_as_find_room_with_their_loaders(words, cpus, at_a_time):
    assert concurrent_trials(tiny_config(CPU_ONLY, AXIS, *words), {"CPU": cpus})[0] == at_a_time


def test_more_than_find_room_are_not_started_where_they_would_wait_for_each_other():
    four = "tune.max_concurrent_trials=4"
    assert concurrent_trials(tiny_config(CPU_ONLY, AXIS, four), {"CPU": 2}) == (
        4,
        [],
    )  # a trial too many holds nothing
    at_a_time, (note,) = concurrent_trials(tiny_config(CPU_ONLY, AXIS, four, *ACTORS), {"CPU": 7})
    assert (
        at_a_time == 2
        and "max_concurrent_trials=4 is more than the cluster has room for: a trial takes 3 CPU" in note
    )


def test_the_largest_trial_of_the_axes_decides():
    swept = tiny_config(
        CPU_ONLY,
        *ACTORS,
        "tune.axes.mdsa.train.loader_workers=[1,3]",
        "tune.axes.mdsa.train.num_workers=[1,2]",
    )
    assert concurrent_trials(swept, {"CPU": 16}) == (2, [])  # 2 workers of 1 + 3 CPUs


def test_trials_without_the_variant_that_makes_them_smaller_count_too():
    small = "{variants: {small: {mdsa.train.num_workers: 1}}, when: {mdsa.width: 16}}"
    axes = f"tune.axes={{mdsa.width: [16, 32], size: {small}}}"
    swept = tiny_config(CPU_ONLY, *ACTORS, axes, "mdsa.train.num_workers=2")
    assert concurrent_trials(swept, {"CPU": 12}) == (2, [])  # 2 workers of 1 + 2 CPUs


def test_a_cluster_that_cannot_hold_one_trial_is_reported_before_it_waits():
    at_a_time, (note,) = concurrent_trials(tiny_config(CPU_ONLY, AXIS, *ACTORS), {"CPU": 2})
    assert (
        at_a_time == 1
        and "a trial takes 3 CPU" in note
        and "the cluster has 2" in note
        and "lower those settings" in note
    )
