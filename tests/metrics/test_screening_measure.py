"""The twelve-row design of `bench.train.world_screening`, its effects and their margin."""

import numpy as np
import pytest
import yaml

from bench.train.world_claim import ROOT
from bench.train.world_claim import SPEC as CLAIM
from bench.train.world_screening import SPEC, effects, lenth_margin, plackett_burman, settings_of
from proav.config.reading import load_config


def test_columns_are_balanced_and_orthogonal():
    design = plackett_burman()
    assert design.shape == (12, 11) and set(design.ravel()) == {-1, 1}
    assert not design.sum(axis=0).any() and np.array_equal(design.T @ design, 12 * np.eye(11))


def test_effects_of_a_linear_model_are_its_coefficients_times_two():
    design, coefficients = plackett_burman(), np.arange(11) - 4.0
    found = effects(design, 7 + design @ coefficients)
    assert np.allclose(found, 2 * coefficients)


def test_the_margin_of_equal_chance_is_students_and_one_large_effect_does_not_widen_it():
    values = np.array([0.1, -0.1] * 7 + [5.0])
    # The median of the absolute effects is 0.1, also without the large one. Tables give t(0.975, 5) = 2.5706.
    assert lenth_margin(values) == pytest.approx(1.5 * 0.1 * 2.5706, rel=1e-4)
    assert lenth_margin(np.zeros(11)) == 0


def test_every_row_is_a_valid_configuration_and_each_level_is_in_six():
    claim, spec = yaml.safe_load(CLAIM.read_text()), yaml.safe_load(SPEC.read_text())
    rows = [settings_of(spec["factors"], row) for row in plackett_burman()]
    for levels in spec["factors"].values():
        assert [sum(set(level) <= set(row) for row in rows) for level in levels.values()] == [6, 6]
    base, path = [*claim["base"], *spec["base"]], str(ROOT / claim["config"])
    configs = [load_config(path, [*base, *row]) for row in rows]
    assert {config.stdit.train.num_clips for config in configs} == {30_000}
    assert len({config.model_dump_json() for config in configs}) == 12
