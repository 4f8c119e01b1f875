"""Settings of a sweep: the settings that vary, the search, the length of a trial, and the metric.

`proav/tune` checks whether the axes name settings that exist, and which combinations can be run.
"""

import json
import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from proav.config.section import Count, PositiveFloat, PositiveInt, Section, Weight

RANGES = ("uniform", "loguniform", "integer")
MAX_STEPS = 100_000
"""Most values of a range with steps."""
BOUNDS = {"min", "max"}
"""Names of the bounds in a condition."""


class AxisConfig(Section):
    """An axis that is more than a list: a range, named groups of settings, or an axis with a condition."""

    changes = ("sweep",)

    values: tuple[Any, ...] | None = None
    """A list of values."""
    variants: dict[str, dict[str, Any]] | None = None
    """Named groups of settings that change together: {plain: {}, small: {mdsa.width: 64, mdsa.num_heads:
    2}}. {} is the configuration as it is. The axis then has a name of its own, instead of a setting's key.
    """
    uniform: tuple[float, float] | None = None
    """[LOW, HIGH]: any number between them; all are equally likely."""
    loguniform: tuple[PositiveFloat, PositiveFloat] | None = None
    """[LOW, HIGH]: any number between them; its logarithm is uniform."""
    integer: tuple[int, int] | None = None
    """[LOW, HIGH]: whole numbers, including both ends."""
    step: PositiveFloat | None = None
    """Only LOW, LOW + step, and so on (with uniform or integer)."""
    when: dict[str, Any] = {}
    """Condition of this axis: {other axis: value, values or {min: A, max: B}}. If it fails, the axis has no
    value.
    """

    @model_validator(mode="after")
    def _check(self) -> "AxisConfig":
        kinds = [name for name in ("values", "variants", *RANGES) if getattr(self, name) is not None]
        if len(kinds) != 1:
            raise ValueError(
                f"{' and '.join(kinds) or 'no values'}; expected one of values, variants, uniform, "
                "loguniform and integer, such as {loguniform: [1.0e-4, 1.0e-2]}"
            )
        if self.listed is not None:
            if self.step is not None:
                raise ValueError(
                    f"step beside {kinds[0]}; write a range, such as {{integer: [2, 8], step: 2}}"
                )
            _check_values(self.listed)
            return self
        low, high = getattr(self, kinds[0])
        if not low < high:
            raise ValueError(f"{kinds[0]}: [{low:g}, {high:g}] is empty; expected [LOW, HIGH]")
        if self.step is not None:
            self._check_step(kinds[0], low, high)
        elif self.integer is not None and high - low > MAX_STEPS:
            raise ValueError(
                f"integer: [{low}, {high}] has more than {MAX_STEPS:,} steps of 1; write a larger step, "
                f"such as step: {-(-(high - low) // 1000)}"
            )
        return self

    def _check_step(self, kind: str, low: float, high: float) -> None:
        if kind == "loguniform":
            raise ValueError(
                "step beside loguniform, which takes none; write values: [1.0e-4, 1.0e-3, 1.0e-2]"
            )
        if kind == "integer" and self.step != int(self.step):
            raise ValueError(f"step: {self.step:g} beside integer; expected a whole number")
        if not 1 <= (high - low) / self.step <= MAX_STEPS:
            raise ValueError(
                f"step: {self.step:g} in [{low:g}, {high:g}]; expected at most {high - low:g}, "
                f"and no more than {MAX_STEPS:,} steps"
            )

    @property
    def listed(self) -> tuple[Any, ...] | None:
        """The values of a list, or the names of the variants; None for a range."""
        return self.values if self.variants is None else tuple(self.variants)

    @property
    def choices(self) -> Sequence[Any] | None:
        """Every value, in order; None for a range without steps (integers have steps of 1)."""
        if self.listed is not None:
            return self.listed
        if self.integer is not None:
            return range(self.integer[0], self.integer[1] + 1, int(self.step or 1))
        if self.step is None:
            return None
        low, high = self.uniform
        count = math.floor((high - low) / self.step * (1 + 1e-12)) + 1
        return tuple(float(f"{low + place * self.step:.12g}") for place in range(count))


