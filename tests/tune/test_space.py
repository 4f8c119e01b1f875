"""Which trials a sweep has, before anything runs: points, ids, and what is refused."""

import contextlib
from collections import Counter
from pathlib import Path

import pytest

from proav.config.reading import config_to_yaml, load_config
from proav.errors import ConfigError
from proav.tune.axes import describe, grid_points, num_trials, planned_points, random_points, short_names
from proav.tune.space import _identity, check_sweep, config_at, make_trial, plan_text
from tests.tiny import save_tiny_mdsa, tiny_config

SCALES, GROUPS, BLOCK = "mdsa.multi_scale.scales", "mdsa.group_cross.num_groups", "mdsa.bi_block.block_size"
AXES = (
    f"tune.axes.{SCALES}=[[1],[1,2],[1,2,4]]",
    f"tune.axes.{GROUPS}=[2,4]",
    "tune.grace_clips=8",
    "tune.max_clips=32",
)


def sweep_config(*words):
    return tiny_config(*AXES, *words)


def test_a_grid_has_every_combination_once():
    points = list(grid_points(sweep_config().tune))
    assert len(points) == 6 == num_trials(sweep_config().tune)
    assert points[0] == {SCALES: [1], GROUPS: 2} and points[1] == {SCALES: [1], GROUPS: 4}
    assert len({describe(point) for point in points}) == 6
    assert planned_points(sweep_config("tune.num_trials=4").tune) == points[:4]


def test_random_points_differ_are_balanced_and_begin_alike():
    tune = sweep_config(
        f"tune.axes.{SCALES}=[[1],[1,2],[1,2,4],[1,4]]", f"tune.axes.{BLOCK}=[1,2,4]", "tune.search=random"
    ).tune
    eight, twelve = (list(random_points(tune, seed=3, count=count)) for count in (8, 12))
    assert eight == twelve[:8] and len({describe(point) for point in twelve}) == 12
    counts = Counter(str(point[SCALES]) for point in twelve)
    assert (
        len(counts) == 4 and min(counts.values()) >= 2
    )  # 3 each, but for repeated combinations, which are drawn anew
    assert eight != list(random_points(tune, seed=4, count=8))
    assert len(list(random_points(tune, seed=3, count=999))) == 24


def test_a_point_becomes_a_whole_configuration_without_the_sweep():
    config = sweep_config()
    there = config_at(config, {SCALES: [1, 4], GROUPS: 4})
    assert there.mdsa.multi_scale.scales == (1, 4) and there.mdsa.group_cross.num_groups == 4
    assert not there.tune.axes and there.mdsa.width == config.mdsa.width


def test_an_id_follows_from_the_question_alone():
    point = {SCALES: [1, 2], GROUPS: 2}

    def name(*words, data_hash="abc", at=point):
        return make_trial(sweep_config(*words), at, data_hash=data_hash).id

    same = name()
    for words in (
        ["run_dir=elsewhere"],
        ["tune.max_clips=64"],
        ["mdsa.train.cpus_per_worker=2"],
        ["mdsa.train.num_clips=99"],
        ["generate.steps=3"],
    ):
        assert name(*words) == same, words
    others = [
        name("seed=1"),
        name("mdsa.train.learning_rate=0.1"),
        name("evaluate.max_clips=2"),
        name(data_hash="xyz"),
        name(at={SCALES: [1], GROUPS: 2}),
    ]
    assert len({same, *others}) == 6


def test_ids_of_the_first_sweeps_stay_valid():
    """Ids as they were before later settings existed. With other ids a sweep would train its trials anew."""
    ids = [
        make_trial(sweep_config(*words), {SCALES: [1, 2], GROUPS: 2}, data_hash="abc").id
        for words in ([], ["tune.stage=stdit"])
    ]
    assert ids == ["tfda714f1", "tbb7d3fba"]


def test_settings_that_came_later_are_in_an_id_only_if_they_are_used():
    def generate(*words):
        config = sweep_config("tune.stage=stdit", *words)
        point = {SCALES: [1, 2], GROUPS: 2}
        return _identity(config, config_at(config, point), point, "abc", None)["generate"]

    assert not generate().keys() & {"audio_guidance_scale", "prompts"}
    assert generate("generate.audio_guidance_scale=0")["audio_guidance_scale"] == 0


def test_a_trial_that_starts_from_another_model_is_another_when_that_model_changes(tmp_path):
    whole, ids = {SCALES: [1, 2, 4], GROUPS: 2}, []
    for seed in (1, 2, 1):
        start = save_tiny_mdsa(f"{tmp_path}/start", tiny_config(), seed)
        config = sweep_config(f"mdsa.init_from={start}", f"tune.axes.{SCALES}=[[1,2,4]]")
        check_sweep(config)
        ids.append(make_trial(config, whole, data_hash="abc").id)
    assert ids[0] == ids[2] != ids[1]


@pytest.mark.parametrize(("start", "said"), [("none", "none"), ("start", f"was trained with {SCALES}")])
def test_a_sweep_whose_trials_cannot_start_is_refused_before_it_starts(start, said, tmp_path):
    save_tiny_mdsa(f"{tmp_path}/start", tiny_config())
    with pytest.raises(ConfigError, match=said):
        check_sweep(sweep_config(f"mdsa.init_from={tmp_path}/{start}"))


