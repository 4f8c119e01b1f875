"""How long trials train: equal clips, equal FLOPs by the cost formulas, equal seconds."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from proav.costs import costs
from proav.errors import ConfigError
from proav.geometry import ClipGeometry, stream_geometries
from proav.models.mdsa import MDSA
from proav.tune.budgets import budgets_words, clips_at, clips_for_flops, mdsa_clips, train_flops, with_length
from proav.tune.space import config_at, make_trial, plan_text
from tests.tiny import tiny_config

WIDTH = "tune.axes.mdsa.width=[16,64]"


def sweep_config(*words):
    return tiny_config(WIDTH, "tune.grace_clips=80", "tune.max_clips=400", *words)


def test_a_budget_in_clips_is_the_same_for_all():
    config = sweep_config()
    assert [make_trial(config, {"mdsa.width": width}, data_hash="a").lengths for width in (16, 64)] == [
        (80, 160, 320, 400)
    ] * 2


@pytest.mark.parametrize("start", [0, 100, 10**6])
def test_a_budget_in_flops_gives_each_trial_clips_that_cost_the_same(start):
    """Discriminators count from the clip on at which they enter."""
    config = sweep_config("tune.budget=flops", f"mdsa.loss.adversarial_start_clips={start}")
    wanted = train_flops(config, "mdsa", 400)
    bill = costs(config)
    assert wanted == 400 * bill.mdsa_train_flops + max(0, 400 - start) * bill.discriminators_train_flops
    lengths = []
    for width in (16, 64):
        resolved = config_at(config, {"mdsa.width": width})
        clips = clips_at(config, resolved, 400)
        a_batch = train_flops(resolved, "mdsa", clips) - train_flops(resolved, "mdsa", clips - 4)
        assert clips % 4 == 0 and abs(train_flops(resolved, "mdsa", clips) - wanted) <= a_batch / 2
        lengths.append(clips)
    assert lengths[0] == 400 > lengths[1]
    assert clips_for_flops(config, "mdsa", 1) == 4  # a batch at least


@pytest.mark.parametrize("start", [0, 60, 10**6])
def test_clips_that_train_the_linear_planes_only_cost_what_these_cost(start):
    late = f"mdsa.loss.adversarial_start_clips={start}"
    config = sweep_config("tune.budget=flops", "mdsa.linear_planes.alone_clips=100", late)
    model, bill = MDSA(config), costs(config)
    frames, bins, steps = ClipGeometry.from_config(config).mel_shape
    video = torch.zeros(1, *stream_geometries(config)["video"].input_shape)
    with FlopCounterMode(display=False) as counter:
        model(video, torch.zeros(1, frames, bins, steps), linear_alone=True)
    a_clip = 3 * counter.get_total_flops()
    assert a_clip < 0.5 * bill.mdsa_train_flops
    for clips in (40, 100, 400):
        judged = max(0, clips - start) * bill.discriminators_train_flops
        whole = max(0, clips - 100) * bill.mdsa_train_flops
        assert train_flops(config, "mdsa", clips) == min(clips, 100) * a_clip + whole + judged
        assert clips_for_flops(config, "mdsa", train_flops(config, "mdsa", clips)) == clips
    network = sweep_config("tune.budget=flops", "mdsa.linear_planes.enabled=false", late)
    never = sweep_config(
        "tune.budget=flops",
        "mdsa.linear_planes.enabled=false",
        "mdsa.linear_planes.alone_clips=100",
        late,
    )
    assert train_flops(never, "mdsa", 400) == train_flops(network, "mdsa", 400)


def test_recomputation_costs_a_forward_pass_more():
    recomputed = "mdsa.train.activation_checkpointing"
    config = sweep_config("tune.budget=flops", f"tune.axes.{recomputed}=[true]")
    twice = config_at(config, {recomputed: True})
    assert clips_at(config, twice, 400) == 300


def test_with_both_stages_each_has_the_flops_that_it_has_without_axes():
    config = sweep_config(
        "tune.budget=flops", "tune.stage=stdit", "tune.axes.stdit.depth=[1,3]", "mdsa.train.num_clips=200"
    )
    resolved = config_at(config, {"mdsa.width": 64, "stdit.depth": 3})
    assert mdsa_clips(config, config) == 200 > mdsa_clips(config, resolved)
    wanted = train_flops(config, "stdit", 400)
    clips = clips_at(config, resolved, 400)
    assert abs(train_flops(resolved, "stdit", clips) - wanted) <= 2 * costs(resolved).stdit_train_flops
    trial = make_trial(config, {"mdsa.width": 64, "stdit.depth": 3}, data_hash="a")
    assert trial.config.mdsa.train.num_clips == mdsa_clips(config, resolved) and trial.mdsa_from is None


def test_a_budget_in_seconds_has_no_clips():
    config = sweep_config("tune.budget=seconds", "tune.max_seconds=60", "tune.grace_seconds=20")
    assert config.tune.rungs == (20, 40, 60) and budgets_words(config.tune) == "20, 40, 60 s of training"
    trial = make_trial(config, {"mdsa.width": 64}, data_hash="a")
    assert trial.lengths == (None, None, None)
    train = with_length(trial.config, "mdsa", clips=None, seconds=20).mdsa.train
    assert train.max_seconds == 20 and train.num_clips >= 10**9
    assert sweep_config("tune.budget=seconds", "tune.max_seconds=60").tune.rungs == (60,)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tune.budget=seconds"], "needs tune.max_seconds"),
        (["tune.max_seconds=9"], "hold for tune.budget=seconds, not clips"),
        (
            ["tune.budget=seconds", "tune.max_seconds=9", "tune.grace_seconds=10"],
            "tune.grace_seconds=10 is above tune.max_seconds=9",
        ),
        (["tune.budget=hours"], "'clips', 'flops' or 'seconds'"),
    ],
)
def test_a_wrong_budget_is_reported(words, said):
    with pytest.raises(ConfigError) as error:
        sweep_config(*words)
    assert said in str(error.value)


def test_the_plan_says_what_each_trial_gets():
    text = plan_text(sweep_config("tune.budget=flops", "tune.repeats=3"))
    assert "3 seeds each" in text and "or what costs the same FLOPs" in text and ", 400 clips" in text
