"""The application on Ray Serve: one ingress with the queue, and samplers behind it.

`serve run proav.serve:app` builds it. If the user made a mistake in the settings, the command ends here with
one line, before the application starts. Of the server's files, only this one and `listen.py` use Ray. Not
here: the sampler itself (`sampler.py`), what the ingress serves (`api/http.py`).
"""

import logging
from collections.abc import AsyncIterator, Sequence
from typing import Any

import click
import ray
import torch
from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from proav.errors import TOLD
from proav.generation.pipeline import SampleRequest
from proav.on_ray.resources import wants_gpu
from proav.runs.checkpoint import load_checkpoint
from proav.serve.api.http import http_app
from proav.serve.on_ray.listen import start_listening
from proav.serve.on_ray.sampler import Sampler
from proav.serve.on_ray.watchdog import watch
from proav.serve.orders.model_card import ModelCard
from proav.serve.queue.dispatch import SamplerLost
from proav.serve.queue.jobs import check_writable
from proav.serve.queue.service import Service, lease_of
from proav.serve.settings import SHOWCASE_CHECKPOINT, ServeSettings, read_settings

MAX_OPEN_REQUESTS = 1000
HEALTH_PERIOD_SECONDS = 3.0
"""Time between health checks, and the time after which Serve replaces a sampler that has ended."""
HEALTH_TIMEOUT_SECONDS = 10.0
HEALTH_FAILURES = 3
"""Failed health checks in a row after which Ray Serve replaces a replica."""
SAMPLER_ENVIRONMENT = {
    # glibc: otherwise a large batch on a CPU gives its memory back after every layer, and the system clears
    # it anew for the next layer.
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**32),
    # OpenMP: by default, waiting threads spin. On a busy machine they take processor time from the threads
    # that still compute.
    "OMP_WAIT_POLICY": "PASSIVE",
}
ENDING_SECONDS = 10.0
"""How long a new server waits for an earlier one that was just killed and may not have ended yet."""
SIGNS = 4
"""Signs of life that a working sampler gives within health_seconds, the time that /healthz accepts."""
QUIET = {"enable_access_log": False}
"""There is no access log, because clients that poll would fill it."""


class StartError(click.ClickException):
    """A user's mistake, as an error that `serve run` prints in one line."""

    exit_code = 2

    def show(self, file=None) -> None:
        click.echo(f"error: {self.message}", err=True)


def build(arguments: dict[str, Any]) -> serve.Application:
    """The application for the arguments of `serve run` or of a Serve config file. Raises StartError."""
    try:
        settings = read_settings(arguments)
        ModelCard.of(load_checkpoint(settings.checkpoint, kind="stdit"), settings)  # or says why not
        if settings.checkpoint == str(SHOWCASE_CHECKPOINT):
            click.echo(
                f"no demo was run here, so this serves the small model of {SHOWCASE_CHECKPOINT.parent}; "
                "checkpoint=PATH serves another, make demo trains one",
                err=True,
            )
        check_writable(settings.jobs_dir)
        if start_listening(settings.host, settings.port):
            lease_of(settings).require_free(wait_seconds=ENDING_SECONDS)
    except TOLD as error:
        raise StartError(str(error)) from None
    samplers = serve.deployment(ReplicaSampler).options(**sampler_options(settings)).bind(settings)
    return serve.deployment(Front).options(**front_options()).bind(settings, samplers)


