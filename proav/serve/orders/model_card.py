"""What the served model can do, read from its checkpoint without its weights.

It is the answer of /v1/models, and every request is checked against it (`requests.py`).
"""

from dataclasses import dataclass, replace

from proav import storage
from proav.config import Config
from proav.diffusion import DDPM, FlowMap, RectifiedFlow, make_process
from proav.diffusion.masks import continue_frames
from proav.diffusion.solvers import DEFAULTS, SOLVERS, find_solver, num_steps
from proav.diffusion.tasks import TASKS, sampled_tasks
from proav.errors import UserError
from proav.generation.long_clips import makes_long_clips, wanted_frames
from proav.generation.sampling_settings import MAX_GUIDANCE_SCALE, MAX_SHIFT, MAX_STEPS, SamplingSettings
from proav.geometry import ClipGeometry
from proav.runs.checkpoint import INDEX, Checkpoint
from proav.serve.settings import ServeSettings


@dataclass(frozen=True)
class ModelCard:
    """The model's sizes and vocabulary, and the defaults and limits of requests."""

    id: str
    created: int
    """Unix time in seconds at which the checkpoint was written; 0 if unknown."""
    labels: tuple[str, ...]
    vectors: dict[str, tuple[int, ...]]
    """{name: (width,) or (longest, width)} of the vectors that it takes."""
    encoders: tuple[str, ...]
    """Names of vectors that may be given as texts."""
    tasks: tuple[str, ...]
    geometry: ClipGeometry
    steps: int
    max_steps: int
    """Most calls of the model for a window: most steps of a solver that makes one call a step."""
    process: RectifiedFlow | DDPM
    """The process that the model follows: it decides which solvers, steps and guidance are possible."""
    solver: str
    """The solver of a request that names none."""
    schedule_shift: float
    """Shift of the sampling times of a request that names none, 1 to MAX_SHIFT."""
    guidance_scale: float
    guidance_range: tuple[float, float]
    """Smallest and largest scale that a request may ask for. For a flow map both are its own scale."""
    audio_guidance_scale: float | None
    """None: guidance_scale is for both."""
    audio_guidance_range: tuple[float, float]
    guidance_interval: tuple[float, float]
    """Times between which guidance acts if a request names none, the cleaner first."""
    checkpoint_hash: str
    clips_trained: int
    mel: dict[str, float]
    """Bands of the spectrogram preview: num_bins, min_hz, max_hz."""
    max_upload_bytes: int
    max_windows: int
    """Most windows that a request may make. For the task continue they are added to the given clip."""
    window_seconds: float
    """Seconds that each window after the first adds. For the task continue, the first adds as much."""
    max_frames: dict[str, int]
    """Frames of the longest clip of each task; for the task continue, the given clip is included."""

    @classmethod
    def of(cls, checkpoint: Checkpoint, settings: ServeSettings) -> "ModelCard":
        """The card of a checkpoint; `settings` override the defaults of the checkpoint's run.

        Raises UserError if the model does not take the defaults: then no job could be made.
        """
        process = make_process(checkpoint.config)
        try:
            sampling = _default_sampling(checkpoint.config, process, settings)
        except UserError as error:
            raise UserError(
                f"{checkpoint.path} cannot be served: {error}. What this server does not set itself is "
                f"`config.generate` of its {INDEX}"
            ) from error
        ranges = [(0, MAX_GUIDANCE_SCALE)] * 2
        if isinstance(process, FlowMap):
            ranges = [(scale, scale) for scale in process.guidance_scales]
        geometry, tasks = ClipGeometry.from_config(checkpoint.config), sampled_tasks(checkpoint.config)
        modified = storage.file_info(storage.join(checkpoint.path, INDEX)).mtime
        return cls(
            id=checkpoint.config.name,
            created=int(modified.timestamp()) if modified else 0,
            labels=checkpoint.labels,
            vectors=checkpoint.config.stdit.vector_shapes,
            encoders=tuple(settings.encoders),
            tasks=tasks,
            geometry=geometry,
            steps=sampling.steps,
            max_steps=settings.max_steps,
            process=process,
            solver=sampling.solver,
            schedule_shift=sampling.schedule_shift,
            guidance_scale=sampling.guidance_scale,
            guidance_range=ranges[0],
            audio_guidance_scale=sampling.audio_guidance_scale,
            audio_guidance_range=ranges[1],
            guidance_interval=sampling.guidance_interval,
            checkpoint_hash=checkpoint.hash,
            clips_trained=checkpoint.clips,
            mel=checkpoint.config.mel.model_dump(include={"num_bins", "min_hz", "max_hz"}),
            max_upload_bytes=settings.max_upload_bytes,
            max_windows=settings.max_windows,
            window_seconds=(geometry.num_frames - continue_frames(checkpoint.config)) / geometry.fps,
            max_frames={task: _longest(checkpoint.config, task, settings.max_windows) for task in tasks},
        )

    @property
    def size(self) -> str:
        """WIDTHxHEIGHT in pixels."""
        return f"{self.geometry.width}x{self.geometry.height}"

    @property
    def seconds(self) -> str:
        return f"{self.geometry.seconds:g}"

    @property
    def solvers(self) -> tuple[str, ...]:
        """Names of the solvers that a request may ask for."""
        return tuple(name for name, row in SOLVERS.items() if self.process.objective in row.objectives)

    def most_steps(self, solver: str, shift: float) -> int:
        """Most steps that a request with this solver and shift of times may ask for."""
        return _most_steps(self.process, self.max_steps, solver, shift)

    def to_json(self) -> dict:
        max_steps = {name: self.most_steps(name, self.schedule_shift) for name in self.solvers}
        return {
            "id": self.id,
            "object": "model",
            "created": self.created,
            "owned_by": "proav",
            "labels": list(self.labels),
            "vectors": {
                name: {"shape": list(shape), "takes_text": name in self.encoders}
                for name, shape in self.vectors.items()
            },
            "tasks": list(self.tasks),
            "size": self.size,
            "seconds": self.seconds,
            "num_frames": self.geometry.num_frames,
            "fps": self.geometry.fps,
            "sample_rate": self.geometry.sample_rate,
            "steps": {"default": self.steps, "max": max_steps[self.solver]},
            "solver": {"default": self.solver, "max_steps": max_steps},
            "schedule_shift": {"default": self.schedule_shift, "max": MAX_SHIFT},
            "guidance_scale": {"default": self.guidance_scale, "max": self.guidance_range[1]},
            "audio_guidance_scale": {
                "default": self.audio_guidance_scale,
                "max": self.audio_guidance_range[1],
            },
            "guidance_interval": {"default": list(self.guidance_interval)},
            "checkpoint": self.checkpoint_hash,
            "clips_trained": self.clips_trained,
            "mel": self.mel,
            "max_upload_bytes": self.max_upload_bytes,
            "max_seconds": {task: frames / self.geometry.fps for task, frames in self.max_frames.items()},
            "num_windows": {"default": 1, "max": self.max_windows, "seconds": self.window_seconds},
        }


