"""The stages that train a model, one record each: what they are called, made by, bound to and judged by.

Not here: how a stage is built and measured (`proav/train/worker.py`, `proav/train/on_ray/validation.py`).
"""

from dataclasses import dataclass

from proav.config import Config, TrainConfig
from proav.errors import UserError


@dataclass(frozen=True)
class Stage:
    """One of STAGES."""

    name: str
    """Of its setting, its section of the configuration and its folder."""
    model: str
    """The model's name, as the paper writes it."""
    role: str
    """What the model is, for people."""
    fixed_by: tuple[str, ...]
    """Kinds of settings (`proav/config/changes.py`) without which the weights mean something else."""
    numbers: tuple[str, ...]
    """What a measurement beside training shows."""
    kind: str
    """What its checkpoints hold: mdsa | stdit."""
    optional: bool = False
    """Whether a run is whole without it."""

    @property
    def command(self) -> str:
        """What makes its checkpoints."""
        return f"python ray_jobs/train.py stage={self.name}"

    def settings(self, config: Config) -> TrainConfig:
        """Its training section."""
        return getattr(config, self.name).train

    def described(self, config: Config) -> Config:
        """The configuration that its checkpoints hold: the run's; that of a flow map says that it is one."""
        if self.name != "distill":
            return config
        diffusion = config.diffusion.model_copy(update={"objective": "flow_map"})
        sampling = {"steps": None, "solver": None, "guidance_scale": 1.0, "guidance_interval": (0.0, 1.0)}
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
"""In the order in which they train."""


def stage_of(kind: str, config: Config) -> Stage:
    """The stage whose checkpoints are of this kind and hold this configuration."""
    if kind == "stdit" and config.diffusion.objective == "flow_map":
        return STAGES["distill"]
    return STAGES[kind]


def find_stage(name: str | None) -> Stage:
    """The stage of a name. Raises UserError for one that does not train."""
    if name not in STAGES:
        raise UserError(f"stage={name} cannot be trained; expected stage={' or stage='.join(STAGES)}")
    return STAGES[name]
