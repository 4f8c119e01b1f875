"""From axes to trials: which points a sweep has, and the checked configuration of each; nothing runs here.

A trial's id follows from its point, all settings that bear on its result, and the data: the same question finds the same answer again.
"""

import hashlib
import itertools
import json
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from proav import storage
from proav.config import Config, TuneConfig
from proav.config.reading import config_from_dict, config_to_dict, describe_settings, nearest_key
from proav.costs import costs
from proav.errors import ConfigError

SWEPT = "mdsa."
"""A sweep trains MDSA: other settings would change nothing that it measures."""
OF_THE_MACHINE = (
    "num_clips", "num_workers", "use_gpu", "cpus_per_worker", "loader", "loader_workers", "checkpoint_every_clips", "keep_checkpoints",
    "report_every_clips", "max_failures",
)  # fmt: skip
"""Settings of mdsa.train that say where and how long, not what: a trial may go on under others."""
MAX_CHECKED = 2048
"""Combinations that are all checked before the start; of more, those that are drawn."""
MAX_LISTED = 64
"""Trials that --dry-run lists."""

Point = dict[str, Any]
"""One value an axis: {dotted key: value}."""


@dataclass(frozen=True)
class Trial:
    """One point of a sweep and what it trains."""

    id: str
    point: Point
    config: Config
    """The whole configuration; run_dir is the trial's own folder, data.prepared the sweep's data."""


def check_sweep(config: Config) -> None:
    """Raises ConfigError, before anything starts: no axes, an axis that does not exist or is not of mdsa, a value or a combination that cannot be run."""
    tune = config.tune
    if not tune.axes:
        raise ConfigError(
            "tune.axes is empty: nothing to sweep; write such as tune.axes.mdsa.group_cross.num_groups=[2,4]"
        )
    known = {key for key, _, _ in describe_settings()}
    for key in tune.axes:
        if key not in known:
            near = nearest_key(key)
            raise ConfigError(
                f"tune.axes names {key}, which is no setting"
                + (f"; did you mean {near}?" if near else "; --help lists all keys")
            )
        if not key.startswith(SWEPT) or key == "mdsa.train.num_clips":
            why = (
                "tune.max_clips says how long trials train"
                if key == "mdsa.train.num_clips"
                else "a sweep trains MDSA"
            )
            raise ConfigError(
                f"tune.axes names {key}, but {why}; expected settings that begin with {SWEPT}, such as mdsa.multi_scale.scales"
            )
    total = num_combinations(tune)
    points = (
        list(grid_points(tune))
        if total <= MAX_CHECKED
        else list(random_points(tune, seed=tune.seed, count=tune.num_trials or MAX_CHECKED))
    )
    wrong = []
    for point in points:
        try:
            trial_config = config_at(config, point)
        except ConfigError as error:
            wrong.append(f"{describe(point)}: {error}")
            continue
        if tune.rungs[0] < trial_config.mdsa.train.batch_size:
            raise ConfigError(
                f"the first rung of tune, {tune.rungs[0]} clips, is less than one batch; "
                f"expected at least mdsa.train.batch_size={trial_config.mdsa.train.batch_size}"
            )
    if wrong:
        more = f" (and {len(wrong) - 1} more of the {len(points)} combinations)" if len(wrong) > 1 else ""
        raise ConfigError(f"{wrong[0]}{more}; take that value out of tune.axes, or change what it must fit")


def plan_text(config: Config) -> str:
    """The trials with what each costs, for --dry-run. Raises ConfigError like `check_sweep`."""
    check_sweep(config)
    tune = config.tune
    lines = [
        f"sweep       {num_trials(tune)} of {num_combinations(tune)} combinations, {tune.search}; {tune.scheduler}, compared at "
        f"{', '.join(f'{clips:,}' for clips in tune.rungs)} clips"
    ]
    for number, point in enumerate(
        [] if tune.search == "optuna" else planned_points(tune)[:MAX_LISTED], start=1
    ):
        bill = costs(config_at(config, point))
        flops = (bill.mdsa_encode_flops + bill.mdsa_decode_flops) / 1e9
        lines.append(
            f"trial {number:<5} {describe(point)}: {bill.mdsa_parameters / 1e6:.2f} M parameters, {flops:.2f} GFLOP a reconstruction"
        )
    return "\n".join(lines)


