"""Points of a sweep: one value for each axis, drawn from lists and ranges, under conditions.

A point names only the axes that exist in it. If the condition of an axis is not met, the point has no value
for it. Nothing runs here.
"""

import itertools
import json
import math
import random
from collections.abc import Iterator
from typing import Any

from proav.config import TuneConfig
from proav.config.tuning import AxisConfig, is_number
from proav.errors import ConfigError

Point = dict[str, Any]
"""A value for each axis that exists: {dotted key: value}."""
MAX_COUNTED = 100_000
"""At most this many combinations are listed to count the trials among them."""
MAX_DRAWS = 1000
"""After this many draws in a row without a new point, a sweep is taken to have no more points."""
RANGE_DIGITS = 4
"""Significant digits of a value drawn from a range: enough to choose, few enough to read and to type."""


def check_conditions(tune: TuneConfig) -> None:
    """Raises ConfigError if a condition names no axis, or if axes depend on each other."""
    space = tune.space
    named = [(f"tune.axes.{key}.when", axis.when) for key, axis in space.items()]
    named += [("tune.leave_out", entry) for entry in tune.leave_out]
    for where, conditions in named:
        for key, wanted in conditions.items():
            if key not in space:
                raise ConfigError(
                    f"{where} names {key}, which is no axis; expected one of: {', '.join(space)}"
                )
            choices = space[key].choices
            if choices is not None and not any(fits(value, wanted) for value in choices):
                raise ConfigError(
                    f"{where} wants {key}={value_words(wanted)}, a value that it never has; "
                    f"its values are: {', '.join(map(value_words, choices[:8]))}"
                )
    in_order(tune)


def in_order(tune: TuneConfig) -> list[str]:
    """The axes, each after those that its condition names. Raises ConfigError for a cycle."""
    space, order = tune.space, []
    while len(order) < len(space):
        ready = [
            key for key in space if key not in order and all(other in order for other in space[key].when)
        ]
        if not ready:
            stuck = [key for key in space if key not in order]
            raise ConfigError(
                f"tune.axes: {', '.join(stuck)} exist only under conditions on each other; take one out"
            )
        order += ready
    return order


def fits(value: Any, wanted: Any) -> bool:
    """Whether a value meets a condition: it is that value, in that list, or between min and max."""
    if isinstance(wanted, dict):
        return is_number(value) and wanted.get("min", -math.inf) <= value <= wanted.get("max", math.inf)
    if json.dumps(value) == json.dumps(wanted):
        return True
    return isinstance(wanted, list | tuple) and any(json.dumps(value) == json.dumps(each) for each in wanted)


def is_active(axis: AxisConfig, point: Point) -> bool:
    """Whether an axis exists, given the values that the point has so far."""
    return all(key in point and fits(point[key], wanted) for key, wanted in axis.when.items())


def settings_of(tune: TuneConfig, point: Point) -> dict[str, Any]:
    """{dotted key: value} of all settings of a point: those of its axes and of its variants."""
    found: dict[str, Any] = {}
    for key, value in point.items():
        variants = tune.space[key].variants
        found |= {key: value} if variants is None else variants[value]
    return found


def varied_by(key: str, axis: AxisConfig) -> list[str]:
    """The settings that an axis varies: the one it names, or those of all its variants."""
    if axis.variants is None:
        return [key]
    return list(dict.fromkeys(setting for group in axis.variants.values() for setting in group))


def varied_settings(tune: TuneConfig) -> dict[str, str]:
    """{setting: its axis}, in the order of the axes. Raises ConfigError if two axes vary one setting."""
    found: dict[str, str] = {}
    for key, axis in tune.space.items():
        for setting in varied_by(key, axis):
            if setting in found:
                raise ConfigError(
                    f"tune.axes.{found[setting]} and tune.axes.{key} both vary {setting}; name it in one of "
                    "them"
                )
            found[setting] = key
    return found


def values_of(tune: TuneConfig, setting: str, otherwise: Any) -> list[Any] | None:
    """Every value that trials may have of a setting; None for a range without steps.

    otherwise: its value if no axis sets it.
    """
    axis = tune.space.get(varied_settings(tune).get(setting, ""))
    if axis is None:
        return [otherwise]
    if axis.choices is None:
        return None
    if axis.variants is None:
        return [*axis.choices, *([otherwise] if axis.when else [])]
    values = [group.get(setting, otherwise) for group in axis.variants.values()]
    values += [otherwise] if axis.when else []
    return list({json.dumps(value): value for value in values}.values())


def is_left_out(tune: TuneConfig, point: Point) -> bool:
    return any(
        all(key in point and fits(point[key], wanted) for key, wanted in entry.items())
        for entry in tune.leave_out
    )


def is_on_axes(tune: TuneConfig, point: Point) -> bool:
    """Whether the sweep, as it is now, could have this point."""
    seen: Point = {}
    for key in in_order(tune):
        axis = tune.space[key]
        if is_active(axis, seen) != (key in point):
            return False
        if key in point:
            if not _is_among(axis, point[key]):
                return False
            seen[key] = point[key]
    return len(seen) == len(point) and not is_left_out(tune, point)


def is_finite(tune: TuneConfig) -> bool:
    """Whether every axis is a list or has steps."""
    return all(axis.choices is not None for axis in tune.space.values())


def num_combinations(tune: TuneConfig) -> int | None:
    """How many different points there are; None for infinitely many. An upper bound if there are more than
    MAX_COUNTED combinations.
    """
    if not is_finite(tune):
        return None
    product = math.prod(len(axis.choices) for axis in tune.space.values())
    if not tune.leave_out and not any(axis.when for axis in tune.space.values()) or product > MAX_COUNTED:
        return product
    return sum(1 for _ in grid_points(tune))


