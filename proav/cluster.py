"""What a Ray cluster has, what its autoscaler may add, and whether a cluster is there at all.

Choices that a job makes at its start (CPU or GPU, how many trials) must not follow from the nodes that happen to be up: an idle autoscaling
cluster has none. Ray does not tell a job what the autoscaler may add, so the cluster's own files do, by an environment variable of the head.
"""

import os
import socket
from typing import Literal

import ray

from proav.errors import UserError

LIMITS_VARIABLE = "PROAV_CLUSTER_LIMITS"
"""Names the most of each resource that the cluster can grow to, as in CPU=64,GPU=8."""
ANSWER_SECONDS = 5.0
"""How long a cluster's port may take to accept a connection; Ray itself would try a dead address for two minutes."""


def largest_resources() -> dict[str, float]:
    """The most of each resource that the cluster has now or, says PROAV_CLUSTER_LIMITS, may grow to: {"CPU": 64.0, "GPU": 8.0, ...}."""
    now, limits = ray.cluster_resources(), read_limits(os.environ.get(LIMITS_VARIABLE, ""))
    return {kind: max(now.get(kind, 0.0), limits.get(kind, 0.0)) for kind in now.keys() | limits.keys()}


def read_limits(text: str) -> dict[str, float]:
    """The text CPU=64,GPU=8 as {"CPU": 64.0, "GPU": 8.0}. Raises UserError for anything else."""
    try:
        return {kind.strip(): float(number) for kind, number in (word.split("=") for word in text.split(",") if word.strip())}
    except ValueError:
        raise UserError(f"{LIMITS_VARIABLE}={text}: expected resources and numbers, such as CPU=64,GPU=8") from None


def wants_gpu(setting: bool | Literal["auto"]) -> bool:
    """Whether work is to ask Ray for GPUs: the setting, or with "auto" whether there is one or, says PROAV_CLUSTER_LIMITS, can be."""
    return setting if isinstance(setting, bool) else largest_resources().get("GPU", 0) >= 1


def device_of(use_gpu: bool) -> str:
    """The torch device of a worker that asked Ray for a GPU, or for none."""
    return "cuda" if use_gpu else "cpu"


def check_address(address: str) -> None:
    """Raises UserError at once where nothing listens at host:port. Other forms ("auto", "local", "ray://...") are left to Ray."""
    host, _, port = address.rpartition(":")
    if "/" in address or not host or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise UserError(
            f"no Ray answers at RAY_ADDRESS={address} ({error}); start it, name the head's address and port (6379 as a rule), "
            "or unset RAY_ADDRESS to use this machine alone"
        ) from error