def _default_sampling(
    config: Config, process: RectifiedFlow | DDPM, settings: ServeSettings
) -> SamplingSettings:
    """The settings of a request that names none, with every value filled in.

    Raises UserError if the model does not take them, or if they exceed settings.max_steps or a ddpm's times.
    """
    own = SamplingSettings.from_config(config)
    solver = own.solver or DEFAULTS[process.objective]
    find_solver(solver, process.objective)  # or says why not
    trained = process.shift if isinstance(process, RectifiedFlow) else 1.0
    shift = trained if own.schedule_shift is None else own.schedule_shift
    most = _most_steps(process, settings.max_steps, solver, shift)
    names = ("steps", "guidance_scale", "audio_guidance_scale")
    chosen = {name: value for name in names if (value := getattr(settings, name)) is not None}
    steps = min(num_steps(own.steps, process.objective), most)
    filled = replace(own, **{"steps": steps} | chosen).filled(process)
    if filled.steps > most:
        num_calls = SOLVERS[solver].num_calls(filled.steps)
        if num_calls <= settings.max_steps:
            raise UserError(
                f"steps={filled.steps} with schedule_shift={shift:g}: the {process.num_steps} times of this "
                f"ddpm model allow fewer; write steps={most}"
            )
        raised = f" or max_steps={num_calls}" if num_calls <= MAX_STEPS else ""
        raise UserError(
            f"steps={filled.steps} with solver={solver} needs {num_calls} calls of the model, and "
            f"max_steps={settings.max_steps} allows fewer; write steps={most}{raised}"
        )
    return replace(filled, solver=solver, schedule_shift=shift)


def _most_steps(process: RectifiedFlow | DDPM, max_calls: int, solver: str, shift: float) -> int:
    """Most steps that need at most `max_calls` calls of the model, and that the process has."""
    num_calls = SOLVERS[solver].num_calls
    most = max(steps for steps in range(1, max_calls + 1) if num_calls(steps) <= max_calls)
    return min(most, process.most_steps(shift)) if isinstance(process, DDPM) else most


def _longest(config: Config, task: str, max_windows: int) -> int:
    """Frames of the longest clip that a request may ask for by a task.

    A given clip that is continued may be as long as max_windows windows without overlap. config: of the
    model.
    """
    if not makes_long_clips(config, task):
        return config.clip.num_frames
    frames = wanted_frames(config, None, max_windows)
    if TASKS[task].extends:
        frames += max_windows * config.clip.num_frames - continue_frames(config)
    return frames
