"""Which Ray a job uses, and in what surroundings Ray can be started.

The tests start real Rays and do not touch others on the machine.
"""

import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest

from proav.errors import UserError
from proav.on_ray import start as ray_start
from proav.on_ray.start import ROOM_BYTES, prepare_machine

ROOT = Path(__file__).parents[2]


@pytest.fixture
def surroundings(monkeypatch):
    """A function that sets environment variables; None removes one.

    Afterwards all variables have their old values again, also those that the tested code has set.
    """
    for name in (
        "TMPDIR",
        "RAY_TMPDIR",
        "RAY_AUTH_TOKEN",
        "RAY_AUTH_MODE",
        "RAY_AUTH_TOKEN_PATH",
        "RAY_OBJECT_STORE_ALLOW_SLOW_STORAGE",
        "HOME",
        "USER",
    ):
        before = os.environ.get(name)
        monkeypatch.setenv(name, "")  # so monkeypatch restores it, even if other code sets it
        os.environ.pop(name)
        if before is not None and name in ("HOME", "USER"):
            os.environ[name] = before
    monkeypatch.setattr(tempfile, "tempdir", None)
    return lambda **variables: [
        os.environ.pop(name, None) if value is None else os.environ.update({name: str(value)})
        for name, value in variables.items()
    ]


@pytest.fixture
def short():
    """A folder whose path leaves room for Ray's sockets; the paths of pytest's folders are too long."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield folder


def test_a_temporary_folder_that_fits_is_used_without_a_word(surroundings, short, capfd):
    surroundings(TMPDIR=short)
    prepare_machine()
    assert os.environ["RAY_TMPDIR"] == os.environ["TMPDIR"] == short and capfd.readouterr().err == ""


@pytest.mark.parametrize("variable", ["TMPDIR", "RAY_TMPDIR"])
def test_one_that_is_too_long_for_sockets_is_passed_over_and_that_is_said(
    surroundings, tmp_path, capfd, variable
):
    folder = tmp_path / ("slurm_jobdir" * 5)
    folder.mkdir()
    surroundings(**{variable: folder})
    prepare_machine()
    said = capfd.readouterr().err
    assert (
        os.environ["RAY_TMPDIR"] == os.environ["TMPDIR"] == tempfile.gettempdir() == "/tmp"
    )  # Python's own sockets lie there too
    assert (
        said.startswith(f"{variable}={folder} is {len(str(folder))} characters long")
        and "set RAY_TMPDIR=DIR" in said
        and said.count("\n") == 1
    )


def test_a_short_one_for_ray_serves_where_the_other_is_too_long(surroundings, tmp_path, short):
    surroundings(TMPDIR=tmp_path / ("x" * 80), RAY_TMPDIR=short)
    prepare_machine()
    assert os.environ["RAY_TMPDIR"] == os.environ["TMPDIR"] == short


def test_sockets_have_the_room_that_is_said(short):
    """The longest path of a Ray socket still fits; with one character more it does not."""
    folder = Path(short, "x" * (ROOM_BYTES - len(short) - 1))
    path = folder / "ray/session_2026-01-01_00-00-00_000000_1234567/sockets/dash_MetricsHead"
    path.parent.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as there:
        there.bind(str(path))
    with socket.socket(socket.AF_UNIX) as too_long, pytest.raises(OSError, match="too long"):
        too_long.bind(f"{path}x")


@pytest.mark.parametrize("folder", ["/nonexistent/tmp", "/sys/kernel"])
def test_one_that_is_not_there_or_cannot_be_written_is_passed_over(surroundings, capfd, folder):
    surroundings(TMPDIR=folder)
    prepare_machine()
    assert (
        os.environ["TMPDIR"] == "/tmp"
        and f"TMPDIR={folder} " in capfd.readouterr().err
        and not Path("/nonexistent").exists()
    )


def test_where_no_folder_serves_a_line_says_what_to_set(surroundings, monkeypatch):
    surroundings(TMPDIR="/sys/kernel")
    monkeypatch.setattr(ray_start, "FOLDERS", ("/proc",))
    with pytest.raises(
        UserError,
        match=r"TMPDIR=/sys/kernel cannot be written, /proc cannot .*set RAY_TMPDIR=DIR.* "
        rf"at most {ROOM_BYTES} characters",
    ):
        prepare_machine()


def test_a_home_that_cannot_be_written_needs_none(surroundings):
    surroundings(HOME="/sys")
    prepare_machine()
    assert (
        len(os.environ["RAY_AUTH_TOKEN"]) == 64
    )  # of this Ray alone; if the home can be written, Ray keeps the user's token


def test_shared_memory_that_cannot_be_written_is_passed_over(surroundings, monkeypatch, capfd):
    monkeypatch.setattr(ray_start, "SHARED_MEMORY", "/sys")
    assert (
        prepare_machine() == {"_plasma_directory": "/tmp"}
        and "/sys cannot be written" in capfd.readouterr().err
    )


UNKNOWN_USER = """
import getpass, os, sys
from proav.on_ray.start import _prepare_user
_prepare_user()
print(getpass.getuser(), os.path.isdir(os.path.expanduser("~")) and os.access(os.path.expanduser("~"),
os.W_OK))
"""


FROZEN_START = """
import os, signal, subprocess
import psutil
from proav.on_ray.start import connect

