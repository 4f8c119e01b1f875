"""What each process of a group of training workers is told before it trains: its network interface, and
signals.

gloo takes the address that the host's own name resolves to, which on many machines is 127.0.0.1: workers on
other hosts cannot reach it. The interface that holds the node's Ray address is one that all nodes of the
cluster reach.
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
    """Ray Train's torch set-up; a GLOO_SOCKET_IFNAME of the node's own is respected."""

    stop_seconds: float = 60.0
    """job.stop_seconds."""

    @property
    def backend_cls(self):
        return _WorkerBackend


class _WorkerBackend(TorchConfig().backend_cls):
    def on_start(self, worker_group, backend_config: WorkerBackendConfig) -> None:
        worker_group.execute(stop_watch.listen, backend_config.stop_seconds)
        worker_group.execute(choose_interface)
        super().on_start(worker_group, backend_config)


def choose_interface() -> None:
    """Names the interface in this process's environment, before its process group is made; runs on every
    worker."""
    interface = interface_of(ray.util.get_node_ip_address())
    if interface is not None:
        os.environ.setdefault(VARIABLE, interface)


def interface_of(address: str) -> str | None:
    """The network interface that holds an IP address; None where none does, as behind address translation:
    gloo chooses then."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(entry.address.partition("%")[0] == address for entry in addresses):
            return name
    return None
