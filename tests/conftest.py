"""What all tests share: one Ray for the session, and short waits inside Ray Train."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.25")  # also the time of one train.report
os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # no cloud takes nodes here
os.environ.setdefault("OMP_NUM_THREADS", "1")  # several processes share few cores
os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # the cluster is local and ends with the tests
os.environ.setdefault("RAY_prestart_worker_first_driver", "0")  # workers start when asked for
os.environ.setdefault("RAY_enable_metrics_collection", "0")  # nobody reads Ray's metrics of the tests
os.environ.setdefault("REPORTER_UPDATE_INTERVAL_MS", "60000")  # nor its statistics of processes


@pytest.fixture(scope="session")
def ray_local():
    """Ray on this machine with two CPUs, started by the first test that asks for it."""
    import ray

    ray.init(
        address="local", num_cpus=2, include_dashboard=False, logging_level="warning"
    )  # "local" ignores RAY_ADDRESS and stale address files
    yield ray
    ray.shutdown()


@pytest.fixture
def on_ray_local(ray_local) -> dict[str, str]:
    """An environment in which a job of the repository joins `ray_local` rather than starting a Ray."""
    address = ray_local.get_runtime_context().gcs_address
    return {**os.environ, "RAY_ADDRESS": address, "PYTHONPATH": str(ROOT)}
