"""The stages that train a model, one record each: name, command, settings that fix the weights, and metrics.

`proav/train/worker.py` builds a stage; `proav/train/on_ray/validation.py` measures it.
"""

from dataclasses import dataclass

from proav.config import Config, TrainConfig
from proav.errors import UserError


@dataclass(frozen=True)
class Stage:
    """One of STAGES."""

    name: str
    """Name of the stage's setting, of its section of the configuration and of its folder."""
    model: str
    """The model's name, as the paper writes it."""
    role: str
    """What the model is, for people."""
    fixed_by: tuple[str, ...]
    """Kinds of settings (`proav/config/changes.py`) that fix what the weights mean."""
    numbers: tuple[str, ...]
    """Metrics that are shown for a measurement beside training."""
    kind: str
    """What the stage's checkpoints hold: mdsa | stdit."""
    optional: bool = False
    """Whether a run is complete without it."""

    @property
    def command(self) -> str:
        """The command that makes its checkpoints."""
        return f"python ray_jobs/train.py stage={self.name}"

    def settings(self, config: Config) -> TrainConfig:
        """Its training section."""
        return getattr(config, self.name).train

    def described(self, config: Config) -> Config:
        """The configuration that its checkpoints hold: the run's own, or for a flow map a changed one.

        A flow map's has objective=flow_map and the default sampling settings.
        """
        if self.name != "distill":
            return config
        diffusion = config.diffusion.model_copy(update={"objective": "flow_map"})
        sampling = {
            "steps": None,
            "solver": None,
            "schedule_shift": None,
            "guidance_scale": 1.0,
            "audio_guidance_scale": None,
            "guidance_interval": (0.0, 1.0),
        }
        generate = config.generate.model_copy(update=sampling)
        return config.model_copy(update={"diffusion": diffusion, "generate": generate})


STAGES = {
    stage.name: stage
    for stage in (
        Stage("mdsa", "MDSA", "autoencoder", ("mdsa", "discriminators"), ("psnr_db", "mel_error_db"), "mdsa"),
        Stage("stdit", "ST-DiT", "generator", ("mdsa", "stdit"), ("loss",), "stdit"),
        Stage(
            "distill",
            "flow map",
            "generator in few steps",
            ("mdsa", "stdit", "flow_map"),
            ("error_4_steps", "error_1_step"),
            "stdit",
            optional=True,
        ),
    )
}
"""The stages, in the order in which they train."""


def stage_of(kind: str, config: Config) -> Stage:
    """The stage whose checkpoints are of this kind and hold this configuration."""
    if kind == "stdit" and config.diffusion.objective == "flow_map":
        return STAGES["distill"]
    return STAGES[kind]


def stages_in_turn(config: Config) -> tuple[str, ...]:
    """Names of the stages that a command without `stage` trains, in order."""
    wanted = (stage for stage in STAGES.values() if not stage.optional or stage.name == config.generate.stage)
    return tuple(stage.name for stage in wanted)


def find_stage(name: str | None) -> Stage:
    """The stage with this name. Raises UserError if there is none."""
    if name not in STAGES:
        raise UserError(f"stage={name} cannot be trained; expected stage={' or stage='.join(STAGES)}")
    return STAGES[name]
