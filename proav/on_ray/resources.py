"""What a Ray cluster has, what its autoscaler may add, and whether a cluster is there at all.

At its start, a job makes choices such as CPU or GPU, or the number of trials. They must not depend on the
nodes that happen to be up: an idle autoscaling cluster has none. Ray does not tell a job what the autoscaler
may add. So the cluster's own files set it in an environment variable of the head.
"""

import os
import socket
from typing import Literal

import ray
from ray._private import services

from proav.errors import UserError

LIMITS_VARIABLE = "PROAV_CLUSTER_LIMITS"
"""The largest amount of each resource that the cluster can grow to, such as CPU=64,GPU=8."""
ANSWER_SECONDS = 5.0
"""Time for a cluster's port to accept a connection; Ray itself would try a dead address for two minutes."""


def largest_resources() -> dict[str, float]:
    """The largest amount of each resource, such as {"CPU": 64.0, "GPU": 8.0}, now or after growth.

    Growth is limited by PROAV_CLUSTER_LIMITS.
    """
    now, limits = ray.cluster_resources(), read_limits(os.environ.get(LIMITS_VARIABLE, ""))
    return {kind: max(now.get(kind, 0.0), limits.get(kind, 0.0)) for kind in now.keys() | limits.keys()}


def read_limits(text: str) -> dict[str, float]:
    """The text CPU=64,GPU=8 as {"CPU": 64.0, "GPU": 8.0}. Raises UserError for anything else."""
    try:
        return {
            kind.strip(): float(number)
            for kind, number in (word.split("=") for word in text.split(",") if word.strip())
        }
    except ValueError:
        raise UserError(
            f"{LIMITS_VARIABLE}={text}: expected resources and numbers, such as CPU=64,GPU=8"
        ) from None


def wants_gpu(setting: bool | Literal["auto"]) -> bool:
    """Whether a job asks Ray for GPUs. For "auto" it does if the cluster has a GPU or can get one."""
    return setting if isinstance(setting, bool) else largest_resources().get("GPU", 0) >= 1


def device_of(use_gpu: bool) -> str:
    """The torch device of a worker that asked Ray for a GPU, or for none."""
    return "cuda" if use_gpu else "cpu"


def check_address(address: str, *, named: str | None = None) -> None:
    """Raises UserError at once if no Ray can answer at `address`: host:port, ray://host:port, auto or local.

    named: what gave the address, for the message; RAY_ADDRESS=<address> by default.
    """
    named = named or f"RAY_ADDRESS={address}"
    if address == "local":
        return
    found = ""
    if address == "auto":  # Ray says which address it would use; ray.init would wait silently for a dead Ray
        try:
            address = services.get_ray_address_from_environment("auto", None)
        except ConnectionError:
            raise UserError(
                f"{named}, but no Ray runs on this machine; start it, or unset RAY_ADDRESS to use this "
                "machine alone"
            ) from None
        found = f", which is {address} according to Ray's files on this machine"
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if "/" in host or not host or not port.isdecimal():
        hint = "; the dashboard's address is for RAY_API_SERVER_ADDRESS" if address.startswith("http") else ""
        raise UserError(
            f"{named}: expected the head's address and port (usually 6379), such as "
            f"RAY_ADDRESS=10.0.0.1:6379{hint}"
        )
    try:
        _knock(host, port)
    except (OSError, OverflowError, UnicodeError) as error:  # UnicodeError: no name of a host, such as a..b
        raise UserError(
            f"no Ray answers at {named}{found} ({error}); start it, name the head's address and port "
            "(usually 6379), or unset RAY_ADDRESS to use this machine alone"
        ) from error


def running_here() -> str | None:
    """host:port of the Ray that was last started on this machine by `ray start --head`, if it is alive."""
    address = services.find_bootstrap_address(None)
    try:
        if address:
            _knock(*address.rsplit(":", 1))
    except (OSError, ValueError):
        return None
    return address


def _knock(host: str, port: str) -> None:
    """Raises OSError if nothing accepts a connection."""
    socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_SECONDS).close()
