"""Prepares each process of a group of training workers: its network interface, and its signals.

gloo uses the address to which the host's own name resolves. On many machines that is 127.0.0.1, which workers
on other hosts cannot reach. But all nodes can reach the interface that holds the node's Ray address.
"""

import os
from dataclasses import dataclass

import psutil
import ray
from ray.train.torch import TorchConfig

from proav.train import stop_watch

VARIABLE = "GLOO_SOCKET_IFNAME"


@dataclass
class WorkerBackendConfig(TorchConfig):
    """Ray Train's torch set-up; a GLOO_SOCKET_IFNAME of the node is kept."""

    stop_seconds: float = 60.0
    """The setting job.stop_seconds."""

    @property
    def backend_cls(self):
        return _WorkerBackend


class _WorkerBackend(TorchConfig().backend_cls):
    def on_start(self, worker_group, backend_config: WorkerBackendConfig) -> None:
        worker_group.execute(stop_watch.listen, backend_config.stop_seconds)
        worker_group.execute(choose_interface)
        super().on_start(worker_group, backend_config)


def choose_interface() -> None:
    """Puts the interface into this process's environment.

    Every worker runs it before its process group is made.
    """
    interface = interface_of(ray.util.get_node_ip_address())
    if interface is not None:
        os.environ.setdefault(VARIABLE, interface)


def interface_of(address: str) -> str | None:
    """The network interface that holds an IP address.

    None if no interface holds it, as behind address translation; gloo then chooses.
    """
    for name, addresses in psutil.net_if_addrs().items():
        if any(entry.address.partition("%")[0] == address for entry in addresses):
            return name
    return None