start, frozen = subprocess.Popen.__init__, []

def start_frozen(process, command, *given, **named):
    start(process, command, *given, **named)
    if not frozen and os.path.basename(command[0]) == "raylet":
        process.send_signal(signal.SIGSTOP)
        frozen.append(process)

subprocess.Popen.__init__ = start_frozen
connect("local")
import ray
names = [one.name() for one in psutil.Process().children()]
print(ray.get(ray.remote(lambda: "works").remote()), names.count("raylet"), names.count("gcs_server"))
"""


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks for Ray's processes by name")
def test_a_ray_that_does_not_get_ready_is_ended_and_started_again(short):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_TMPDIR": short}
    done = subprocess.run(
        [sys.executable, "-c", FROZEN_START], env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.stdout.split() == ["works", "1", "1"], done.stdout + done.stderr
    assert "Ray was not ready after 30 s; starting it again (2 of 3)" in done.stderr


@pytest.mark.parametrize(
    "message", ["The current node timed out during startup. This could ...", "Timed out waiting for file x"]
)
def test_a_machine_too_busy_for_ray_is_reported_in_a_line(surroundings, short, monkeypatch, capfd, message):
    """The errors have the words of Ray 2.60. What is not Ray's goes on."""
    ray = pytest.importorskip("ray")
    started = []

    def time_out(**settings):
        rays = os.path.join(os.path.dirname(ray.__file__), "gcs_server")  # told by its name in Ray's folder
        started.append([subprocess.Popen([name, "60"], executable="/bin/sleep") for name in (rays, "sleep")])
        raise Exception(message)

    monkeypatch.setattr(ray, "init", time_out)
    surroundings(RAY_TMPDIR=short)
    with pytest.raises(UserError, match="not ready after 3 times 30 s .*run the same command again"):
        ray_start.connect("local")
    assert capfd.readouterr().err.count("starting it again") == 2 and len(started) == 3
    for rays, other in started:
        assert not psutil.pid_exists(rays.pid) and other.poll() is None
        other.kill()
        other.wait()


@pytest.mark.parametrize("address", ["local", "192.0.2.1:6379"])
def test_other_errors_are_not_tried_again(surroundings, short, monkeypatch, address):
    ray = pytest.importorskip("ray")
    calls = []

    def fail(**settings):
        calls.append(settings["address"])
        raise RuntimeError("something else" if address == "local" else "timed out during startup")

    monkeypatch.setattr(ray, "init", fail)
    monkeypatch.setattr("proav.on_ray.resources.check_address", lambda *given, **named: None)
    surroundings(RAY_TMPDIR=short)
    with pytest.raises(RuntimeError):
        ray_start.connect(address)
    assert calls == [address]


def test_a_user_without_name_and_home_gets_both():
    inside = [
        "unshare",
        "-U",
        "--map-user=12345",
        "--map-group=12345",
        "env",
        "-u",
        "HOME",
        "-u",
        "USER",
        "-u",
        "LOGNAME",
    ]
    if subprocess.run([*inside, "true"], capture_output=True).returncode:
        pytest.skip("no user namespaces on this machine")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*inside, sys.executable, "-c", UNKNOWN_USER],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.split() == ["12345", "True"] and "set HOME=DIR" in done.stderr, done.stderr


JOB = """
import os
from proav.command_line import ray_session

def seen():
    from ray.util.state import list_actors
    names = [actor.name for actor in list_actors()]
    return os.environ["RAY_ADDRESS"], os.environ.get("RAY_API_SERVER_ADDRESS"), names

with ray_session():
    import ray
    own = ray.get_runtime_context().gcs_address
    Marker = type("Marker", (), {"ready": lambda self: True})
    marker = ray.remote(num_cpus=0)(Marker).options(name="marker").remote()
    ray.get(marker.ready.remote())
    of_its_own = {"env_vars": {"A": "b"}}  # as Ray Train's processes have
    workers = [
        ray.remote(num_cpus=0, runtime_env=environment)(seen).remote()
        for environment in ({}, of_its_own)
    ]
    for address, api_server, names in [seen(), *ray.get(workers)]:
        assert address == own and api_server is None and "marker" in names, (own, address, api_server, names)
assert "RAY_ADDRESS" not in os.environ and os.environ["RAY_API_SERVER_ADDRESS"]
print("kept to its own")
"""


@pytest.mark.ray
def test_all_processes_of_a_job_find_their_own_ray_beside_another(monkeypatch, tmp_path):
    """The other Ray is the newer one in Ray's files, and RAY_API_SERVER_ADDRESS names it.

    Without care, Ray Train's cleaner would ask the other Ray for this job's controller.
    """
    from bench.helpers.local_head import LocalHead

    with LocalHead(num_cpus=1) as other:
        Path(other.folder, "ray").mkdir()
        Path(other.folder, "ray", "ray_current_cluster").write_text(
            other.address
        )  # where a job with this RAY_TMPDIR looks
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        environment |= {
            name: other.environment[name]
            for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_API_SERVER_ADDRESS")
        }
        environment |= {"RAY_TMPDIR": other.folder, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-c", JOB], env=environment, capture_output=True, text=True, timeout=300
        )
    assert done.returncode == 0 and "kept to its own" in done.stdout, done.stdout + done.stderr
