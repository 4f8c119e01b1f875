"""The design of `bench.train.world_screening`, its effects and their margin; equal budgets of variants."""

import numpy as np
import pytest

from bench.train import world_claim
from bench.train.world_claim import ROOT, read_spec
from bench.train.world_screening import SPEC, effects, lenth_margin, plackett_burman, settings_of
from proav.config.reading import load_config
from proav.tune.budgets import train_flops


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
    spec = read_spec(SPEC)
    rows = [settings_of(spec["factors"], row) for row in plackett_burman()]
    for levels in spec["factors"].values():
        assert [sum(set(level) <= set(row) for row in rows) for level in levels.values()] == [6, 6]
    configs = [load_config(str(ROOT / spec["config"]), [*spec["base"], *row]) for row in rows]
    assert {config.stdit.train.num_clips for config in configs} == {30_000}
    assert len({config.model_dump_json() for config in configs}) == 12


def test_variants_with_equal_flops_differ_by_less_than_a_batch():
    spec = read_spec(world_claim.SPEC.with_name("world_layouts.yaml"))
    assert spec["base"][:2] == read_spec(world_claim.SPEC)["base"][:2]  # `from` adds that file's base
    settings = {variant: world_claim.settings_of(spec, variant) for variant in spec["variants"]}
    configs = {name: load_config(str(ROOT / spec["config"]), words) for name, words in settings.items()}
    first = configs["cube"]
    assert (first.mdsa.train.num_clips, first.stdit.train.num_clips) == (2400, 30_000)
    for config in configs.values():
        for stage in ("mdsa", "stdit"):
            train, asked = getattr(config, stage).train, getattr(first, stage).train.num_clips
            spent, asked = train_flops(config, stage, train.num_clips), train_flops(first, stage, asked)
            batch = train_flops(config, stage, train.num_clips + train.batch_size) - spent
            assert abs(spent - asked) <= batch
    assert configs["uneven planes"].stdit.train.num_clips > 2.5 * first.stdit.train.num_clips
    assert configs["planes of PVDM"].mdsa.train.num_clips < 0.6 * first.mdsa.train.num_clips
