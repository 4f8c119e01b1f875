"""Variants: an axis whose values are named groups of settings, which change together."""

import pytest

from proav.config.reading import config_to_yaml, load_config
from proav.errors import ConfigError
from proav.tune.allowed import data_axes, data_name, shares_mdsa
from proav.tune.axes import grid_points, is_on_axes, settings_of
from proav.tune.room import concurrent_trials
from proav.tune.space import check_sweep, config_at, data_points, make_trial, plan_text, prepared_configs
from tests.tiny import tiny_config

APART = "mdsa.group_cross.enabled: false, mdsa.bi_block.enabled: false"
MODULES = f"tune.axes={{modules: {{variants: {{apart: {{{APART}}}, all: {{}}}}}}, mdsa.width: [16, 32]}}"
BUDGET = ("tune.scheduler=none", "tune.max_clips=8")


def sweep_config(*words):
    return tiny_config(MODULES, *BUDGET, *words)


def test_the_settings_of_a_variant_are_laid_over_the_base_together():
    config = sweep_config()
    points = list(grid_points(config.tune))
    assert points == [
        {"modules": name, "mdsa.width": width} for name in ("apart", "all") for width in (16, 32)
    ]
    apart, whole = config_at(config, points[1]).mdsa, config_at(config, points[2]).mdsa
    assert not apart.group_cross.enabled and not apart.bi_block.enabled and apart.width == 32
    assert whole == config.mdsa
    assert settings_of(config.tune, points[3]) == {"mdsa.width": 32}
    assert is_on_axes(config.tune, points[0]) and not is_on_axes(
        config.tune, {"modules": "none", "mdsa.width": 16}
    )


def test_variants_come_from_files_and_words_alike(tmp_path):
    (tmp_path / "sweep.yaml").write_text(config_to_yaml(sweep_config()))
    assert load_config(str(tmp_path / "sweep.yaml")).tune == sweep_config().tune
    more = load_config(str(tmp_path / "sweep.yaml"), ["tune.axes.modules.variants.deep.mdsa.decoder_depth=2"])
    assert list(more.tune.space["modules"].variants) == ["apart", "all", "deep"]
    assert more.tune.space["modules"].variants["deep"] == {"mdsa.decoder_depth": 2}


def test_a_setting_whose_value_is_a_mapping_stays_whole():
    weights = "{some: {diffusion.task_weights: {joint: 1.0}}, all: {}}"
    config = tiny_config(f"tune.axes={{tasks: {{variants: {weights}}}}}", "tune.stage=stdit", *BUDGET)
    check_sweep(config)
    assert config_at(config, {"tasks": "some"}).diffusion.task_weights == {"joint": 1.0}


def test_other_settings_under_a_name_make_another_trial():
    point = {"modules": "apart", "mdsa.width": 16}
    other = sweep_config("tune.axes.modules.variants.apart.mdsa.spatial.enabled=false")
    ids = {make_trial(config, point, data_hash="a").id for config in (sweep_config(), sweep_config(), other)}
    assert len(ids) == 2


def test_the_plan_names_each_variant_with_its_settings():
    lines = plan_text(sweep_config()).splitlines()
    assert "variant     apart: mdsa.group_cross.enabled=false mdsa.bi_block.enabled=false" in lines
    assert "variant     all: as it is" in lines
    assert sum(line.startswith("trial") for line in lines) == 4


@pytest.mark.parametrize(
    ("axes", "said"),
    [
        ("{mdsa.width: {variants: {a: {}}}}", "mdsa.width is a setting; expected a name of your own"),
        ("{m: {variants: {a: {mdsa.widht: 8}}}}", "tune.axes.m.variants names mdsa.widht, which is no"),
        ("{m: {variants: {a: {seed: 8}}}}", "tune.axes.m.variants names seed, but tune.repeats=N says"),
        ("{m: {variants: {a: {mdsa.width: 16}}}, mdsa.width: [16]}", "both vary mdsa.width"),
        ("{m: {variants: {a: {mdsa.spatial.num_heads: 3}}}}", "m=a: mdsa.spatial.num_heads=3 does not"),
        ("{m: {variants: {}}}", "names no value"),
        ("{m: {variants: {a: 3}}}", "variants"),
        ("{m: {variants: {a: {}}, values: [1]}}", "values and variants; expected one of"),
    ],
)  # fmt: skip
def test_wrong_variants_are_reported(axes, said):
    with pytest.raises(ConfigError) as error:
        check_sweep(tiny_config(f"tune.axes={axes}", *BUDGET))
    assert said in str(error.value)


def test_variants_of_the_data_have_data_of_their_own_and_plain_ones_the_sweeps():
    axes = "tune.axes={mel: {variants: {fine: {mel.min_hz: 20}, deep: {mdsa.decoder_depth: 2}, plain: {}}}}"
    config = tiny_config(axes, *BUDGET, "data.sources=[clips]", "run_dir=/r")
    check_sweep(config)
    assert data_axes(config.tune) == ["mel"]
    names = [data_name(config.tune, point) for point in data_points(config.tune)]
    assert names == ['{"mel.min_hz": 20}', "", ""]
    own, plain = prepared_configs(config, data_points(config.tune)).values()
    assert own.data_folder.startswith("/r/tune/data/") and plain.data_folder == "/r/data"


def test_variants_count_for_what_a_sweep_shares_and_for_the_room_of_its_trials():
    both = ("tune.stage=stdit", "tune.metric=stdit.loss")
    deep = "tune.axes={deep: {variants: {a: {stdit.depth: 2}, b: {stdit.width: 32}}}}"
    assert shares_mdsa(tiny_config(deep, *both, *BUDGET))
    assert not shares_mdsa(tiny_config(deep.replace("stdit.width", "mdsa.width"), *both, *BUDGET))
    wide = "tune.axes={m: {variants: {one: {}, two: {mdsa.train.num_workers: 2}}}}"
    assert concurrent_trials(tiny_config(wide, *BUDGET, "mdsa.train.use_gpu=false"), {"CPU": 4}) == (2, [])
