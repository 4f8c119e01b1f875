"""The trials of a sweep, made from its points, with the checked configuration of each.

A trial's id is a hash of its point, all settings that change its result, and its data. So the same trial is
found again in a later run. Nothing runs here.
"""

import hashlib
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass

from proav import storage
from proav.config import Config, TuneConfig
from proav.config.reading import config_from_dict, config_to_dict
from proav.costs import costs
from proav.diffusion.solvers import num_steps
from proav.diffusion.tasks import check_tasks
from proav.errors import CheckpointError, ConfigError
from proav.runs.checkpoint import Checkpoint
from proav.runs.layout import RunFolder
from proav.train.start import check_start, read_start
from proav.tune.allowed import check_axes, data_axes, data_name, shares_mdsa
from proav.tune.axes import (
    Point,
    check_conditions,
    describe,
    grid_points,
    is_finite,
    num_combinations,
    num_trials,
    planned_points,
    random_points,
    range_words,
    settings_of,
    varied_settings,
)
from proav.tune.budgets import budgets_words, clips_at, mdsa_clips, train_flops, with_length
from proav.tune.metrics import check_metric, is_evaluated, metric_words

OF_THE_MACHINE = (
    "num_clips",
    "max_seconds",
    "num_workers",
    "use_gpu",
    "cpus_per_worker",
    "loader",
    "loader_workers",
    "checkpoint_every_clips",
    "checkpoint_every_minutes",
    "keep_checkpoints",
    "report_every_clips",
    "max_failures",
)
"""Training settings that say where and how long it runs. A trial may be resumed under other values of them.
"""
LATER = {"init_from": None, "position_spacing": [1.0, 1.0]}
"""Settings of models that the first sweeps did not have, with their defaults."""
WITHOUT_NETWORK = (
    "mdsa.linear_planes.",
    "mdsa.plane_size",
    "mdsa.plane_channels.",
    "mdsa.latent_channels",
    "mdsa.audio_",
    "mdsa.loss.",
    "mdsa.train.",
)
"""Prefixes of MDSA's settings that have an effect even if the network never trains."""
ABSENT = object()
"""Used as the value of an axis that does not exist in a point."""
MAX_CHECKED = 2048
"""Up to this many combinations are all checked before the start, and of more at most this many."""
MAX_LISTED = 64
"""At most this many trials are listed by --dry-run."""


@dataclass(frozen=True)
class Trial:
    """One point of a sweep and what it trains."""

    id: str
    point: Point
    config: Config
    """The whole configuration; run_dir is the trial's own folder, data.prepared its data."""
    tune: TuneConfig
    """The sweep's section `tune`, which `config` does not have."""
    yardsticks_in: str
    """The folder in which the sweep keeps fitted yardsticks; all trials read and add to it."""
    lengths: tuple[int | None, ...] = ()
    """Clips at each rung; None for a budget in seconds."""
    mdsa_from: str | None = None
    """The run whose MDSA and latents the trial uses; None: it trains its own MDSA, if it needs one."""


def check_sweep(config: Config) -> None:
    """Raises ConfigError before anything starts if the sweep cannot run.

    Reasons: no axes; an axis that is unknown or must not vary; a value or combination that cannot run, or
    that cannot start from `init_from`; a metric that is not measured.
    """
    tune = config.tune
    check_axes(config)
    check_conditions(tune)
    check_metric(config)
    total = num_combinations(tune)
    if tune.search == "grid" and not is_finite(tune):
        ranges = [key for key, axis in tune.space.items() if axis.choices is None]
        raise ConfigError(
            f"tune.search=grid takes every combination, and {ranges[0]} is a range without steps; "
            "write a list, a step, or tune.search=random"
        )
    if total == 0:
        raise ConfigError("tune.leave_out leaves no combination; take one of its entries out")
    starts = _starts(config)
    points = _points_to_check(tune, total)
    wrong = []
    for point in points:
        try:
            trial_config = config_at(config, point)
            for stage, start in starts.items():
                check_start(trial_config, stage, start)
        except (ConfigError, CheckpointError) as error:
            wrong.append(f"{describe(point)}: {error}")
            continue
        if tune.budget != "seconds":
            _check_first_rung(config, trial_config)
        _check_network_trains(config, trial_config)
    if wrong:
        more = f" (and {len(wrong) - 1} more of the {len(points)} combinations)" if len(wrong) > 1 else ""
        raise ConfigError(
            f"{wrong[0]}{more}; take that value out of tune.axes, name the combination in tune.leave_out, "
            "or change the setting with which it conflicts"
        )


