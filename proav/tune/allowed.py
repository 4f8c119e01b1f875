"""Which settings a sweep may vary, by axes or by variants, and why others may not. Nothing runs here.

A setting may vary if it changes what a trial is judged by, and if the sweep can prepare the data it needs.
If settings of the clip, the mel images or the prepared data vary, the sweep prepares data for each value.
"""

import json

from proav.config import Config, TuneConfig
from proav.config.changes import settings_that_change
from proav.config.reading import describe_settings, nearest_key
from proav.errors import ConfigError
from proav.tune.axes import Point, settings_of, values_of, varied_by, varied_settings

NEVER = {
    "name": "a trial has a name of its own",
    "run_dir": "a trial has a folder of its own",
    "seed": "tune.repeats=N says how many seeds a trial has",
    "stage": "tune.stage says how far a trial goes",
    "tune.": "a sweep cannot be a trial of another sweep",
    "job.": "it changes nothing that is measured",
    "distill.": "no trial makes a flow map",
    "mdsa.init_from": "all trials start alike",
    "stdit.init_from": "all trials start alike",
    "evaluate.": "all trials are measured alike",
    "generate.checkpoint": "a trial has its own",
    "generate.stage": "a trial makes its clips by the ST-DiT that it trains",
    "generate.num_samples": "all trials are measured alike",
    "generate.listing": "all trials are measured alike",
    "generate.prompts": "all trials are measured alike",
    "generate.seconds": "all trials are measured alike",
    "data.prepared": "the sweep prepares data itself: vary what it is prepared with, and name data.sources",
    "data.validation_fraction": "all trials are measured on the same clips",
    "encode.replace": "it changes nothing that is measured",
}
"""Settings that no sweep varies, or the first parts of their keys, with the reason."""
AFTER_MDSA = ("encode.", "stdit.", "diffusion.", "generate.")
"""Sections that change only generated clips."""
KEEPS_LATENTS = ("stdit.", "diffusion.", "generate.")
"""Sections whose settings change neither MDSA nor, as a rule, the latents: all trials may share both."""
CHANGES_LATENTS = ("diffusion.latent_scale",)
"""Settings of these sections that change the latents all the same."""


def check_axes(config: Config) -> None:
    """Raises ConfigError for an axis that does not exist or may not vary, with the reason."""
    tune = config.tune
    if not tune.axes:
        raise ConfigError(
            "tune.axes is empty: nothing to sweep; write tune.axes.mdsa.group_cross.num_groups=[2,4], for "
            "example"
        )
    known = {key for key, _, _ in describe_settings()}
    for key, axis in tune.space.items():
        if axis.variants is not None and key in known:
            raise ConfigError(
                f"tune.axes.{key} has variants, and {key} is a setting; expected a name of your own, such as "
                "tune.axes.modules"
            )
    for setting, key in varied_settings(tune).items():
        where = "tune.axes" if setting == key else f"tune.axes.{key}.variants"
        if setting not in known:
            near = nearest_key(setting)
            hint = f"; did you mean {near}?" if near else "; --help lists all keys"
            raise ConfigError(f"{where} names {setting}, which is no setting{hint}")
        why = why_not(config, setting)
        if why:
            raise ConfigError(f"{where} names {setting}, but {why}")
    if tune.budget == "seconds":
        _check_seconds(config)


