"""Settings of a sweep: which settings of MDSA vary, how points are chosen, how long a trial may last.

Whether the axes name settings that exist, and which combinations can be run, is checked by `proav/tune/space.py`.
"""

import json
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from proav.config.section import Count, PositiveInt, Section, Weight


class TuneConfig(Section):
    """A sweep over settings of MDSA: each trial is a training run of its own."""

    changes = ("sweep",)

    axes: dict[str, tuple[Any, ...]] = {}
    """What varies: the dotted key of a setting of mdsa, and its values: {mdsa.group_cross.num_groups: [2, 4]}."""
    search: Literal["grid", "random", "optuna"] = "grid"
    """grid: every combination, or the first num_trials of them. random: num_trials different ones. optuna: TPE proposes (pip install 'proav[tune]')."""
    num_trials: PositiveInt | None = None
    """Trials at most; empty: every combination."""
    scheduler: Literal["asha", "none"] = "asha"
    """asha: after each rung only the best 1 / reduction_factor of the trials so far go on. none: every trial sees max_clips."""
    max_clips: PositiveInt = 120_000
    """Clips that a trial sees if it is not stopped."""
    grace_clips: PositiveInt = 30_000
    """The first rung: clips that every trial sees. The next rungs are reduction_factor times the one before, up to max_clips."""
    reduction_factor: Annotated[int, Field(ge=2)] = 2
    """How much longer each rung is, and how few go on to it."""
    max_concurrent_trials: PositiveInt | None = None
    """Trials at a time; empty: as many as the cluster has CPUs or GPUs for."""
    picture_weight: Weight = 1.0
    """Share of the picture's PSNR (dB) in the score, which is picture_weight * PSNR - sound_weight * log-mel error."""
    sound_weight: Weight = 1.0
    """Share of the sound's log-mel error (dB) in the score."""
    seed: Count = 0
    """Draws the points of random and optuna; trials train with the run's own seed."""

    @field_validator("axes", mode="before")
    @classmethod
    def _flatten(cls, axes: Any) -> Any:
        """Nested keys, as overrides make them (tune.axes.mdsa.width=[64,96]), become dotted ones; a later one takes an earlier one's place."""
        if not isinstance(axes, dict):
            return axes
        flat = _flat(axes)
        for key, values in flat.items():
            if not isinstance(values, list | tuple):
                raise ValueError(
                    f"tune.axes.{key}={json.dumps(values)} is one value; expected a list of them, such as [2,4]"
                )
        return flat

    @field_validator("axes")
    @classmethod
    def _check_axes(cls, axes: dict[str, tuple[Any, ...]]) -> dict[str, tuple[Any, ...]]:
        for key, values in axes.items():
            if not values:
                raise ValueError(f"tune.axes.{key}=[] names no value; expected a list, such as [2,4]")
            if len({json.dumps(value) for value in values}) < len(values):
                raise ValueError(
                    f"tune.axes.{key}={json.dumps(list(values))} names a value twice; each is one trial"
                )
        return axes

    @model_validator(mode="after")
    def _check(self) -> "TuneConfig":
        if self.scheduler == "asha" and self.grace_clips > self.max_clips:
            raise ValueError(
                f"tune.grace_clips={self.grace_clips} is above tune.max_clips={self.max_clips}; expected at most that many"
            )
        if self.picture_weight + self.sound_weight == 0:
            raise ValueError(
                "tune.picture_weight and tune.sound_weight are both 0; give at least one a positive weight"
            )
        return self

    @property
    def rungs(self) -> tuple[int, ...]:
        """Clips seen at which trials are measured and compared, the last one being max_clips."""
        rungs = [self.max_clips if self.scheduler == "none" else self.grace_clips]
        while rungs[-1] < self.max_clips:
            rungs.append(min(rungs[-1] * self.reduction_factor, self.max_clips))
        return tuple(rungs)


def _flat(values: dict, prefix: str = "") -> dict:
    flat: dict = {}
    for key, value in values.items():
        inner = _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
        flat = {known: kept for known, kept in flat.items() if known not in inner} | inner
    return flat