def sampler_options(settings: ServeSettings) -> dict[str, Any]:
    """Ray Serve's options for the samplers: their number, what each reserves, how their health is watched."""
    low, high = settings.replica_range
    use_gpu = _gpu_is_there() if settings.use_gpu == "auto" else settings.use_gpu
    scaling: dict[str, Any] = {"num_replicas": low}
    if low < high:  # a batch counts as one request
        scaling = {
            "autoscaling_config": {
                "min_replicas": low,
                "max_replicas": high,
                "target_ongoing_requests": 1,
                "upscale_delay_s": 10,
            }
        }
    return {
        "name": "Sampler",
        **scaling,
        "ray_actor_options": {
            "num_cpus": settings.cpus_per_replica,
            "num_gpus": int(use_gpu),
            "runtime_env": {"env_vars": SAMPLER_ENVIRONMENT},
        },
        "max_ongoing_requests": 1,
        "logging_config": QUIET,
        "graceful_shutdown_timeout_s": settings.stall_seconds,
        "health_check_period_s": HEALTH_PERIOD_SECONDS,
        # For what `watchdog.py` cannot see, such as a node that is frozen as a whole.
        "health_check_timeout_s": max(HEALTH_TIMEOUT_SECONDS, settings.stall_seconds / HEALTH_FAILURES),
    }


def front_options() -> dict[str, Any]:
    """Ray Serve's options for the ingress.

    There is one ingress, because it owns the queue. It mostly waits and moves files, so it reserves no CPU.
    """
    return {
        "name": "Front",
        "num_replicas": 1,
        "ray_actor_options": {"num_cpus": 0},
        "max_ongoing_requests": MAX_OPEN_REQUESTS,
        "logging_config": QUIET,
        "health_check_period_s": HEALTH_PERIOD_SECONDS,
    }


class ReplicaSampler(Sampler):
    """A sampler as a replica of Ray Serve."""

    def __init__(self, settings: ServeSettings) -> None:
        _log_with_serve()
        threads = settings.threads_per_replica or max(1, int(_node_cpus()) // settings.replica_range[1])
        super().__init__(
            settings.checkpoint, threads=threads,
            stall_seconds=settings.stall_seconds, sign_seconds=settings.health_seconds / SIGNS,
        )  # fmt: skip
        watch("sampler", frozen_seconds=settings.frozen_seconds, trouble=self.trouble)


class RemoteSamplers:
    """All replicas behind one handle. It has the methods of `Samplers` in `queue/dispatch.py`."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._sample = handle.options(method_name="sample", stream=True)
        self._probe = handle.options(method_name="probe")

    async def sample(self, requests: Sequence[SampleRequest]) -> AsyncIterator[dict[str, Any]]:
        answer = self._sample.remote(list(requests))
        try:
            async for event in answer:
                yield event
        except RayTaskError as error:  # what the sampler itself raised
            raise (error.cause if isinstance(error.cause, Exception) else error) from error
        except (RayError, RayServeException) as error:
            raise SamplerLost(_first_line(error)) from error
        finally:
            answer.cancel()

    async def probe(self) -> float:
        try:
            return await self._probe.remote()
        except (RayError, RayServeException) as error:
            raise SamplerLost(_first_line(error)) from error


@serve.ingress()
class Front:
    """The ingress: HTTP and the queue."""

    def __init__(self, settings: ServeSettings, samplers: DeploymentHandle) -> None:
        _log_with_serve()
        torch.set_num_threads(1)  # it draws spectrograms; the samplers have the processors
        self._service = Service(settings, RemoteSamplers(samplers))
        watch("front", frozen_seconds=settings.frozen_seconds)

    def check_health(self) -> None:
        """Called by Serve. Raises if another server has taken over the jobs folder.

        Serve then replaces this ingress. The new one waits until the folder is free.
        """
        self._service.require_lease()

    def __serve_build_asgi_app__(self) -> FastAPI:
        return http_app(self._service)


def _gpu_is_there() -> bool:
    if ray.is_initialized():
        return wants_gpu("auto")
    return torch.cuda.is_available()


def _node_cpus() -> float:
    """CPUs that Ray counts on this node."""
    node_id = ray.get_runtime_context().get_node_id()
    return next(node["Resources"].get("CPU", 1.0) for node in ray.nodes() if node["NodeID"] == node_id)


def _log_with_serve() -> None:
    """Sends proav's own messages where Serve's go: to the terminal and to Ray's log files."""
    ours = logging.getLogger("proav")
    ours.handlers, ours.propagate = logging.getLogger("ray.serve").handlers, False
    ours.setLevel(logging.INFO)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
