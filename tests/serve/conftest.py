"""A real server on a tiny checkpoint, for all tests of its HTTP interface and its page."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import requests

from tests.tiny import save_tiny_stdit, tiny_config

ROOT = Path(__file__).parents[2]
START_SECONDS = 120


class Server:
    """`serve run proav.serve:app` as a process of its own, with a Ray of its own."""

    def __init__(self, folder: Path, **settings) -> None:
        self.folder, self.settings = folder, {"port": free_port(), "jobs_dir": folder / "jobs", **settings}
        self.url = f"http://127.0.0.1:{self.settings['port']}"
        self.process: subprocess.Popen | None = None

    @property
    def log(self) -> str:
        return (self.folder / "server.log").read_text()

    def start(self) -> "Server":
        command = [str(Path(sys.executable).parent / "serve"), "run", "proav.serve:app", *(f"{key}={value}" for key, value in self.settings.items())]
        environment = {**os.environ, "RAY_ADDRESS": "local"}  # whatever cluster may run on this machine is left alone
        with open(self.folder / "server.log", "a") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
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


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory) -> str:
    return save_tiny_stdit(str(tmp_path_factory.mktemp("served-checkpoint")), tiny_config())


@pytest.fixture(scope="session")
def server(tmp_path_factory, tiny_checkpoint):
    """The process behind `served`."""
    limits = {"max_queued_jobs": 6, "max_upload_bytes": 2**20, "max_steps": 1000}  # a job of 1000 steps takes seconds
    server = Server(tmp_path_factory.mktemp("server"), checkpoint=tiny_checkpoint, threads_per_replica=1, **limits)
    yield server.start()
    server.stop()


@pytest.fixture(scope="session")
def served(server) -> str:
    """Base URL of a server of the tiny model (labels rain and speech, 32x32, 0.8 s)."""
    return server.url
