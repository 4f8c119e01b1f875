"""Every setting of a run, typed and documented: a section for each component, a file for each group of them.

The defaults are the paper's scale on Landscape: 16 frames of 256x256 at 10 fps, sound at 16 kHz. A YAML file
names only what differs. Rules between fields are checked here, at construction, before any work starts.
Not here: reading YAML and command lines (`proav/config/reading.py`), and sizes that follow from these
settings (`proav/geometry.py`).
"""

from typing import Annotated

from pydantic import Field, model_validator

from proav.config.changes import Changes
from proav.config.clip import ClipConfig, DataConfig, MelConfig
from proav.config.distill import DistillConfig
from proav.config.filters import FilterConfig
from proav.config.generation import EvaluateConfig, GenerateConfig, JobConfig
from proav.config.mdsa import (
    BiBlockConfig,
    GroupCrossConfig,
    LinearPlanesConfig,
    MDSAConfig,
    MDSALossConfig,
    MultiScaleConfig,
    PlaneChannelsConfig,
    RefinerConfig,
    SpatialConfig,
)
from proav.config.section import Count, Section, Stage, TaskName
from proav.config.stdit import DiffusionConfig, EncodeConfig, STDiTConfig
from proav.config.training import DistillTrainConfig, MDSATrainConfig, STDiTTrainConfig, TrainConfig
from proav.config.tuning import TuneConfig

__all__ = [
    "BiBlockConfig", "ClipConfig", "Config", "DataConfig", "DiffusionConfig", "DistillConfig",
    "DistillTrainConfig", "EncodeConfig", "EvaluateConfig", "FilterConfig", "GenerateConfig",
    "GroupCrossConfig", "JobConfig", "LinearPlanesConfig", "MDSAConfig", "MDSALossConfig",
    "MDSATrainConfig", "MelConfig", "MultiScaleConfig", "PlaneChannelsConfig", "RefinerConfig",
    "STDiTConfig", "STDiTTrainConfig", "Section", "SpatialConfig", "Stage", "TaskName", "TrainConfig",
    "TuneConfig",
]  # fmt: skip


class Config(Section):
    """One run, from source video to served sample."""

    changes = ("machine",)

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "landscape"
    """Name of the run."""
    run_dir: str | None = None
    """Folder for everything that the run leaves, local or remote; empty: runs/<name>."""
    seed: Annotated[Count, Changes("mdsa", "stdit")] = 0
    """Seed of all randomness: each draw is a function of this and an index."""
    stage: Stage | None = None
    """The model that train.py trains. Empty: mdsa, then the latents, then stdit, each unless it is done.
    distill: a flow map of the trained ST-DiT, which samples in few steps.
    """
    clip: ClipConfig = ClipConfig()
    """Clip shape and rates."""
    mel: MelConfig = MelConfig()
    """Mel images."""
    data: DataConfig = DataConfig()
    """Sources and storage."""
    filters: FilterConfig = FilterConfig()
    """Which prepared segments are used."""
    mdsa: MDSAConfig = MDSAConfig()
    """Autoencoder."""
    encode: EncodeConfig = EncodeConfig()
    """Stored latents."""
    stdit: STDiTConfig = STDiTConfig()
    """Generator."""
    diffusion: DiffusionConfig = DiffusionConfig()
    """Noise process."""
    distill: DistillConfig = DistillConfig()
    """Flow map."""
    generate: GenerateConfig = GenerateConfig()
    """Sampling."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """Measuring."""
    tune: TuneConfig = TuneConfig()
    """Sweeps."""
    job: JobConfig = JobConfig()
    """Settings of every job."""

    @property
    def run_folder(self) -> str:
        """`run_dir`, or runs/<name>."""
        return self.run_dir or f"runs/{self.name}"

    @property
    def data_folder(self) -> str:
        """Where the prepared data is: `data.prepared`, or <run_dir>/data."""
        return self.data.prepared or f"{self.run_folder.rstrip('/')}/data"

    @model_validator(mode="before")
    @classmethod
    def _train_alike(cls, settings: object) -> object:
        """Fills distill.train with the values of stdit.train where it has none, except for its length."""
        if not isinstance(settings, dict):
            return settings
        trained, distill = (settings.get(name) or {} for name in ("stdit", "distill"))
        train, own = (one.get("train") or {} if isinstance(one, dict) else one for one in (trained, distill))
        if not all(isinstance(one, dict) for one in (distill, train, own)):
            return settings
        alike = {key: value for key, value in train.items() if key not in DistillTrainConfig.own_length}
        return settings | {"distill": distill | {"train": alike | own}}

    @model_validator(mode="after")
    def _check(self) -> "Config":
        from proav.geometry import check_geometry

        check_geometry(self)
        depth, decoder = self.stdit.shape[0], self.distill.decoder_blocks
        if decoder is not None and decoder >= depth:
            raise ValueError(
                f"distill.decoder_blocks={decoder}: none of the {depth} blocks of ST-DiT would see the "
                f"current time; expected at most {depth - 1}"
            )
        return self