class TuneConfig(Section):
    """A sweep: each trial is a training of its own, once or with several seeds."""

    changes = ("sweep",)

    axes: dict[str, tuple[Any, ...] | AxisConfig] = {}
    """What varies: the dotted key of a setting, and its values or a range: {mdsa.group_cross.num_groups: [2,
    4], mdsa.train.learning_rate: {loguniform: [1.0e-4, 1.0e-2]}}. Or a name of your own, and variants; each
    variant is a group of settings.
    """
    leave_out: tuple[dict[str, Any], ...] = ()
    """Combinations that are left out: each is {axis: value, values or {min: A, max: B}}."""
    stage: Literal["mdsa", "stdit"] = "mdsa"
    """mdsa: a trial trains MDSA and reconstructs clips. stdit: a trial also trains ST-DiT, generates clips
    and evaluates them; MDSA and latents are made once if no axis changes them.
    """
    search: Literal["grid", "random", "optuna"] = "grid"
    """grid: every combination, or the first num_trials of them. random: num_trials different ones. optuna:
    TPE proposes (pip install 'proav[tune]').
    """
    num_trials: PositiveInt | None = None
    """Most trials; empty: every combination."""
    repeats: PositiveInt = 1
    """Number of seeds of each trial: the run's own and the next ones. A trial is judged by its mean over
    them.
    """
    scheduler: Literal["asha", "pbt", "none"] = "asha"
    """asha: after each rung only the best 1 / reduction_factor of the trials so far go on. pbt: every
    grace_clips the weakest take over weights and changed settings of the best. none: every trial sees
    max_clips.
    """
    budget: Literal["clips", "flops", "seconds"] = "clips"
    """What is equal for all trials at a rung. clips: clips, up to max_clips. flops: training FLOPs by
    formula, up to those of max_clips without the axes. seconds: seconds of training steps, up to max_seconds.
    """
    max_clips: PositiveInt = 120_000
    """Clips that a trial sees if it is not stopped, of the stage that tune.stage names."""
    grace_clips: PositiveInt = 30_000
    """The first rung: clips that every trial sees. The next rungs are reduction_factor times the one before,
    up to max_clips; with pbt, they are grace_clips apart.
    """
    max_seconds: PositiveFloat | None = None
    """Seconds of training that a trial sees if it is not stopped; used instead of max_clips with
    budget=seconds."""
    grace_seconds: PositiveFloat | None = None
    """Seconds of training at the first rung; used instead of grace_clips with budget=seconds. Empty:
    max_seconds."""
    reduction_factor: Annotated[int, Field(ge=2)] = 2
    """Each rung is this many times the one before; one in this many trials goes on to it."""
    exploit_fraction: Annotated[float, Field(gt=0, le=0.5)] = 0.25
    """Share of the trials, the weakest, that take over from as many of the best (pbt)."""
    max_concurrent_trials: PositiveInt | None = None
    """Trials at a time; empty: as many as the cluster has CPUs or GPUs for."""
    max_failures: Count = 2
    """How often a trial that crashed is tried again, from its last checkpoint, before it counts as failed."""
    metric: str = "score"
    """The number by which trials are judged. score: see picture_weight. Or a number of a reconstruction, such
    as psnr_db, or of an evaluation, as TABLE.METRIC: reconstruction.ssim, generated.sKVD, stdit.loss.
    """
    show: tuple[str, ...] = ()
    """More numbers of each trial, shown in columns beside the metric and named like it; they decide nothing.
    """
    mode: Literal["auto", "max", "min"] = "auto"
    """Whether the metric is to be large or small; auto: by its name."""
    picture_weight: Weight = 1.0
    """Weight of the picture's PSNR (dB) in the score: picture_weight * PSNR - sound_weight * log-mel error.
    """
    sound_weight: Weight = 1.0
    """Weight of the sound's log-mel error (dB) in the score."""
    seed: Count = 0
    """Seed of the points of random and optuna, and of the changes of pbt; trials train with the run's seed.
    """

    @field_validator("axes", mode="before")
    @classmethod
    def _flatten(cls, axes: Any) -> Any:
        """Nested keys, as overrides make them (tune.axes.mdsa.width=[64,96]), become dotted keys. If a key
        occurs twice, the later one wins.
        """
        if not isinstance(axes, dict):
            return axes
        return {key: _read_axis(key, given) for key, given in _flat(axes).items()}

    @field_validator("leave_out", mode="before")
    @classmethod
    def _check_left_out(cls, entries: Any) -> Any:
        if not isinstance(entries, list | tuple) or not all(
            isinstance(entry, dict) and entry for entry in entries
        ):
            raise ValueError(
                f"tune.leave_out={json.dumps(entries)}: expected a list of combinations, such as "
                "[{mdsa.width: 128, mdsa.encoder_depth: [3, 4]}]"
            )
        return [_flat_conditions(entry) for entry in entries]

    @model_validator(mode="after")
    def _check(self) -> "TuneConfig":
        if self.budget == "seconds":
            if self.max_seconds is None:
                raise ValueError("tune.budget=seconds needs tune.max_seconds, such as tune.max_seconds=600")
            if self.grace_seconds is not None and self.grace_seconds > self.max_seconds:
                raise ValueError(
                    f"tune.grace_seconds={self.grace_seconds:g} is above "
                    f"tune.max_seconds={self.max_seconds:g}; "
                    "expected at most that many"
                )
        elif self.max_seconds is not None or self.grace_seconds is not None:
            raise ValueError(
                f"tune.max_seconds and tune.grace_seconds hold for tune.budget=seconds, not {self.budget}; "
                "write tune.budget=seconds, or tune.max_clips and tune.grace_clips"
            )
        elif self.scheduler != "none" and self.grace_clips > self.max_clips:
            raise ValueError(
                f"tune.grace_clips={self.grace_clips} is above tune.max_clips={self.max_clips}; "
                "expected at most that many"
            )
        if self.picture_weight + self.sound_weight == 0:
            raise ValueError(
                "tune.picture_weight and tune.sound_weight are both 0; give at least one a positive weight"
            )
        if self.scheduler == "pbt":
            self._check_population()
        return self

    def _check_population(self) -> None:
        """What Ray Tune's population-based training cannot be combined with."""
        for name, given, expected in (
            ("search", self.search, "random"),
            ("repeats", self.repeats, 1),
            ("budget", self.budget, "clips"),
            ("stage", self.stage, "mdsa"),
        ):
            if given != expected:
                raise ValueError(
                    f"tune.scheduler=pbt with tune.{name}={given}: weights pass from trial to trial; "
                    f"write tune.{name}={expected}, or tune.scheduler=asha"
                )
        if self.num_trials is None or self.num_trials < 2:
            raise ValueError(
                f"tune.scheduler=pbt with tune.num_trials={self.num_trials}: it is the size of the "
                "population; "
                "expected at least 2, such as tune.num_trials=8"
            )

    @property
    def space(self) -> dict[str, AxisConfig]:
        """Every axis in its long form; a list becomes AxisConfig(values=...)."""
        return {
            key: axis if isinstance(axis, AxisConfig) else AxisConfig(values=axis)
            for key, axis in self.axes.items()
        }

    @property
    def rungs(self) -> tuple[int | float, ...]:
        """Clips, or seconds, at which trials are measured and compared; the last is the whole budget."""
        if self.budget == "seconds":
            first, last = self.grace_seconds or self.max_seconds, self.max_seconds
        else:
            first, last = self.grace_clips, self.max_clips
        rungs = [last if self.scheduler == "none" else first]
        while rungs[-1] < last:
            longer = rungs[-1] + first if self.scheduler == "pbt" else rungs[-1] * self.reduction_factor
            rungs.append(min(longer, last))
        return tuple(rungs)


