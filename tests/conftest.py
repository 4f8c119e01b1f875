"""What all tests share: one Ray for the session, and short waits inside Ray Train."""

import os

import pytest

os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")  # also the time of one train.report
os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # no cloud takes nodes here
os.environ.setdefault("OMP_NUM_THREADS", "1")  # several processes share few cores
os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # the cluster is local and ends with the tests


@pytest.fixture(scope="session")
def ray_local():
    """Ray on this machine with two CPUs, started by the first test that asks for it."""
    import ray

    ray.init(
        address="local", num_cpus=2, include_dashboard=False, logging_level="warning"
    )  # "local" ignores RAY_ADDRESS and stale address files
    yield ray
    ray.shutdown()
