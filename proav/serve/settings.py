"""What a server can be told: the arguments of `serve run proav.serve:app key=value ...` and of a Serve config file, checked before anything starts.

Not the settings of a run (`proav/config`): how a model was made is in its checkpoint.
"""

import dataclasses
import difflib
import os
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Field, ValidationError, model_validator

from proav import storage
from proav.config import Section
from proav.errors import ConfigError
from proav.serve.front.arrival import Limits

CHECKPOINT_VARIABLE = "PROAV_CHECKPOINT"
RUNS_VARIABLE = "PROAV_RUNS"
DEMO_CHECKPOINT = "runs/demo/stdit/checkpoints/latest"
SHOWCASE_CHECKPOINT = Path(__file__).parents[2] / "examples" / "showcase" / "latest"
"""A small model that comes with the repository; a package that pip has installed has none."""
JOBS_DIR = "runs/serve"

Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0)]


def _from_text(value: Any) -> Any:
    """A command line gives every value as text: [1, 4] and true are read as YAML reads them."""
    try:
        return yaml.safe_load(value) if isinstance(value, str) else value
    except yaml.YAMLError:
        raise ValueError("cannot be read") from None


def _names(value: Any) -> Any:
    """A list, or a text with commas, of host names in lower case."""
    names = _from_text(value) if isinstance(value, str) and value.strip().startswith("[") else value
    names = names.split(",") if isinstance(names, str) else names
    if not isinstance(names, list | tuple):
        raise ValueError("expected names with commas between them")
    names = tuple(str(name).strip().lower().strip("[]").removesuffix(".") for name in names)
    for name in names:
        if not name or "/" in name or (name.count(":") == 1):
            expected = "names such as clips.example.org, without http:// and port"
            raise ValueError(f"{name!r} is no name; expected {expected}")
    return names


class ServeSettings(Section):
    """One server."""

    checkpoint: str | None = None
    """ST-DiT checkpoint: its folder or a `latest` file, local or remote; empty: what PROAV_CHECKPOINT names, else the demo's,
    else examples/showcase."""
    jobs_dir: str | None = None
    """Where jobs and their clips are kept, local or remote, one server each; empty: runs/serve (below PROAV_RUNS, if set)."""
    lease_seconds: Seconds = 60.0
    """A server that did not renew its hold on jobs_dir for so long has lost it, and another may take it."""
    host: str | None = None
    """`serve run` only: address to listen on; empty: 127.0.0.1, this machine alone; 0.0.0.0: every interface."""
    port: Annotated[int, Field(ge=1, le=65535)] | None = None
    """`serve run` only: port to listen on; empty: 8000."""
    allowed_hosts: Annotated[tuple[str, ...], BeforeValidator(_names)] = ()
    """Names and addresses, without port, by which clients reach the server; others get 403. Empty: any."""
    keep_seconds: Seconds = 7 * 86400.0
    """How long a finished job and its clip are kept."""
    max_queued_jobs: Count = 32
    """Jobs that wait at most; a request beyond them is answered 429."""
    max_batch_size: Count = 8
    """Jobs that are sampled in one forward at most."""
    batch_wait_seconds: Annotated[float, Field(ge=0, le=10)] = 0.02
    """How long an idle sampler waits for more jobs to share a batch with the first."""
    max_upload_bytes: Count = Limits.max_upload_bytes
    """A larger request body is answered 413, without reading it to its end."""
    max_arriving_bytes: Count = Limits.max_arriving_bytes
    """Memory for the bodies of all requests that arrive or are not answered yet; one more gets 503."""
    arrival_seconds: Seconds = Limits.arrival_seconds
    """Time in which a whole request must arrive; else 408."""
    pause_seconds: Seconds = Limits.pause_seconds
    """Longest pause in a body that arrives, else 408, and in fetching an answer, which is then broken off."""
    head_seconds: Seconds = Limits.head_seconds
    """Time in which the head of a request must arrive; else 408."""
    max_connections: Count = Limits.max_connections
    """Open connections on each node; one beyond them is answered 503."""
    decode_seconds: Seconds = 30.0
    """Time that decoding an uploaded file may take."""
    max_decode_bytes: Count = 512 * 2**20
    """Memory that decoding an uploaded file may take, beyond the file; two are decoded at a time."""
    steps: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Denoising steps of a request that names none; empty: generate.steps of the checkpoint's run."""
    guidance_scale: Annotated[float, Field(ge=0, le=30)] | None = None
    """Guidance of a request that names none; empty: generate.guidance_scale of the checkpoint's run."""
    max_steps: Annotated[int, Field(ge=1, le=1000)] = 200
    """Steps that a request may ask for."""
    num_replicas: Annotated[int | tuple[int, int], BeforeValidator(_from_text)] = 1
    """Samplers, each with the model in memory: a number, or [MIN, MAX] to let Serve scale with the load."""
    use_gpu: Annotated[Literal["auto"] | bool, BeforeValidator(_from_text)] = "auto"
    """A GPU for each sampler; auto: if the cluster that is connected, else this machine, has one."""
    cpus_per_replica: Annotated[float, Field(gt=0)] = 1.0
    """CPUs that a sampler reserves on the cluster."""
    threads_per_replica: Count | None = None
    """Threads of PyTorch in a sampler; empty: the CPUs of its node, shared by the samplers."""
    stall_seconds: Seconds = 120.0
    """A sampler that makes no denoising step for so long is replaced: above the time of one step, and of decoding, of a full batch."""
    frozen_seconds: Seconds = 30.0
    """A process of the server that does not run at all for so long is killed and replaced."""
    health_seconds: Seconds = 10.0
    """/healthz takes a step, a finished batch, or a sign of life of a sampler at work, of at most this age as
    evidence; else it samples a step, which may take as long."""

    @model_validator(mode="after")
    def _check(self) -> "ServeSettings":
        low, high = self.replica_range
        if not 1 <= low <= high:
            raise ValueError(
                f"num_replicas={self.num_replicas}: expected a number of at least 1, or [MIN, MAX] with 1 <= MIN <= MAX"
            )
        if self.steps is not None and self.steps > self.max_steps:
            raise ValueError(f"steps={self.steps} is above max_steps={self.max_steps}")
        if self.max_arriving_bytes < self.max_upload_bytes:
            least = f"expected at least max_upload_bytes={self.max_upload_bytes}"
            raise ValueError(f"max_arriving_bytes={self.max_arriving_bytes}: {least}")
        return self

    @property
    def limits(self) -> Limits:
        """What connections may take."""
        return Limits(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Limits)})

    @property
    def replica_range(self) -> tuple[int, int]:
        """(fewest, most) samplers."""
        return (
            self.num_replicas
            if isinstance(self.num_replicas, tuple)
            else (self.num_replicas, self.num_replicas)
        )


