"""Settings of the flow map: a generator that samples in few steps, fine-tuned from a trained ST-DiT."""

from typing import Annotated

from pydantic import Field

from proav.config.changes import Changes
from proav.config.section import Count, Section, guidance_scales
from proav.config.training import DistillTrainConfig


class DistillConfig(Section):
    """Fine-tuning a trained flow into a flow map (stage=distill)."""

    changes = ("flow_map",)

    teacher: Annotated[str | None, Changes("training")] = None
    """The ST-DiT checkpoint to start from and to learn from; empty: the newest of this run."""
    guidance_scale: Annotated[float, Field(ge=0, le=30)] = 1.0
    """Guidance of the teacher that the flow map learns; 1: none. Sampling then needs no guidance."""
    audio_guidance_scale: Annotated[float, Field(ge=0, le=30)] | None = None
    """The same for the sound; empty: as for the pictures."""
    decoder_blocks: Count | None = None
    """How many of the last blocks of ST-DiT are conditioned on the next time instead of the current one;
    empty: a third."""
    time_step: Annotated[float, Field(gt=0, le=1), Changes("training")] = 0.03125
    """Length of the teacher's Euler steps that the flow map learns to combine, before their shift."""
    time_shift: Annotated[float, Field(ge=1, le=100), Changes("training")] = 6.0
    """Shift s of the times that are trained, and of the teacher's steps: t becomes s t / (1 + (s - 1) t),
    nearer to noise, where the ways to the clips part; 1: no shift.
    """
    train: DistillTrainConfig = DistillTrainConfig()
    """How it is trained; settings that are not given here are as in stdit.train, except for the length."""

    @property
    def guidance_scales(self) -> tuple[float, float]:
        """(video's, audio's)."""
        return guidance_scales(self.guidance_scale, self.audio_guidance_scale)
