"""Which settings may be axes of which sweep, why others may not, and the data that some need."""

import pytest

from proav.errors import ConfigError
from proav.tune.allowed import changes_data, check_axes, data_name, shares_mdsa
from proav.tune.space import check_sweep, data_points, make_trial, prepared_configs
from tests.tiny import tiny_config

BOTH, SOURCES = "tune.stage=stdit", "data.sources=[clips]"
SHORT = ("tune.grace_clips=8", "tune.max_clips=16")


def sweep_config(*words):
    return tiny_config(*SHORT, *words)


@pytest.mark.parametrize(
    "words",
    [
        ["tune.axes.mdsa.loss.perceptual=[0,1]"],
        ["tune.axes.mdsa.train.optimizer=[adamw,muon]"],
        ["tune.axes.clip.num_frames=[2,4]"],
        ["tune.axes.mel.griffin_lim_iterations=[1,2]"],
        ["tune.axes.mel.min_hz=[20,50]", SOURCES],
        ["tune.axes.data.jpeg_quality=[80,95]", SOURCES],
        ["tune.axes.filters.min_rms_db=[-60,-50]", SOURCES],
        ["tune.axes.stdit.depth=[1,2]", BOTH],
        ["tune.axes.diffusion.time_shift=[1,3]", BOTH],
        ["tune.axes.generate.guidance_scale=[1,2]", BOTH],
        ["tune.axes.encode.stride_frames=[1,2]", BOTH],
        ["tune.axes.mdsa.train.num_clips=[8,16]", BOTH],
    ],
)
def test_any_setting_that_changes_the_result_may_vary(words):
    check_axes(sweep_config(*words))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tune.axes.seed=[0,1]"], "names seed, but tune.repeats=N says how many seeds a trial has"),
        (["tune.axes.evaluate.max_clips=[2,4]"], "all trials are measured alike"),
        (["tune.axes.tune.max_clips=[2,4]"], "a sweep cannot be a trial of another sweep"),
        (["tune.axes.run_dir=[a,b]"], "a trial has a folder of its own"),
        (["tune.axes.stdit.train.num_clips=[8,16]", BOTH], "tune.max_clips says how long"),
        (["tune.axes.diffusion.time_shift=[1,3]"], "or write tune.stage=stdit"),
        (["tune.axes.data.sources=[[a],[b]]", SOURCES], "it says where data comes from"),
        (
            ["tune.axes.mel.min_hz=[20,50]", "data.prepared=runs/other/data"],
            "data.prepared=runs/other/data is prepared already; leave",
        ),
        (["tune.axes.mel.min_hz=[20,50]"], "there is nothing to prepare; name data.sources"),
        (["tune.axes.mel.min_hz={uniform: [20, 50]}", SOURCES], "expected a list, or a range with a step"),
        (
            ["tune.axes.mdsa.width=[16,32]", "tune.scheduler=pbt", "tune.search=random", "tune.num_trials=2"],
            "weights pass from trial to trial, and it changes what they mean; expected such as "
            "mdsa.train.learning_rate",
        ),
        (
            [
                "tune.axes.mdsa.train.optimizer=[adamw,muon]",
                "tune.scheduler=pbt",
                "tune.search=random",
                "tune.num_trials=2",
            ],
            "the optimizer's state passes from trial to trial",
        ),
        (
            ["tune.axes.mdsa.train.decay_fraction=[0,0.5]", "tune.budget=seconds", "tune.max_seconds=9"],
            "the learning rate cannot fall towards an end that no one knows",
        ),
        (
            ["tune.axes.mdsa.width=[16,32]", BOTH, "tune.budget=seconds", "tune.max_seconds=9"],
            "and the axis mdsa.width: trials would train MDSAs of their own",
        ),
    ],
)
def test_what_may_not_vary_is_refused_with_the_reason(words, said):
    with pytest.raises(ConfigError) as error:
        check_axes(sweep_config(*words))
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["tune.search=grid", "tune.num_trials=4"],
            "tune.search=grid takes every combination, and mdsa.train.learning_rate is a range",
        ),
        (["tune.scheduler=pbt", "tune.num_trials=4"], "write tune.search=random, or tune.scheduler=asha"),
        (
            ["tune.scheduler=pbt", "tune.search=random"],
            "it is the size of the population; expected at least 2",
        ),
        (
            ["tune.scheduler=pbt", "tune.search=random", "tune.num_trials=4", "tune.repeats=2"],
            "write tune.repeats=1",
        ),
    ],
)
def test_searches_and_schedulers_that_do_not_fit_the_axes_are_refused(words, said):
    with pytest.raises(ConfigError) as error:
        check_sweep(sweep_config("tune.axes.mdsa.train.learning_rate.loguniform=[1.0e-4,1.0e-2]", *words))
    assert said in str(error.value)


def test_each_value_of_an_axis_of_the_data_has_data_of_its_own():
    config = sweep_config(
        "tune.axes.mel.min_hz=[20,50]", "tune.axes.mdsa.width=[16,32]", SOURCES, "run_dir=/r"
    )
    assert (
        changes_data("mel.min_hz") and not changes_data("clip.num_frames") and not changes_data("mdsa.width")
    )
    points = data_points(config.tune)
    assert points == [{"mel.min_hz": 20}, {"mel.min_hz": 50}]
    configs = prepared_configs(config, points)
    assert [own.mel.min_hz for own in configs.values()] == [20, 50]
    assert len({own.data_folder for own in configs.values()}) == 2
    assert all(own.data_folder.startswith("/r/tune/data/") for own in configs.values())
    point = {"mel.min_hz": 50, "mdsa.width": 32}
    folder = configs[data_name(config.tune, point)].data_folder
    trial = make_trial(config, point, data_hash="a", data_folder=folder)
    assert trial.config.data_folder == folder and trial.config.mel.min_hz == 50
    assert prepared_configs(sweep_config("tune.axes.mdsa.width=[16,32]"), [{}])[
        ""
    ].tune.axes  # the sweep's own


def test_mdsa_is_made_once_where_no_axis_changes_it():
    assert shares_mdsa(sweep_config("tune.axes.stdit.depth=[1,2]", BOTH))
    for axis in (
        "mdsa.width=[16,32]",
        "diffusion.latent_scale=[plane,channel]",
        "encode.stride_frames=[1,2]",
    ):
        assert not shares_mdsa(sweep_config(f"tune.axes.{axis}", "tune.axes.stdit.depth=[1,2]", BOTH))
    assert not shares_mdsa(sweep_config("tune.axes.mdsa.width=[16,32]"))
    trial = make_trial(
        sweep_config("tune.axes.stdit.depth=[1,2]", BOTH, "run_dir=/r"), {"stdit.depth": 2}, data_hash="a"
    )
    assert trial.mdsa_from == "/r" and trial.yardsticks_in == "/r/eval" and trial.config.stdit.depth == 2