def read_settings(arguments: dict[str, Any]) -> ServeSettings:
    """The settings with every path resolved: local paths absolute, PROAV_CHECKPOINT and PROAV_RUNS applied.

    arguments: as `serve run` gives them (texts) or a Serve config file does (values). Raises ConfigError.
    """
    for key in arguments:
        if key not in ServeSettings.model_fields:
            near = difflib.get_close_matches(key, ServeSettings.model_fields, n=1)
            hint = (
                f"did you mean {near[0]}?"
                if near
                else f"expected one of {', '.join(ServeSettings.model_fields)}"
            )
            raise ConfigError(f"unknown setting {key}={arguments[key]}; {hint}")
    try:
        settings = ServeSettings.model_validate(arguments)
    except ValidationError as error:
        first = error.errors()[0]
        said = first["msg"].removeprefix("Value error, ")
        if not first["loc"]:  # a rule between settings names them itself
            raise ConfigError(said) from None
        key = str(first["loc"][0])
        meaning = ServeSettings.model_fields[key].description
        raise ConfigError(f"{key}={arguments[key]}: {said[:1].lower()}{said[1:]}. {key}: {meaning}") from None
    runs = os.environ.get(RUNS_VARIABLE) or "."
    checkpoint = settings.checkpoint or os.environ.get(CHECKPOINT_VARIABLE) or _own_checkpoint(runs)
    jobs_dir = settings.jobs_dir or storage.join(runs, JOBS_DIR)
    return settings.model_copy(update={"checkpoint": _absolute(checkpoint), "jobs_dir": _absolute(jobs_dir)})


def _own_checkpoint(runs: str) -> str:
    """The demo's checkpoint; where no demo was run, the showcase's if it is there."""
    demo = storage.join(runs, DEMO_CHECKPOINT)
    if storage.is_remote(demo) or os.path.exists(demo) or not SHOWCASE_CHECKPOINT.exists():
        return demo
    return str(SHOWCASE_CHECKPOINT)


def _absolute(path: str) -> str:
    return (
        path if storage.is_remote(path) else os.path.abspath(os.path.expanduser(path.removeprefix("file://")))
    )