def _read_axis(key: str, given: Any) -> Any:
    if isinstance(given, AxisConfig):
        return given
    if isinstance(given, dict):
        given = {name: value for name, value in given.items() if value is not None}
        unknown = given.keys() - AxisConfig.model_fields.keys()
        if unknown:
            words = ", ".join(AxisConfig.model_fields)
            raise ValueError(
                f"tune.axes.{key} has {sorted(unknown)[0]}; an axis is a list of values, or has: {words}"
            )
        if isinstance(given.get("when"), dict):
            given["when"] = _flat_conditions(given["when"])
        if isinstance(given.get("variants"), dict):
            given["variants"] = {
                name: _flat_settings(group) if isinstance(group, dict) else group
                for name, group in given["variants"].items()
            }
        try:
            return AxisConfig(**given)
        except ValidationError as error:
            first = error.errors()[0]
            where = "".join(f" {part}:" for part in first["loc"][:1])
            raise ValueError(
                f"tune.axes.{key}:{where} {first['msg'].removeprefix('Value error, ')}"
            ) from None
    if not isinstance(given, list | tuple):
        raise ValueError(
            f"tune.axes.{key}={json.dumps(given)} is one value; expected a list of them, such as [2,4], "
            "or a range, such as {integer: [2, 8]}"
        )
    try:
        _check_values(given)
    except ValueError as error:
        raise ValueError(f"tune.axes.{key}={json.dumps(given)} {error}") from None
    return tuple(given)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_values(values: tuple | list) -> None:
    if not values:
        raise ValueError("names no value; expected a list, such as [2,4]")
    if len({json.dumps(value) for value in values}) < len(values):
        raise ValueError("names a value twice; each is one trial")


def _flat(values: dict, prefix: str = "") -> dict:
    flat: dict = {}
    for key, value in values.items():
        nested = isinstance(value, dict) and not (value.keys() & AxisConfig.model_fields.keys())
        inner = _flat(value, f"{prefix}{key}.") if nested and value else {f"{prefix}{key}": value}
        flat = {known: kept for known, kept in flat.items() if known not in inner} | inner
    return flat


def _flat_settings(values: dict, prefix: str = "") -> dict:
    """{mdsa: {width: 64}} -> {mdsa.width: 64}, as overrides make them; a dotted key's value stays."""
    flat: dict = {}
    for key, value in values.items():
        nested = isinstance(value, dict) and "." not in key
        flat |= _flat_settings(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return flat


def _flat_conditions(values: dict, prefix: str = "") -> dict:
    """{mdsa: {width: 64}} -> {mdsa.width: 64}; {min: A, max: B} is a value.

    Raises ValueError for a bound that is no number.
    """
    flat: dict = {}
    for key, value in values.items():
        nested = isinstance(value, dict) and not (value.keys() & BOUNDS)
        if isinstance(value, dict) and not nested:
            if value.keys() - BOUNDS or not all(is_number(bound) for bound in value.values()):
                raise ValueError(
                    f"the condition {prefix}{key}={json.dumps(value)}: expected numbers named min and max, "
                    "such as {min: 2, max: 8}"
                )
        flat |= _flat_conditions(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return flat
