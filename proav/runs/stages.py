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
    """Of its setting, its section of the configuration, its folder and its checkpoints' kind."""
    model: str
    """The model's name, as the paper writes it."""
    role: str
    """What the model is, for people."""
    fixed_by: tuple[str, ...]
    """Kinds of settings (`proav/config/changes.py`) without which the weights mean something else."""
    numbers: tuple[str, ...]
    """What a measurement beside training shows."""

    @property
    def command(self) -> str:
        """What makes its checkpoints."""
        return f"python ray_jobs/train.py stage={self.name}"

    def settings(self, config: Config) -> TrainConfig:
        """Its training section."""
        return getattr(config, self.name).train


STAGES = {
    stage.name: stage
    for stage in (
        Stage("mdsa", "MDSA", "autoencoder", ("mdsa", "discriminators"), ("psnr_db", "mel_error_db")),
        Stage("stdit", "ST-DiT", "generator", ("mdsa", "stdit"), ("loss",)),
    )
}
"""In the order in which they train."""


def find_stage(name: str | None) -> Stage:
    """The stage of a name. Raises UserError for one that does not train."""
    if name not in STAGES:
        raise UserError(f"stage={name} cannot be trained; expected stage={' or stage='.join(STAGES)}")
    return STAGES[name]
