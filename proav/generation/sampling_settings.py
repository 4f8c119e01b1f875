"""How samples are made: one value, which a configuration, a request or a call in Python passes to the solver.

Not here: what may differ between samples of the same settings, such as seed, label and what is given
(`requests.py`).
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from proav.config import Config
from proav.config.changes import setting_values, settings_that_change
from proav.config.reading import config_from_dict, config_to_dict
from proav.config.section import guidance_scales
from proav.diffusion import DDPM, FlowMap, RectifiedFlow
from proav.diffusion.solvers import SOLVERS, find_solver, num_steps
from proav.diffusion.tasks import sampling_task
from proav.errors import UserError

MAX_STEPS, MAX_GUIDANCE_SCALE, MAX_SHIFT = 1000, 30.0, 100.0
OF_TRAINED_MODELS = tuple(
    key for key in settings_that_change("samples") if key.startswith(("mel.", "diffusion."))
)
"""Settings of `mel` and `diffusion` that change only samples. A trained model takes other values of them."""


@dataclass(frozen=True)
class SamplingSettings:
    """How samples are made. Raises UserError for a value that no model supports.

    `filled` and `num_calls` raise it for a value that one model does not support.
    """

    task: str = "joint"
    """A name of TASKS that makes clips."""
    steps: int | None = None
    """Steps of the solver, 1 to 1000; None: 4 for a flow map, 30 for other models."""
    solver: str | None = None
    """A name of SOLVERS; None: euler for a flow, ddim for ddpm, flow_map for a flow map."""
    schedule_shift: float | None = None
    """Times become s t / (1 + (s - 1) t) with this s, 1 to 100; None: as in training."""
    guidance_scale: float = 1.0
    """Classifier-free guidance, 0 to 30; 1 is none. A flow map takes the scales that it has learned, or 1."""
    audio_guidance_scale: float | None = None
    """The same for the sound; None: guidance_scale is for both."""
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    """Times, the cleaner first, between which guidance acts (Kynkaanniemi et al., 2024)."""

    def __post_init__(self) -> None:
        sampling_task(self.task)
        if self.steps is not None and not 1 <= self.steps <= MAX_STEPS:
            raise UserError(f"steps={self.steps}: expected 1 to {MAX_STEPS}")
        if self.solver is not None and self.solver not in SOLVERS:
            raise UserError(f"solver={self.solver} is unknown; expected one of {', '.join(SOLVERS)}")
        if self.schedule_shift is not None and not 1 <= self.schedule_shift <= MAX_SHIFT:
            raise UserError(f"schedule_shift={self.schedule_shift}: expected 1 to {MAX_SHIFT:g}")
        for name in ("guidance_scale", "audio_guidance_scale"):
            scale = getattr(self, name)
            if scale is not None and not 0 <= scale <= MAX_GUIDANCE_SCALE:
                raise UserError(f"{name}={scale}: expected 0 to {MAX_GUIDANCE_SCALE:g}")
        check_guidance_interval(self.guidance_interval)
        object.__setattr__(self, "guidance_interval", tuple(self.guidance_interval))  # a list has no hash

    @classmethod
    def from_config(cls, config: Config) -> "SamplingSettings":
        """The settings of the section `generate`."""
        return cls(**{field.name: getattr(config.generate, field.name) for field in dataclasses.fields(cls)})

    def to_dict(self) -> dict:
        """Plain values, for manifests; without audio_guidance_scale if guidance_scale is for both."""
        values = dataclasses.asdict(self) | {"guidance_interval": list(self.guidance_interval)}
        if self.audio_guidance_scale is None:
            del values["audio_guidance_scale"]
        return values

    @property
    def guidance_scales(self) -> tuple[float, float]:
        """(video's, audio's)."""
        return guidance_scales(self.guidance_scale, self.audio_guidance_scale)

    def without_guidance_of(self, modality: str | None) -> "SamplingSettings":
        """The same settings with scale 1 for "video" or "audio". None: the settings unchanged."""
        if modality is None:
            return self
        video, audio = self.guidance_scales
        video, audio = (1.0, audio) if modality == "video" else (video, 1.0)
        return dataclasses.replace(self, guidance_scale=video, audio_guidance_scale=audio)

    @property
    def schedule(self) -> "SamplingSettings":
        """The same settings without guidance. Samples that share them go through the same times together."""
        return dataclasses.replace(
            self, guidance_scale=1.0, audio_guidance_scale=None, guidance_interval=(0.0, 1.0)
        )

    def filled(self, process: RectifiedFlow | DDPM) -> "SamplingSettings":
        """These settings with what the process decides: a number of steps, and the guidance of a flow map.

        Raises UserError for other guidance than a flow map has learned, and for more steps than ddpm has.
        """
        filled = dataclasses.replace(self, steps=num_steps(self.steps, process.objective))
        process.times_of(filled.steps, filled.schedule_shift)  # or says why not
        if not isinstance(process, FlowMap):
            return filled
        own = process.guidance_scales
        if self.guidance_scales not in ((1.0, 1.0), own):
            given, learned = scales_text(self.guidance_scales), scales_text(own)
            raise UserError(
                f"{given}: this flow map has learned {learned} and takes no other; write {learned}, or train "
                f"one with distill.{given.replace(', ', ' distill.')}"
            )
        check_guidance_interval(self.guidance_interval, process)
        video, audio = own
        return dataclasses.replace(
            filled, guidance_scale=video, audio_guidance_scale=None if audio == video else audio
        )

    def num_calls(self, objective: str) -> int:
        """Calls of the model for one batch, by a process of this objective.

        Raises UserError if the solver does not follow that process.
        """
        return find_solver(self.solver, objective).num_calls(num_steps(self.steps, objective))


def check_guidance_interval(
    interval: tuple[float, float], process: RectifiedFlow | DDPM | None = None
) -> None:
    """Raises UserError if guidance cannot act between these times, (smaller, larger).

    process: of the model; None: any. A flow map takes only [0, 1].
    """
    try:
        low, high = interval
        said, within = f"guidance_interval=[{low},{high}]", 0 <= low <= high <= 1
    except (TypeError, ValueError):  # not two, or no numbers
        said, within = f"guidance_interval={interval!r}", False
    if not within:
        raise UserError(f"{said}: expected two times in [0, 1], the smaller first, such as [0.1,0.8]")
    if isinstance(process, FlowMap) and (low, high) != (0.0, 1.0):
        raise UserError(
            f"guidance_interval=[{low:g},{high:g}]: this flow map has learned guidance at all times; "
            "leave guidance_interval out"
        )


def scales_text(scales: tuple[float, float]) -> str:
    """The settings of guidance that mean these scales of video and audio."""
    video, audio = scales
    said = f"guidance_scale={video:g}"
    return said if audio == video else f"{said}, audio_guidance_scale={audio:g}"


def changed_settings(model: Config, job: Config) -> dict[str, Any]:
    """{dotted key: value} of the OF_TRAINED_MODELS that a job names, if they differ from its model's.

    A setting that the job's configuration does not name stays the model's.
    """
    asked, own = setting_values(job), setting_values(model)
    named = {f"{name}.{key}" for name in ("mel", "diffusion") for key in getattr(job, name).model_fields_set}
    return {key: asked[key] for key in OF_TRAINED_MODELS if key in named and asked[key] != own[key]}


def with_settings(model: Config, settings: Mapping[str, Any]) -> Config:
    """The configuration of a trained model with other values of OF_TRAINED_MODELS.

    settings: {dotted key: value}, such as {"mel.griffin_lim_iterations": 64}.
    Raises UserError for any other key, and for a value out of range.
    """
    if not settings:
        return model
    values = config_to_dict(model)
    for key, value in settings.items():
        if key not in OF_TRAINED_MODELS:
            raise UserError(
                f"{key}={value}: a trained model keeps this setting; "
                f"expected some of {', '.join(OF_TRAINED_MODELS)}"
            )
        section, _, name = key.partition(".")
        values[section][name] = value
    return config_from_dict(values)
