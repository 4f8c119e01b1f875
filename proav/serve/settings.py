"""The settings of a server, checked before anything starts.

They are the arguments of `serve run proav.serve:app key=value ...` or of a Serve config file. Not here: the
settings of a run (`proav/config`); how a model was made is in its checkpoint.
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
DEMO_CHECKPOINTS = ("runs/demo/distill/checkpoints/latest", "runs/demo/stdit/checkpoints/latest")
"""The demo's models: its flow map, which makes clips in few steps, and ST-DiT. Remote runs: ST-DiT."""
SHOWCASE_CHECKPOINT = Path(__file__).parents[2] / "examples" / "showcase" / "latest"
"""A small model that comes with the repository. A package that pip installed does not hold it."""
JOBS_DIR = "runs/serve"

Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0)]


def _from_text(value: Any) -> Any:
    """Reads a text as YAML, such as [1, 4] or true: a command line gives every value as text."""
    try:
        return yaml.safe_load(value) if isinstance(value, str) else value
    except yaml.YAMLError:
        raise ValueError("cannot be read") from None


def _names(value: Any) -> Any:
    """Host names in lower case, from a list or from a text with commas."""
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
    """One server.

    `checkpoint` is the folder of a checkpoint or a `latest` file. It and `jobs_dir` may be local or remote.
    """

    checkpoint: str | None = None
    """ST-DiT checkpoint; empty: that of PROAV_CHECKPOINT, else of the demo, else of examples/showcase."""
    jobs_dir: str | None = None
    """Folder of jobs and clips, for one server; empty: runs/serve, below PROAV_RUNS if that is set."""
    lease_seconds: Seconds = 60.0
    """A server that does not renew its lease of jobs_dir for this time loses it; another may take it."""
    host: str | None = None
    """For `serve run`: address to listen on; empty: 127.0.0.1, this machine only; 0.0.0.0: all interfaces."""
    port: Annotated[int, Field(ge=1, le=65535)] | None = None
    """For `serve run`: port to listen on; empty: 8000."""
    allowed_hosts: Annotated[tuple[str, ...], BeforeValidator(_names)] = ()
    """Names and addresses, without port, by which clients reach the server; others get 403. Empty: any."""
    keep_seconds: Seconds = 7 * 86400.0
    """How long a finished job and its clip are kept."""
    max_queued_jobs: Count = 32
    """Most jobs that may wait; a further request is answered 429."""
    max_batch_size: Count = 8
    """Most jobs that are sampled together, as one batch."""
    batch_wait_seconds: Annotated[float, Field(ge=0, le=10)] = 0.02
    """How long an idle sampler waits for more jobs to share a batch with the first."""
    max_upload_bytes: Count = Limits.max_upload_bytes
    """Largest request body; a larger one is answered 413 before it is read to its end."""
    max_arriving_bytes: Count = Limits.max_arriving_bytes
    """Memory for the bodies of all requests that are not answered yet; a body beyond it gets 503."""
    arrival_seconds: Seconds = Limits.arrival_seconds
    """Time in which a whole request must arrive; a later one is answered 408."""
    pause_seconds: Seconds = Limits.pause_seconds
    """Longest pause of a client. If it sends a body, the answer then is 408; if it reads an answer, the
    connection is closed.
    """
    head_seconds: Seconds = Limits.head_seconds
    """Time in which the head of a request must arrive; a later one is answered 408."""
    max_connections: Count = Limits.max_connections
    """Most open connections on each node; a further one is answered 503."""
    decode_seconds: Seconds = 30.0
    """Time that decoding an uploaded file may take."""
    max_decode_bytes: Count = 512 * 2**20
    """Memory that decoding one uploaded file may take beyond the file; two are decoded at a time."""
    encoders: Annotated[dict[str, str], BeforeValidator(_from_text)] = {}
    """Functions that turn a request's texts into vectors: {caption: package.module:function}, called with a
    list of texts. A prompt that is no label is a text of the first of them.
    """
    steps: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Denoising steps if a request names none; empty: generate.steps of the checkpoint's run."""
    guidance_scale: Annotated[float, Field(ge=0, le=30)] | None = None
    """Guidance if a request names none; empty: generate.guidance_scale of the checkpoint's run."""
    audio_guidance_scale: Annotated[float, Field(ge=0, le=30)] | None = None
    """Guidance of the sound if a request names none; empty: generate.audio_guidance_scale of that run."""
    max_steps: Annotated[int, Field(ge=1, le=1000)] = 200
    """Most denoising steps that a request may ask for. With a solver that calls the model more than once a
    step, such as heun, it is the most calls.
    """
    max_windows: Annotated[int, Field(ge=1, le=1000)] = 32
    """Most windows that a request may make: those added to a given clip (task=continue), or all of a longer
    clip. A clip that is to be continued may be at most this many times as long as the model's clips.
    """
    num_replicas: Annotated[int | tuple[int, int], BeforeValidator(_from_text)] = 1
    """Number of samplers, each with the model in memory; [MIN, MAX] lets Serve scale with the load."""
    use_gpu: Annotated[Literal["auto"] | bool, BeforeValidator(_from_text)] = "auto"
    """Whether each sampler gets a GPU; auto: if the connected cluster, else this machine, has one."""
    cpus_per_replica: Annotated[float, Field(gt=0)] = 1.0
    """CPUs that each sampler reserves on the cluster."""
    threads_per_replica: Count | None = None
    """PyTorch threads of each sampler; empty: the CPUs of its node, shared by the samplers."""
    stall_seconds: Seconds = 120.0
    """A sampler without a step for this time is replaced; keep it above a full batch's step and decoding."""
    frozen_seconds: Seconds = 30.0
    """A process of the server that does not run at all for this time is killed and replaced."""
    health_seconds: Seconds = 10.0
    """/healthz accepts a step or sign of life of this age; without one, a step must succeed in this time."""

    @model_validator(mode="after")
    def _check(self) -> "ServeSettings":
        low, high = self.replica_range
        if not 1 <= low <= high:
            raise ValueError(
                f"num_replicas={self.num_replicas}: expected a number of at least 1, "
                "or [MIN, MAX] with 1 <= MIN <= MAX"
            )
        if self.steps is not None and self.steps > self.max_steps:
            raise ValueError(f"steps={self.steps} is above max_steps={self.max_steps}")
        if self.max_arriving_bytes < self.max_upload_bytes:
            least = f"expected at least max_upload_bytes={self.max_upload_bytes}"
            raise ValueError(f"max_arriving_bytes={self.max_arriving_bytes}: {least}")
        return self

    @property
    def limits(self) -> Limits:
        """The settings that bound what connections may take."""
        return Limits(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Limits)})

    @property
    def replica_range(self) -> tuple[int, int]:
        """(fewest, most) samplers that run at a time."""
        return (
            self.num_replicas
            if isinstance(self.num_replicas, tuple)
            else (self.num_replicas, self.num_replicas)
        )


def read_settings(arguments: dict[str, Any]) -> ServeSettings:
    """The settings with every path resolved: local paths absolute, PROAV_CHECKPOINT and PROAV_RUNS applied.

    arguments: texts from `serve run`, or values from a Serve config file. Raises ConfigError.
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
    """The demo's flow map or ST-DiT, or the showcase's if no demo was run and the showcase is there."""
    flow_map, stdit = (storage.join(runs, name) for name in DEMO_CHECKPOINTS)
    if storage.is_remote(runs):  # nothing is read before the server starts
        return stdit
    here = [path for path in (flow_map, stdit) if os.path.exists(path)]
    return here[0] if here else str(SHOWCASE_CHECKPOINT) if SHOWCASE_CHECKPOINT.exists() else stdit


def _absolute(path: str) -> str:
    return (
        path if storage.is_remote(path) else os.path.abspath(os.path.expanduser(path.removeprefix("file://")))
    )