def test_trials_have_folders_of_their_own_and_the_data_of_the_run():
    trial = make_trial(sweep_config("run_dir=/r"), {SCALES: [1], GROUPS: 2}, data_hash="abc")
    assert (
        trial.config.run_folder == f"/r/tune/trials/{trial.id}"
        and trial.config.data_folder == "/r/data"
        and trial.config.stage == "mdsa"
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tune.axes={}"], "nothing to sweep"),
        (["tune.axes.mdsa.multi_scale.scale=[1,2]"], "did you mean mdsa.multi_scale.scales?"),
        (["tune.axes.mdsa.multi_scale=[1,2]"], "which is no setting"),
        (["tune.axes.stdit.depth=[1,2]"], "expected settings that begin with mdsa."),
        (["tune.axes.mdsa.train.num_clips=[10,20]"], "tune.max_clips says how long"),
        (
            [f"tune.axes.{GROUPS}=[2,3]"],
            f"{SCALES}=[1] {GROUPS}=3: mdsa.group_cross.num_groups=3 does not divide clip.num_frames=4 "
            "(and 2 more",
        ),
        ([f"tune.axes.{SCALES}=[[1],two]"], f"{SCALES}=two"),
        (
            ["tune.axes.mdsa.train.batch_size=[4,16]"],
            "less than one batch; expected at least mdsa.train.batch_size=16",
        ),
    ],
)
def test_a_sweep_that_cannot_be_run_is_refused_before_it_starts(words, said):
    with pytest.raises(ConfigError) as error:
        check_sweep(sweep_config(*words))
    assert said in str(error.value)


@pytest.mark.parametrize(("groups", "is_wrong"), [([2, 3], False), ([3, 2], True)])
def test_of_a_large_grid_the_points_that_run_are_checked(groups, is_wrong):
    """Three groups do not divide four frames; the first two of 2,400 points have the first number."""
    rates = [n * 1e-6 for n in range(1, 1201)]
    words = f"tune.axes={{{GROUPS}: {groups}, mdsa.train.learning_rate: {rates}}}", "tune.num_trials=2"
    config = tiny_config("tune.search=grid", "tune.grace_clips=8", "tune.max_clips=32", *words)
    with pytest.raises(ConfigError, match="does not divide") if is_wrong else contextlib.nullcontext():
        check_sweep(config)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("tune.axes.mdsa.width=16", "is one value; expected a list"),
        ("tune.axes.mdsa.width=[]", "names no value"),
        ("tune.axes.mdsa.width=[16,16]", "names a value twice"),
        ("tune.grace_clips=64", "tune.grace_clips=64 is above tune.max_clips=32"),
        ("tune.search=bayes", "'grid', 'random' or 'optuna'"),
    ],
)
def test_a_wrong_setting_of_the_sweep_is_reported(word, said):
    with pytest.raises(ConfigError) as error:
        sweep_config(word)
    assert said in str(error.value)


def test_axes_survive_a_round_trip_and_give_way_to_overrides(tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_text(config_to_yaml(sweep_config()))
    assert load_config(str(path)) == sweep_config()
    assert load_config(str(path), [f"tune.axes.{GROUPS}=[1]"]).tune.axes == {
        SCALES: ([1], [1, 2], [1, 2, 4]),
        GROUPS: (1,),
    }


def test_rungs_grow_up_to_the_whole_budget():
    assert sweep_config("tune.reduction_factor=3").tune.rungs == (8, 24, 32)
    assert sweep_config("tune.scheduler=none").tune.rungs == (32,)


def test_the_plan_lists_the_trials_with_their_costs():
    text = plan_text(sweep_config("tune.num_trials=2"))
    assert "2 of 6 combinations" in text and text.count("M parameters") == 2 and "8, 16, 32 clips" in text
    assert text.count(" a reconstruction, about ") == 2


def test_short_names_tell_axes_apart():
    assert short_names([SCALES, GROUPS]) == {SCALES: "scales", GROUPS: "num_groups"}
    both = short_names(["mdsa.num_heads", "mdsa.spatial.num_heads"])
    assert both == {"mdsa.num_heads": "mdsa.num_heads", "mdsa.spatial.num_heads": "spatial.num_heads"}


SHIPPED = sorted((Path(__file__).parents[2] / "configs" / "sweeps").glob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_the_shipped_sweeps_can_be_planned(path):
    assert "judged by" in plan_text(load_config(str(path)))


@pytest.mark.parametrize(
    ("words", "clips"),
    [((), 32), (("tune.stage=stdit", "tune.metric=stdit.loss", "mdsa.train.num_clips=48"), 48)],
)
def test_trials_whose_network_would_never_train_are_refused(words, clips):
    alone = "mdsa.linear_planes.alone_clips"
    check_sweep(sweep_config(*words, f"{alone}={clips - 1}"))
    with pytest.raises(ConfigError, match=f"trials of {clips} clips MDSA's network would never .* {alone}=0"):
        check_sweep(sweep_config(*words, f"{alone}={clips}"))
    of_both = (
        "tune.axes={mdsa.train.learning_rate: [0.001, 0.002], mdsa.linear_planes.overlap: [true, false]}"
    )
    check_sweep(tiny_config(of_both, *AXES[2:], *words, f"{alone}={clips}"))
