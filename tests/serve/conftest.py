"""Real servers on a tiny checkpoint.

`Server` is the whole server, on Ray. `Front` is the HTTP interface alone, in this process.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
import requests
import uvicorn

from proav.serve.api.http import http_app
from proav.serve.front.connections import Connection
from proav.serve.on_ray.sampler import Sampler
from proav.serve.queue.service import Service
from proav.serve.settings import ServeSettings
from tests.serve.halt import Halt
from tests.tiny import save_tiny_stdit, tiny_config

ROOT = Path(__file__).parents[2]
START_SECONDS = 240


class Server:
    """`serve run proav.serve:app` as a process of its own, with a Ray of its own."""

    def __init__(self, folder: Path, **settings) -> None:
        self.folder, self.settings = folder, {"port": free_port(), "jobs_dir": folder / "jobs", **settings}
        self.url = f"http://127.0.0.1:{self.settings['port']}"
        self.process: subprocess.Popen | None = None
        self.ray_folder = Path(
            tempfile.mkdtemp(prefix="served", dir="/tmp")
        )  # short, since sockets lie below it

    @property
    def log(self) -> str:
        return (self.folder / "server.log").read_text()

    def start(self) -> "Server":
        """Starts the server and waits until it answers.

        A file holds the address of a Ray that was killed. The server must not try to join that Ray.
        """
        (self.ray_folder / "ray").mkdir()
        (self.ray_folder / "ray" / "ray_current_cluster").write_text(f"127.0.0.1:{free_port()}")
        command = [
            str(Path(sys.executable).parent / "serve"),
            "run",
            "proav.serve:app",
            *(f"{key}={value}" for key, value in self.settings.items()),
        ]
        environment = os.environ | {"RAY_TMPDIR": str(self.ray_folder)}
        environment.pop("RAY_ADDRESS", None)
        with open(self.folder / "server.log", "a") as log:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                if requests.get(f"{self.url}/healthz", timeout=20).status_code == 200:
                    return self
            except requests.RequestException:
                pass
            time.sleep(0.3)
        self.stop()
        raise AssertionError(f"the server did not come up within {START_SECONDS} s:\n{self.log}")

    def stop(self, how: int = signal.SIGTERM) -> None:
        """Ends the server and the Ray that it started."""
        if self.process.poll() is None:
            self.process.send_signal(how)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(10)
        assert "*** SIGTERM received" not in self.log  # of Ray's stack dump
        shutil.rmtree(self.ray_folder, ignore_errors=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory) -> str:
    return save_tiny_stdit(str(tmp_path_factory.mktemp("served-checkpoint")), tiny_config())


@pytest.fixture(scope="session")
def masked_checkpoint(tmp_path_factory) -> str:
    """A model that offers the masked tasks, too."""
    weights = "diffusion.task_weights={joint: 1, a2v: 1, v2a: 1, i2av: 1, continue: 1, inpaint: 1}"
    return save_tiny_stdit(str(tmp_path_factory.mktemp("masked-checkpoint")), tiny_config(weights))


@pytest.fixture
def halt():
    with Halt() as halt:
        yield halt


class Front:
    """The HTTP interface around a sampler of this process, on a real port, without Ray."""

    def __init__(self, settings: ServeSettings, sampler: Sampler) -> None:
        self.service = Service(settings, sampler)
        app = http_app(self.service)
        config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", http=Connection)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)

    def __enter__(self) -> "Front":
        self._thread.start()
        deadline = time.monotonic() + START_SECONDS
        while not self._server.started:
            assert self._thread.is_alive() and time.monotonic() < deadline
            time.sleep(0.01)
        port = self._server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        return self

    def __exit__(self, *_) -> None:
        self._server.should_exit = True
        self._thread.join(30)


@pytest.fixture(scope="session")
def tiny_sampler(tiny_checkpoint) -> Sampler:
    return Sampler(tiny_checkpoint, threads=1, device="cpu")


@pytest.fixture
def front(tiny_checkpoint, tiny_sampler, tmp_path):
    """A `Front` of the tiny model with an empty folder of jobs."""
    folder = str(tmp_path / "jobs")
    settings = ServeSettings(checkpoint=tiny_checkpoint, jobs_dir=folder, max_upload_bytes=2**20)
    with Front(settings, tiny_sampler) as front:
        yield front


@pytest.fixture(scope="session")
def server(tmp_path_factory, tiny_checkpoint):
    """The process behind `served`."""
    limits = {
        "max_queued_jobs": 6,
        "max_upload_bytes": 2**20,
        "max_steps": 1000,
    }  # a job of 1000 steps takes seconds
    limits |= {"frozen_seconds": 6, "pause_seconds": 5, "head_seconds": 4}
    server = Server(
        tmp_path_factory.mktemp("server"), checkpoint=tiny_checkpoint, threads_per_replica=1, **limits
    )
    yield server.start()
    server.stop()


@pytest.fixture(scope="session")
def served(server) -> str:
    """Base URL of a server of the tiny model (labels rain and speech, 32x32, 0.8 s)."""
    return server.url