def num_trials(tune: TuneConfig) -> int:
    """How many trials the sweep has: tune.num_trials, but no more than there are combinations."""
    combinations = num_combinations(tune)
    if combinations is None:
        if tune.num_trials is None:
            ranges = [key for key, axis in tune.space.items() if axis.choices is None]
            raise ConfigError(
                f"{ranges[0]} is a range without steps: say how many trials, such as tune.num_trials=16"
            )
        return tune.num_trials
    if tune.scheduler == "pbt":  # members of a population may begin alike
        return tune.num_trials
    return min(tune.num_trials or combinations, combinations)


def grid_points(tune: TuneConfig) -> Iterator[Point]:
    """Every combination once, the last axis fastest."""
    order = in_order(tune)

    def below(point: Point, keys: list[str]) -> Iterator[Point]:
        if not keys:
            if not is_left_out(tune, point):
                yield _in_file_order(tune, point)
            return
        axis = tune.space[keys[0]]
        for value in axis.choices if is_active(axis, point) else [None]:
            yield from below(point | {keys[0]: value} if is_active(axis, point) else point, keys[1:])

    yield from below({}, order)


def random_points(tune: TuneConfig, *, seed: int, count: int) -> Iterator[Point]:
    """`count` different points, or all if there are fewer. The values of each list are about equally
    frequent. A larger `count` gives the same first points.
    """
    order, space = in_order(tune), tune.space
    generators = {key: random.Random(f"{seed} {key}") for key in order}
    decks: dict[str, list] = {key: [] for key in order}
    most = num_combinations(tune)
    wanted, seen, in_vain = count if most is None else min(count, most), set(), 0

    def is_new(point: Point) -> bool:
        name = json.dumps(point, sort_keys=True)
        if name in seen or is_left_out(tune, point):
            return False
        seen.add(name)
        return True

    while len(seen) < wanted and in_vain < MAX_DRAWS:
        point: Point = {}
        for key in order:
            value = _draw(space[key], generators[key], decks[key])
            if is_active(space[key], point):
                point[key] = value
        in_vain = 0 if is_new(point) else in_vain + 1
        if not in_vain:
            yield _in_file_order(tune, point)
    if (
        len(seen) < wanted and most is not None
    ):  # hardly any are left: random draws would take long to find them
        for point in grid_points(tune):
            if len(seen) < wanted and is_new(point):
                yield point


def planned_points(tune: TuneConfig) -> list[Point]:
    """The points of a grid or random search, which uses no results; for pbt, the members' first points."""
    if tune.search == "random":
        points = list(random_points(tune, seed=tune.seed, count=num_trials(tune)))
        if tune.scheduler == "pbt":  # in a small space several members start at one point; later they differ
            points = list(itertools.islice(itertools.cycle(points), num_trials(tune)))
        return points
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
    """A setting's value as the command line takes it: [1,2,4], true, HW."""
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def point_words(point: Point, key: str) -> str:
    """The value in a table's cell: a dash for an axis that does not exist in the point."""
    return value_words(point[key]) if key in point else "-"


def describe(point: Point) -> str:
    """The settings as the command line takes them: `mdsa.multi_scale.scales=[1,2]
    mdsa.bi_block.block_size=4`.
    """
    return " ".join(f"{key}={value_words(value)}" for key, value in point.items())


def range_words(axis: AxisConfig) -> str:
    """An axis in a few words: its values, or its range with the kind."""
    if axis.listed is not None:
        words = ", ".join(map(value_words, axis.listed))
    else:
        kind = next(name for name in ("uniform", "loguniform", "integer") if getattr(axis, name) is not None)
        low, high = getattr(axis, kind)
        words = f"{low:g} to {high:g}, {kind}" + (f" in steps of {axis.step:g}" if axis.step else "")
    if axis.when:
        words += f", if {' and '.join(f'{key}={value_words(wanted)}' for key, wanted in axis.when.items())}"
    return words


def rounded(value: float) -> float:
    """A number of a range, rounded to RANGE_DIGITS digits."""
    return float(f"{value:.{RANGE_DIGITS}g}")


def clamped(axis: AxisConfig, value: Any) -> Any:
    """The nearest value on the axis; population-based training may multiply a value out of the range."""
    if axis.listed is not None:
        return value
    if axis.choices is not None:
        return min(axis.choices, key=lambda choice: abs(choice - value))
    low, high = axis.uniform or axis.loguniform
    return min(max(rounded(value), low), high)


def _draw(axis: AxisConfig, generator: random.Random, deck: list) -> Any:
    """A value. A list or a range with steps gives each of its values once before it repeats one."""
    choices = axis.choices
    if choices is not None:
        if not deck:
            deck += range(len(choices))
            generator.shuffle(deck)
        return choices[deck.pop()]
    low, high = axis.uniform or axis.loguniform
    share = generator.random()
    value = low + share * (high - low) if axis.uniform else low * (high / low) ** share
    return min(max(rounded(value), low), high)


def _is_among(axis: AxisConfig, value: Any) -> bool:
    choices = axis.choices
    if isinstance(choices, range):
        return type(value) is int and value in choices
    if choices is not None:
        return any(json.dumps(choice) == json.dumps(value) for choice in choices)
    low, high = axis.uniform or axis.loguniform
    return isinstance(value, int | float) and low <= value <= high


def _in_file_order(tune: TuneConfig, point: Point) -> Point:
    return {key: point[key] for key in tune.axes if key in point}
