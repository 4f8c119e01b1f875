"""Which settings may be axes of which sweep, and why others may not. Nothing runs here.

Any setting may vary that changes what a trial is judged by, and whose data can be had. Settings of the clip,
the mel images and the prepared data make the sweep prepare data of its own for each of their values.
"""

import json

from proav.config import Config
from proav.config.changes import settings_that_change
from proav.config.reading import describe_settings, nearest_key
from proav.errors import ConfigError
from proav.tune.axes import Point

NEVER = {
    "name": "a trial has a name of its own",
    "run_dir": "a trial has a folder of its own",
    "seed": "tune.repeats=N says how many seeds a trial has",
    "stage": "tune.stage says how far a trial goes",
    "tune.": "a sweep is no trial of another",
    "job.": "it changes nothing that is measured",
    "distill.": "no trial makes a flow map",
    "evaluate.": "all trials are measured alike",
    "generate.checkpoint": "a trial has its own",
    "generate.num_samples": "all trials are measured alike",
    "data.prepared": "the sweep prepares data itself: vary what it is prepared with, and name data.sources",
    "data.validation_fraction": "all trials are measured on the same clips",
    "encode.replace": "it changes nothing that is measured",
}
"""Settings, or beginnings of them, that no sweep varies."""
AFTER_MDSA = ("encode.", "stdit.", "diffusion.", "generate.")
"""What bears on generated clips alone."""
KEEPS_LATENTS = ("stdit.", "diffusion.", "generate.")
"""Axes under which all trials may have the same MDSA and latents."""
CHANGES_LATENTS = ("diffusion.latent_scale",)
"""Of these sections, what latents are made with all the same."""


def check_axes(config: Config) -> None:
    """Raises ConfigError for an axis that does not exist or may not vary, with the reason."""
    tune = config.tune
    if not tune.axes:
        raise ConfigError(
            "tune.axes is empty: nothing to sweep; write such as tune.axes.mdsa.group_cross.num_groups=[2,4]"
        )
    known = {key for key, _, _ in describe_settings()}
    for key in tune.axes:
        if key not in known:
            near = nearest_key(key)
            hint = f"; did you mean {near}?" if near else "; --help lists all keys"
            raise ConfigError(f"tune.axes names {key}, which is no setting{hint}")
        why = why_not(config, key)
        if why:
            raise ConfigError(f"tune.axes names {key}, but {why}")
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
    """Whether all trials of a sweep over generated clips go on from one MDSA."""
    return config.tune.stage == "stdit" and not any(map(changes_mdsa, config.tune.axes))


def data_point(point: Point) -> Point:
    """The axes of a point that its prepared data follows from."""
    return {key: value for key, value in point.items() if changes_data(key)}


def data_name(point: Point) -> str:
    """What tells prepared data apart; empty for the sweep's own."""
    chosen = data_point(point)
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
    if config.tune.space[key].choices is None:
        return (
            "it changes the prepared data, and a range has no end of it; expected a list, or a range with a "
            "step"
        )
    if config.tune.scheduler == "pbt":
        return "with tune.scheduler=pbt all trials have the same data; write tune.scheduler=asha"
    return None


def _check_seconds(config: Config) -> None:
    """Raises ConfigError for what needs to know the number of clips before training ends."""
    tune, key = config.tune, f"{config.tune.stage}.train.decay_fraction"
    decays = getattr(config, tune.stage).train.decay_fraction > 0
    if key in tune.axes:
        decays = any(tune.space[key].choices is None or value > 0 for value in tune.space[key].choices or [0])
    if decays:
        raise ConfigError(
            f"tune.budget=seconds with {key} above 0: the learning rate cannot fall towards an end that no "
            "one "
            f"knows in clips; write {key}=0, or tune.budget=clips or flops"
        )
    if tune.stage == "stdit" and not shares_mdsa(config):
        changing = next(filter(changes_mdsa, tune.axes))
        raise ConfigError(
            f"tune.budget=seconds with tune.stage=stdit and the axis {changing}: trials would train MDSAs of "
            "their own, whose seconds no one counts; write tune.budget=flops or clips"
        )
