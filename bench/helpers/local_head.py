"""A Ray head on this machine for a benchmark or a test.

It has its own folder and ports, even if another Ray runs, and leaves nothing behind.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil

from bench.helpers.own_processes import end

START_SECONDS = 120.0


class LocalHead:
    """`with LocalHead(num_cpus=2) as head:` runs `ray start --head`.

    `.address` is for RAY_ADDRESS, `.environment` for commands that talk to the head. Ray's token
    authentication is on, with a token of its own.

    options: further arguments for `ray start`.
    environment: further environment variables for it.
    """

    def __init__(self, *options: str, num_cpus: int = 2, environment: dict[str, str] | None = None) -> None:
        self.options, self.num_cpus = options, num_cpus
        # a short path, as paths of Ray's sockets below it may have at most 107 characters
        self.folder = tempfile.mkdtemp(prefix="head", dir="/tmp")
        self.port, self.dashboard_port, self.client_port, self.agent_port = free_ports(4)
        self.environment = {
            **{
                name: value
                for name, value in os.environ.items()
                if not name.startswith("RAY_") and name != "PROAV_RUNS"
            },
            # a submitted job takes the first python on PATH
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": os.urandom(32).hex(),
            "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{self.dashboard_port}",
            "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",
            **(environment or {}),
        }

    @property
    def address(self) -> str:
        """host:port of the head, once it runs."""
        return Path(self.folder, "ray_current_cluster").read_text().strip()

    def __enter__(self) -> "LocalHead":
        words = [
            *(
                "ray",
                "start",
                "--head",
                f"--port={self.port}",
                "--dashboard-host=127.0.0.1",
                f"--dashboard-port={self.dashboard_port}",
            ),
            *(
                f"--ray-client-server-port={self.client_port}",
                f"--dashboard-agent-listen-port={self.agent_port}",
                f"--temp-dir={self.folder}",
            ),
            *(f"--num-cpus={self.num_cpus}", "--disable-usage-stats"),
            *self.options,
        ]
        try:
            done = subprocess.run(
                words, env=self.environment, capture_output=True, text=True, timeout=START_SECONDS
            )
            if done.returncode:
                raise RuntimeError(f"{' '.join(words)} failed:\n{done.stdout}\n{done.stderr}")
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    def run(self, *words: str, timeout: float = 600.0, **environment: str) -> subprocess.CompletedProcess:
        """Runs a command on this machine, with the cluster's address in its environment."""
        return subprocess.run(
            words, env={**self.environment, **environment}, capture_output=True, text=True, timeout=timeout
        )

    def add_node(self, *, num_cpus: int) -> psutil.Process:
        """Starts a second node on this machine. Returns its raylet process; if that ends, the node ends."""
        before = set(self._raylets())
        words = [
            "ray",
            "start",
            f"--address={self.address}",
            f"--num-cpus={num_cpus}",
            "--disable-usage-stats",
            f"--dashboard-agent-listen-port={free_ports(1)[0]}",
        ]
        done = self.run(*words, timeout=START_SECONDS)
        if done.returncode:
            raise RuntimeError(f"{' '.join(words)} failed:\n{done.stdout}\n{done.stderr}")
        (raylet,) = set(self._raylets()) - before
        return raylet

    def remove_node(self, raylet: psutil.Process) -> None:
        """Ends a node that may have ended already."""
        end(
            lambda: (
                [raylet, *raylet.children(recursive=True)]
                if raylet.is_running() and raylet.status() != psutil.STATUS_ZOMBIE
                else []
            )
        )

    def _raylets(self) -> list[psutil.Process]:
        return [each for each in processes_of(self.folder) if each.name() == "raylet"]

    def stop(self) -> None:
        """Ends every process of this head, then removes its folder."""
        end(lambda: processes_of(self.folder))
        if os.path.isdir(self.folder):
            shutil.rmtree(self.folder)


def processes_of(folder: str) -> list[psutil.Process]:
    """Processes whose command line names `folder`, and their descendants, except this one.

    The dashboard's own subprocesses write into its folder, but replace their command line by a title.
    """
    found = {}
    for each in psutil.process_iter(["cmdline"]):
        if any(folder in word for word in each.info["cmdline"] or ()):
            found[each.pid] = each
            with contextlib.suppress(psutil.NoSuchProcess):
                found |= {child.pid: child for child in each.children(recursive=True)}
    found.pop(os.getpid(), None)
    return list(found.values())


def free_ports(count: int) -> list[int]:
    """Different ports that nothing listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
