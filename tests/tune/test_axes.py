"""Points: lists, ranges and steps, axes that exist under a condition, combinations that are left out."""

import math
from collections import Counter

import pytest

from proav.config.reading import config_to_yaml, load_config
from proav.config.tuning import AxisConfig
from proav.errors import ConfigError
from proav.tune.axes import (
    check_conditions,
    clamped,
    describe,
    grid_points,
    is_on_axes,
    num_combinations,
    num_trials,
    planned_points,
    random_points,
    range_words,
    values_of,
)
from tests.tiny import tiny_config

RATE, OPTIMIZER, MOMENTUM = "mdsa.train.learning_rate", "mdsa.train.optimizer", "mdsa.train.muon_momentum"
MUON = f"tune.axes.{OPTIMIZER}=[adamw,muon]"
ONLY_MUON = f"tune.axes.{MOMENTUM}={{values: [0.9,0.95], when: {{{OPTIMIZER}: muon}}}}"


def tune_of(*words):
    return tiny_config(*words, "tune.grace_clips=8", "tune.max_clips=32").tune


def test_a_range_with_steps_is_a_list():
    assert tuple(AxisConfig(integer=(2, 9), step=3).choices) == (2, 5, 8)
    assert tuple(AxisConfig(integer=(2, 4)).choices) == (2, 3, 4)
    assert AxisConfig(uniform=(0.0, 0.3), step=0.1).choices == (0, 0.1, 0.2, 0.3)
    assert AxisConfig(loguniform=(1e-4, 1e-2)).choices is None


def test_values_of_a_range_lie_in_it_and_are_spread_as_it_says():
    tune = tune_of(
        f"tune.axes.{RATE}.loguniform=[1.0e-4,1.0e-2]", "tune.search=random", "tune.num_trials=400"
    )
    rates = [point[RATE] for point in planned_points(tune)]
    assert len(set(rates)) > 390 and min(rates) >= 1e-4 and max(rates) <= 1e-2
    below = sum(rate < 1e-3 for rate in rates)  # the geometric middle
    assert abs(below - 200) < 4 * math.sqrt(400 * 0.25)
    assert all(float(f"{rate:.4g}") == rate for rate in rates)  # what is printed is what was trained


def test_a_uniform_range_is_spread_evenly_and_more_trials_begin_alike():
    words = ("tune.axes.mdsa.loss.pixel.uniform=[1,3]", "tune.search=random")
    few, many = (planned_points(tune_of(*words, f"tune.num_trials={count}")) for count in (20, 400))
    assert many[:20] == few
    counts = Counter(int(2 * (point["mdsa.loss.pixel"] - 1)) for point in many)
    assert all(abs(counts[share] - 100) < 4 * math.sqrt(400 * 3 / 16) for share in range(4))


def test_an_axis_exists_only_under_its_condition():
    tune = tune_of(ONLY_MUON, MUON)  # named before what it depends on
    points = list(grid_points(tune))
    assert len(points) == num_combinations(tune) == 3
    assert [describe(point) for point in points if OPTIMIZER in point and point[OPTIMIZER] == "adamw"] == [
        f"{OPTIMIZER}=adamw"
    ]
    assert all(
        list(point) == [MOMENTUM, OPTIMIZER] for point in points if point[OPTIMIZER] == "muon"
    )  # as in the file
    drawn = list(random_points(tune, seed=0, count=99))
    assert sorted(map(describe, drawn)) == sorted(map(describe, points))


def test_a_setting_keeps_its_own_value_where_its_axis_does_not_exist():
    variants = f"variants: {{low: {{{MOMENTUM}: 0.8}}, high: {{{MOMENTUM}: 0.9}}}}"
    always = f"tune.axes.pace={{{variants}}}"
    only_muon = f"tune.axes.pace={{{variants}, when: {{{OPTIMIZER}: muon}}}}"
    assert values_of(tune_of(MUON, ONLY_MUON), MOMENTUM, 0.7) == [0.9, 0.95, 0.7]
    assert values_of(tune_of(MUON, only_muon), MOMENTUM, 0.7) == [0.8, 0.9, 0.7]
    assert values_of(tune_of(MUON, always), MOMENTUM, 0.7) == [0.8, 0.9]


def test_conditions_may_chain_and_name_several_values_or_a_range():
    tune = tune_of(
        "tune.axes.mdsa.width={integer: [16, 64], step: 16}",
        "tune.axes.mdsa.encoder_depth={values: [1, 2], when: {mdsa.width: {min: 32, max: 48}}}",
        "tune.axes.mdsa.decoder_depth={values: [1, 2], when: {mdsa.encoder_depth: [2, 3]}}",
    )
    words = {describe(point) for point in grid_points(tune)}
    assert len(words) == num_trials(tune) == 2 + 2 * (1 + 2)
    assert "mdsa.width=64" in words and "mdsa.width=32 mdsa.encoder_depth=1" in words


def test_combinations_are_left_out():
    tune = tune_of(
        "tune.axes.mdsa.width=[16,32]",
        "tune.axes.mdsa.encoder_depth=[1,2,3]",
        "tune.leave_out=[{mdsa.width: 32, mdsa.encoder_depth: [2, 3]}]",
    )
    assert num_combinations(tune) == 4 == len(list(random_points(tune, seed=1, count=99)))
    assert {"mdsa.width": 32, "mdsa.encoder_depth": 3} not in list(grid_points(tune))