def why_not(config: Config, key: str) -> str | None:
    """The reason why a setting cannot be an axis of this sweep; None if it can."""
    tune = config.tune
    for beginning, why in NEVER.items():
        if key == beginning or (beginning.endswith(".") and key.startswith(beginning)):
            return why
    if key == f"{tune.stage}.train.num_clips":
        return "tune.max_clips says how long trials train" + (
            "; expected settings that begin with mdsa., such as mdsa.multi_scale.scales"
            if tune.stage == "mdsa"
            else ""
        )
    if key.endswith(".train.max_seconds"):
        return "tune.max_seconds says how long trials train"
    if tune.stage == "mdsa" and key.startswith(AFTER_MDSA):
        return (
            "tune.stage=mdsa trains MDSA, which it does not change; expected settings that begin with mdsa., "
            "mel., clip., data. or filters., or write tune.stage=stdit"
        )
    if tune.scheduler == "pbt" and key in settings_that_change("mdsa", "stdit", "discriminators"):
        return (
            "with tune.scheduler=pbt weights pass from trial to trial, and it changes what they mean; "
            "expected such "
            "as mdsa.train.learning_rate or mdsa.loss.perceptual, or write tune.scheduler=asha"
        )
    if tune.scheduler == "pbt" and key.endswith((".train.optimizer", ".train.engine")):
        return (
            "with tune.scheduler=pbt the optimizer's state passes from trial to trial, and it changes what "
            "that is"
        )
    if key.startswith("data.") and not changes_data(key):
        return "it says where data comes from, not what it is; expected such as data.fit or data.jpeg_quality"
    if changes_data(key):
        return _why_no_data(config, key)
    return None


def changes_data(key: str) -> bool:
    """Whether data is prepared anew for each value of the setting."""
    return key in settings_that_change("data", "windows") and key != "clip.num_frames"


def changes_mdsa(key: str) -> bool:
    """Whether trials with different values need different MDSAs or latents."""
    return not key.startswith(KEEPS_LATENTS) or key in CHANGES_LATENTS


def shares_mdsa(config: Config) -> bool:
    """Whether all trials of a sweep over generated clips start from the same MDSA."""
    return config.tune.stage == "stdit" and not any(map(changes_mdsa, varied_settings(config.tune)))


def data_axes(tune: TuneConfig) -> list[str]:
    """The axes that have a setting which changes the prepared data."""
    return [key for key, axis in tune.space.items() if any(map(changes_data, varied_by(key, axis)))]


def data_name(tune: TuneConfig, point: Point) -> str:
    """A name for a point's prepared data: the settings that change it; empty for the sweep's own data."""
    chosen = {key: value for key, value in settings_of(tune, point).items() if changes_data(key)}
    return json.dumps(chosen, sort_keys=True) if chosen else ""


def _why_no_data(config: Config, key: str) -> str | None:
    if config.data.prepared:
        return (
            f"it changes the prepared data, and data.prepared={config.data.prepared} is prepared already; "
            "leave data.prepared empty and name data.sources or data.listing, so that the sweep prepares each"
        )
    if not config.data.sources and not config.data.listing:
        return (
            "it changes the prepared data, and there is nothing to prepare; name data.sources or "
            "data.listing, "
            "so that the sweep prepares the data of each of its values"
        )
    if values_of(config.tune, key, None) is None:
        return (
            "it changes the prepared data, and a range has infinitely many values; expected a list, or a "
            "range with a step"
        )
    if config.tune.scheduler == "pbt":
        return "with tune.scheduler=pbt all trials have the same data; write tune.scheduler=asha"
    return None


def _check_seconds(config: Config) -> None:
    """Raises ConfigError for settings that need the number of clips before training ends."""
    tune, key = config.tune, f"{config.tune.stage}.train.decay_fraction"
    values = values_of(tune, key, getattr(config, tune.stage).train.decay_fraction)
    if values is None or any(value > 0 for value in values):
        raise ConfigError(
            f"tune.budget=seconds with {key} above 0: the learning rate cannot fall towards an end that no "
            "one "
            f"knows in clips; write {key}=0, or tune.budget=clips or flops"
        )
    if tune.stage == "stdit" and not shares_mdsa(config):
        changing = next(filter(changes_mdsa, varied_settings(tune)))
        raise ConfigError(
            f"tune.budget=seconds with tune.stage=stdit and the axis {changing}: trials would train MDSAs of "
            "their own, whose seconds no one counts; write tune.budget=flops or clips"
        )