def plan_text(config: Config) -> str:
    """The trials with their costs, for --dry-run. Raises ConfigError like `check_sweep`."""
    check_sweep(config)
    tune, total = config.tune, num_combinations(config.tune)
    seeds = f", {tune.repeats} seeds each" if tune.repeats > 1 else ""
    lines = [
        f"sweep       {num_trials(tune)} of {'infinitely many' if total is None else total} combinations, "
        f"{tune.search}{seeds}; {tune.scheduler}, compared at {budgets_words(tune)}",
        f"judged by   {metric_words(tune)}; a trial trains "
        f"{'MDSA' if tune.stage == 'mdsa' else _both_words(config)}",
    ]
    for key, axis in tune.space.items():
        lines.append(f"axis        {key}: {range_words(axis)}")
        for name, group in (axis.variants or {}).items():
            lines.append(f"variant     {name}: {describe(group) or 'as it is'}")
    if anew := data_axes(tune):
        lines.append(f"data        prepared anew for each value of {', '.join(anew)}")
    for number, point in enumerate(
        [] if tune.search == "optuna" else planned_points(tune)[:MAX_LISTED], start=1
    ):
        lines.append(f"trial {number:<5} {describe(point)}: {_bill_words(config, point)}")
    return "\n".join(lines)


def config_at(config: Config, point: Point) -> Config:
    """The sweep's configuration with the point's settings, without the section `tune`. Raises ConfigError."""
    settings = config_to_dict(config)
    del settings["tune"]
    for key, value in settings_of(config.tune, point).items():
        *sections, name = key.split(".")
        section = settings
        for part in sections:
            section = section[part]
        section[name] = value
    resolved = config_from_dict(settings)
    check_tasks(resolved)
    return resolved


def make_trial(
    config: Config, point: Point, *, data_hash: str, data_folder: str | None = None, member: int | None = None
) -> Trial:
    """The trial at a point. Raises ConfigError.

    config: the sweep's configuration.
    point: the values of the axes.
    data_hash: hash of the manifest of the trial's prepared data.
    data_folder: folder of that data; None: the sweep's own.
    member: number in a population, whose points change.
    """
    resolved, tune = config_at(config, point), config.tune
    name = (
        "t"
        + hashlib.sha256(
            json.dumps(_identity(config, resolved, point, data_hash, member), sort_keys=True).encode()
        ).hexdigest()[:8]
    )
    updates = {
        "name": f"{config.name}-{name}",
        "run_dir": storage.join(trials_folder(config), name),
        "stage": "mdsa" if tune.stage == "mdsa" else None,
        "data": resolved.data.model_copy(update={"prepared": data_folder or config.data_folder}),
    }
    resolved = resolved.model_copy(update=updates)
    if tune.stage == "stdit":
        resolved = with_length(resolved, "mdsa", clips=mdsa_clips(config, resolved))
    lengths = tuple(clips_at(config, resolved, rung) for rung in tune.rungs)
    mdsa_from = config.run_folder if shares_mdsa(config) else None
    return Trial(name, dict(point), resolved, tune, RunFolder(config).evaluation, lengths, mdsa_from)


def trials_folder(config: Config) -> str:
    return storage.join(config.run_folder, "tune", "trials")


def prepared_configs(config: Config, points: Sequence[Point]) -> dict[str, Config]:
    """{`data_name`: configuration} of the data to prepare for these points, in <run_dir>/tune/data.

    The sweep's own data has the name "" and the sweep's own configuration.
    """
    found: dict[str, Config] = {}
    for point in points:
        name = data_name(config.tune, point)
        if name not in found:
            folder = storage.join(
                config.run_folder, "tune", "data", hashlib.sha256(name.encode()).hexdigest()[:8]
            )
            own = config_at(config, point)
            found[name] = own.model_copy(update={"run_dir": folder}) if name else config
    return found


def data_points(tune: TuneConfig) -> list[Point]:
    """Every combination of the axes that change the prepared data; without such axes, one empty point."""
    space = {key: tune.space[key] for key in data_axes(tune)}
    choices = [[*axis.choices, ABSENT] if axis.when else list(axis.choices) for axis in space.values()]
    points = (dict(zip(space, values, strict=True)) for values in itertools.product(*choices))
    return [{key: value for key, value in point.items() if value is not ABSENT} for point in points]


def _points_to_check(tune: TuneConfig, total: int | None) -> list[Point]:
    """All combinations if they are few. Of many those that run, if they are known, else a random choice."""
    if total is not None and total <= MAX_CHECKED:
        return list(grid_points(tune))
    if tune.search == "grid":
        return list(itertools.islice(grid_points(tune), min(num_trials(tune), MAX_CHECKED)))
    most = num_trials(tune) if total is None else tune.num_trials or MAX_CHECKED
    return list(random_points(tune, seed=tune.seed, count=min(most, MAX_CHECKED)))


def _trained_stages(config: Config) -> tuple[str, ...]:
    """The stages that each trial of a sweep trains itself."""
    return (config.tune.stage,) if config.tune.stage == "mdsa" or shares_mdsa(config) else ("mdsa", "stdit")