def config_at(config: Config, point: Point) -> Config:
    """The sweep's configuration with the point laid over it, and without the sweep. Raises ConfigError."""
    settings = config_to_dict(config)
    del settings["tune"]
    for key, value in point.items():
        *sections, name = key.split(".")
        section = settings
        for part in sections:
            section = section[part]
        section[name] = value
    return config_from_dict(settings)


def make_trial(config: Config, point: Point, *, data_hash: str) -> Trial:
    """The trial at a point, for prepared data with this hash. Raises ConfigError."""
    resolved = config_at(config, point)
    settings = config_to_dict(resolved)
    train = {key: value for key, value in settings["mdsa"]["train"].items() if key not in OF_THE_MACHINE}
    measured = {key: settings["evaluate"][key] for key in ("split", "max_clips")}
    identity = {
        "point": point, "seed": config.seed, "clip": settings["clip"], "mel": settings["mel"], "mdsa": {**settings["mdsa"], "train": train},
        "evaluate": measured, "data": data_hash,
    }  # fmt: skip
    name = "t" + hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]
    updates = {
        "name": f"{config.name}-{name}",
        "run_dir": storage.join(trials_folder(config), name),
        "stage": "mdsa",
        "data": resolved.data.model_copy(update={"prepared": config.data_folder}),
    }
    return Trial(name, dict(point), resolved.model_copy(update=updates))


def trials_folder(config: Config) -> str:
    return storage.join(config.run_folder, "tune", "trials")


def num_combinations(tune: TuneConfig) -> int:
    return math.prod(len(values) for values in tune.axes.values())


def num_trials(tune: TuneConfig) -> int:
    """How many trials the sweep has: tune.num_trials, but no more than there are combinations."""
    return min(tune.num_trials or num_combinations(tune), num_combinations(tune))


def grid_points(tune: TuneConfig) -> Iterator[Point]:
    """Every combination, the last axis fastest."""
    for values in itertools.product(*tune.axes.values()):
        yield dict(zip(tune.axes, values, strict=True))


def random_points(tune: TuneConfig, *, seed: int, count: int) -> Iterator[Point]:
    """`count` different combinations, in which the values of each axis come about equally often; more of them begin with the same ones."""
    generators = {key: random.Random(f"{seed} {key}") for key in tune.axes}
    decks: dict[str, list] = {key: [] for key in tune.axes}
    seen = set()
    while len(seen) < min(count, num_combinations(tune)):
        for key, deck in decks.items():
            if not deck:  # every value once, in a new order
                deck += range(len(tune.axes[key]))
                generators[key].shuffle(deck)
        places = tuple(deck.pop() for deck in decks.values())
        if places not in seen:
            seen.add(places)
            yield {key: values[place] for (key, values), place in zip(tune.axes.items(), places, strict=True)}


def planned_points(tune: TuneConfig) -> list[Point]:
    """The points of a sweep whose search looks at no results: grid and random."""
    if tune.search == "random":
        return list(random_points(tune, seed=tune.seed, count=num_trials(tune)))
    return list(itertools.islice(grid_points(tune), num_trials(tune)))


def short_names(keys: list[str]) -> dict[str, str]:
    """The shortest endings of dotted keys that tell them apart: {mdsa.multi_scale.scales: scales}."""
    names = {}
    for key in keys:
        parts = key.split(".")
        endings = [".".join(parts[-length:]) for length in range(1, len(parts) + 1)]
        names[key] = next(
            ending
            for ending in endings
            if sum(other == ending or other.endswith("." + ending) for other in keys) == 1
        )
    return names


def value_words(value: Any) -> str:
    """A setting's value as one types it: [1,2,4], true, HW."""
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def describe(point: Point) -> str:
    """`mdsa.multi_scale.scales=[1,2] mdsa.bi_block.block_size=4`: what one types to get these settings."""
    return " ".join(f"{key}={value_words(value)}" for key, value in point.items())
