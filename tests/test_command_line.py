"""What every job shares: where relative paths lie, which Ray it uses, and errors if a cluster is missing."""

import os
import socket
from pathlib import Path

import pytest
from ray._private import services

from proav.command_line import runs_folder
from proav.errors import UserError
from proav.on_ray.resources import (
    LIMITS_VARIABLE,
    check_address,
    largest_resources,
    read_limits,
    running_here,
    wants_gpu,
)


def test_relative_runs_lie_below_this_folder_or_the_one_that_is_named(monkeypatch):
    monkeypatch.delenv("PROAV_RUNS", raising=False)
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    assert runs_folder() == "."
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert runs_folder() == str(Path.home() / "proav")
    monkeypatch.setenv("PROAV_RUNS", "s3://bucket/all")
    assert runs_folder() == "s3://bucket/all"


def test_an_address_where_nothing_listens_is_reported_at_once():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(
            UserError, match=f"no Ray answers at RAY_ADDRESS=127.0.0.1:{port} .*unset RAY_ADDRESS"
        ):
            check_address(f"127.0.0.1:{port}")
        with pytest.raises(UserError, match=f"no Ray answers at RAY_ADDRESS=ray://127.0.0.1:{port} "):
            check_address(f"ray://127.0.0.1:{port}")
        taken.listen()
        for alive in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}", "local"):
            check_address(alive)


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "head", "10.0.0.1:port", ":6379"])
def test_what_is_no_address_is_reported_with_what_one_looks_like(address):
    said = f"RAY_ADDRESS={address}: expected the head's address and port .* RAY_ADDRESS=10.0.0.1:6379"
    with pytest.raises(UserError, match=said):
        check_address(address)


def test_the_address_that_a_dead_ray_left_in_a_file_is_reported_or_passed_over(tmp_path, monkeypatch):
    (tmp_path / "ray").mkdir()
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(services, "find_gcs_addresses", set)  # Rays of other people on this machine
    with pytest.raises(UserError, match="RAY_ADDRESS=auto, but no Ray runs on this machine"):
        check_address("auto")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        (tmp_path / "ray" / "ray_current_cluster").write_text(address)
        assert running_here() is None
        said = f"no Ray answers at RAY_ADDRESS=auto, which is {address} according to Ray's files"
        with pytest.raises(UserError, match=said):
            check_address("auto")
        taken.listen()
        check_address("auto")
        assert running_here() == address


@pytest.mark.ray
def test_the_gpu_is_chosen_by_what_the_cluster_may_have(ray_local, monkeypatch):
    monkeypatch.delenv(LIMITS_VARIABLE, raising=False)
    assert largest_resources()["CPU"] == 2
    assert wants_gpu(True) and not wants_gpu(False)
    assert wants_gpu("auto") == (ray_local.cluster_resources().get("GPU", 0) >= 1)
    monkeypatch.setenv(
        LIMITS_VARIABLE, "CPU=64, GPU=8"
    )  # as on the head of a cluster whose GPU nodes are not up yet
    assert largest_resources()["CPU"] == 64 and wants_gpu("auto") and not wants_gpu(False)


def test_limits_are_read_and_a_mistake_in_them_is_reported():
    assert read_limits("") == {} and read_limits("CPU=64,GPU=8") == {"CPU": 64.0, "GPU": 8.0}
    for broken in ("GPU", "GPU=many", "GPU=8=2"):
        with pytest.raises(UserError, match=f"{LIMITS_VARIABLE}={broken}: expected .* CPU=64,GPU=8"):
            read_limits(broken)


def test_a_python_without_the_packages_is_reported(tmp_path):
    """`ray job submit -- python ...` takes the first python on the head's PATH."""
    import subprocess
    import sys

    root = Path(__file__).parents[1]
    block = (
        "import sys, runpy; sys.modules['pydantic'] = None; sys.path.insert(0, sys.argv[1]); "
        "sys.argv = sys.argv[2:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    words = [sys.executable, "-c", block, str(root), str(root / "ray_jobs" / "train.py"), "--dry-run"]
    done = subprocess.run(
        words, cwd=tmp_path, env=dict(os.environ), capture_output=True, text=True, timeout=60
    )
    assert (
        done.returncode == 2 and "has no package pydantic" in done.stderr and "Traceback" not in done.stderr
    )