def test_a_point_of_an_earlier_sweep_is_known_where_it_still_lies_on_the_axes():
    tune = tune_of(ONLY_MUON, MUON, f"tune.axes.{RATE}.loguniform=[1.0e-4,1.0e-2]")
    assert is_on_axes(tune, {OPTIMIZER: "adamw", RATE: 1e-3})
    assert not is_on_axes(tune, {OPTIMIZER: "adamw", MOMENTUM: 0.9, RATE: 1e-3})
    assert not is_on_axes(tune, {OPTIMIZER: "adamw", RATE: 1.0})
    assert not is_on_axes(tune, {OPTIMIZER: "adamw"})


def test_a_long_range_of_integers_is_asked_at_once():
    tune = tune_of("tune.axes.mdsa.loss.adversarial_start_clips={integer: [0, 2000000000], step: 100000}")
    (key,) = tune.axes
    assert num_combinations(tune) == 20_001 and is_on_axes(tune, {key: 1_999_900_000})
    assert not any(is_on_axes(tune, {key: value}) for value in (1, 2_000_100_000, 100_000.0, True, "0"))


def test_what_is_multiplied_comes_back_into_its_range():
    assert (
        clamped(AxisConfig(uniform=(0.0, 1.0)), 1.2) == 1
        and clamped(AxisConfig(integer=(2, 8), step=2), 5.2) == 6
    )
    assert clamped(AxisConfig(loguniform=(1e-4, 1e-2)), 0.00123456) == 0.001235


def test_ranges_and_conditions_survive_a_round_trip(tmp_path):
    config = tiny_config(ONLY_MUON, MUON, f"tune.axes.{RATE}.loguniform=[1.0e-4,1.0e-2]", "tune.num_trials=3")
    path = tmp_path / "sweep.yaml"
    path.write_text(config_to_yaml(config))
    assert load_config(str(path)) == config
    assert load_config(str(path), [f"tune.axes.{RATE}=[0.1]"]).tune.axes[RATE] == (0.1,)
    assert range_words(config.tune.space[RATE]) == "0.0001 to 0.01, loguniform"
    assert range_words(config.tune.space[MOMENTUM]) == f"0.9, 0.95, if {OPTIMIZER}=muon"


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("tune.axes.mdsa.width={integer: [8, 4]}", "integer: [8, 4] is empty; expected [LOW, HIGH]"),
        (
            "tune.axes.mdsa.width={integer: [4, 8], uniform: [4, 8]}",
            "uniform and integer; expected one of values",
        ),
        (
            "tune.axes.mdsa.width={integer: [4, 8], step: 1.5}",
            "step: 1.5 beside integer; expected a whole number",
        ),
        ("tune.axes.mdsa.width={integer: [4, 8], step: 9}", "step: 9 in [4, 8]; expected at most 4"),
        (
            "tune.axes.mdsa.width={integer: [4, 8], stride: 2}",
            "has stride; an axis is a list of values, or has: values",
        ),
        (f"tune.axes.{RATE}={{loguniform: [0, 1]}}", "greater than 0"),
        (f"tune.axes.{RATE}={{loguniform: [0.1, 1], step: 0.1}}", "step beside loguniform"),
        (f"tune.axes.{RATE}={{when: {{mdsa.width: 4}}}}", "no values; expected one of values"),
        ("tune.leave_out=[mdsa.width]", "expected a list of combinations, such as"),
        ("tune.axes.mdsa.width={integer: [0, 3000000]}", "100,000 steps of 1; write a larger step, such as"),
        ("tune.leave_out=[{mdsa.width: {min: a}}]", "expected numbers named min and max"),
        (
            "tune.axes.mdsa.width={values: [4], when: {clip.fps: {min: 1, mx: 2}}}",
            'the condition clip.fps={"min": 1, "mx": 2}: expected numbers named min and max',
        ),
    ],
)
def test_a_wrong_axis_is_reported(word, said):
    with pytest.raises(ConfigError) as error:
        tune_of(word)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            [f"tune.axes.{MOMENTUM}={{values: [0.9], when: {{mdsa.width: 4}}}}"],
            "names mdsa.width, which is no axis",
        ),
        (
            [MUON, f"tune.axes.{MOMENTUM}={{values: [0.9], when: {{{OPTIMIZER}: sgd}}}}"],
            "a value that it never has; its values are: adamw, muon",
        ),
        (
            ["tune.axes.mdsa.width=[16]", "tune.leave_out=[{mdsa.width: 17}]"],
            "tune.leave_out wants mdsa.width=17",
        ),
        (
            [MUON, f"tune.leave_out=[{{{OPTIMIZER}: {{min: 1}}}}]"],
            f'wants {OPTIMIZER}={{"min":1}}, a value that it never has; its values are: adamw, muon',
        ),
        (
            [
                "tune.axes.mdsa.width={values: [16], when: {mdsa.encoder_depth: 1}}",
                "tune.axes.mdsa.encoder_depth={values: [1], when: {mdsa.width: 16}}",
            ],
            "mdsa.width, mdsa.encoder_depth exist only under conditions on each other",
        ),
    ],
)
def test_a_condition_that_cannot_hold_is_reported(words, said):
    with pytest.raises(ConfigError) as error:
        check_conditions(tune_of(*words))
    assert said in str(error.value)


def test_a_range_without_steps_needs_a_number_of_trials():
    with pytest.raises(ConfigError, match="is a range without steps: say how many trials"):
        num_trials(tune_of(f"tune.axes.{RATE}.loguniform=[1.0e-4,1.0e-2]", "tune.search=random"))