def _starts(config: Config) -> dict[str, Checkpoint]:
    """{stage: the checkpoint that all trials start from}. Raises ConfigError if one cannot be read."""
    try:
        found = {stage: read_start(config, stage) for stage in _trained_stages(config)}
    except CheckpointError as error:
        raise ConfigError(str(error)) from error
    return {stage: start for stage, start in found.items() if start is not None}


def _check_first_rung(config: Config, trial_config: Config) -> None:
    tune, batch = config.tune, getattr(trial_config, config.tune.stage).train.batch_size
    if tune.rungs[0] < batch:
        raise ConfigError(
            f"the first rung of tune, {tune.rungs[0]} clips, is less than one batch; "
            f"expected at least {tune.stage}.train.batch_size={batch}"
        )


def _check_network_trains(config: Config, trial_config: Config) -> None:
    """Raises ConfigError if an axis changes MDSA's network, but trials end before the network trains."""
    tune, alone_clips = config.tune, trial_config.mdsa.alone_clips
    of_network = [
        key
        for key in varied_settings(tune)
        if key.startswith("mdsa.") and not key.startswith(WITHOUT_NETWORK)
    ]
    if not of_network or not alone_clips:
        return
    if tune.stage == "mdsa":
        clips = clips_at(config, trial_config, tune.rungs[-1])
    else:
        clips = mdsa_clips(config, trial_config)
    if clips is not None and alone_clips >= clips:
        raise ConfigError(
            f"{of_network[0]} is an axis, and mdsa.linear_planes.alone_clips={alone_clips}: in trials "
            f"of {clips:,} clips MDSA's network would never train; write mdsa.linear_planes.alone_clips=0"
        )


def _identity(config: Config, resolved: Config, point: Point, data_hash: str, member: int | None) -> dict:
    """Everything that changes a trial's result. Features that the first sweeps did not have are included only
    if used, so that old ids stay valid.
    """
    settings, tune = config_to_dict(resolved), config.tune

    def trained(stage: str) -> dict:
        section = {key: value for key, value in settings[stage].items() if value != LATER.get(key, ...)}
        train = {key: value for key, value in section["train"].items() if key not in OF_THE_MACHINE}
        if stage in _trained_stages(config) and (start := read_start(resolved, stage)):
            section["init_from"] = start.hash  # what the path holds may change
        return {**section, "train": train}

    identity = {
        "point": point,
        "seed": config.seed,
        "clip": settings["clip"],
        "mel": settings["mel"],
        "mdsa": trained("mdsa"),
        "evaluate": {key: settings["evaluate"][key] for key in ("split", "max_clips")},
        "data": data_hash,
    }
    if tune.budget == "seconds":
        identity["budget"] = "seconds"
    elif tune.budget == "flops":  # the sweep's own costs decide the length of a rung
        identity["budget"] = ["flops", train_flops(config, tune.stage, tune.max_clips) / tune.max_clips]
    if is_evaluated(tune):
        measured = ("protocol", "weights", "num_resamples")
        identity["measured"] = {key: settings["evaluate"][key] for key in measured}
    if tune.stage == "stdit":
        made = {
            key: value
            for key, value in settings["generate"].items()
            if key not in ("use_gpu", "num_workers", "num_writers", "batch_size")
        }
        for later in ("audio_guidance_scale", "prompts"):
            if not made[later] and made[later] != 0:
                del made[later]
        made["steps"] = num_steps(made["steps"], config.diffusion.objective)
        identity |= {"stdit": trained("stdit"), "diffusion": settings["diffusion"], "generate": made}
        precision = settings["encode"]["precision"]
        identity |= {"encode": [settings["encode"][key] for key in ("stride_frames", "flips")]}
        identity["encode"] += [precision] if precision != "fp32" else []  # sweeps were made before it existed
        identity |= {"mdsa_clips": mdsa_clips(config, resolved)}
    if member is not None:
        identity |= {
            "member": member,
            "population": [tune.num_trials, list(tune.rungs), tune.seed, tune.exploit_fraction],
        }
    return identity


def _bill_words(config: Config, point: Point) -> str:
    resolved, tune = config_at(config, point), config.tune
    bill = costs(resolved)
    if tune.stage == "mdsa":
        flops = (bill.mdsa_encode_flops + bill.mdsa_decode_flops) / 1e9
        words = f"{bill.mdsa_parameters / 1e6:.2f} M parameters, {flops:.2f} GFLOP a reconstruction"
        memory = bill.mdsa_memory
    else:
        words = (
            f"{bill.stdit_parameters / 1e6:.2f} M parameters, {bill.sample_flops / 1e9:.2f} GFLOP a sample"
        )
        memory = bill.stdit_memory
    words += f", about {memory.total / 2**20:.0f} MiB a worker"
    if tune.budget == "flops":
        words += f", {clips_at(config, resolved, tune.rungs[-1]):,} clips"
    return words


def _both_words(config: Config) -> str:
    once = "once for all trials" if shares_mdsa(config) else "of its own"
    return f"ST-DiT and makes {config.generate.num_samples} clips; MDSA and latents: {once}"
