"""Task draws: a function of (seed, position), with the configured shares, times and dropout."""

import pytest
import torch

from proav.config import Config
from proav.diffusion.tasks import (
    TASKS,
    check_tasks,
    check_trained,
    draw_tasks,
    fixed_mask,
    given_row,
    mask_of_window,
    masked_tasks,
    sampled_tasks,
    sampling_task,
    task_names,
)
from proav.errors import UserError

MANY = range(4000)


def config(**weights: float) -> Config:
    return Config.model_validate({"diffusion": {"task_weights": weights}, "stdit": {"label_dropout": 0.25}})


def test_draws_do_not_depend_on_the_batch():
    together = draw_tasks(5, range(40), Config())
    for start in (0, 13, 39):
        part = draw_tasks(5, torch.arange(start, 40), Config())
        assert part.names == together.names[start:]
        assert torch.equal(part.times_B2, together.times_B2[start:]) and torch.equal(
            part.drop_label_B, together.drop_label_B[start:]
        )
    assert not torch.equal(draw_tasks(6, range(40), Config()).times_B2, together.times_B2)


def test_tasks_come_at_their_shares_and_labels_drop_at_theirs():
    weights = {"joint": 2.0, "a2v": 1.0, "v2a": 0.0, "independent": 1.0}
    draw = draw_tasks(0, MANY, config(**weights))
    for name, weight in weights.items():
        share = draw.names.count(name) / len(MANY)
        assert share == pytest.approx(weight / 4, abs=0.03) and (weight > 0 or share == 0)
    assert draw.drop_label_B.double().mean().item() == pytest.approx(0.25, abs=0.03)


def test_times_follow_the_rows_of_the_table():
    draw = draw_tasks(0, MANY, config(joint=1, a2v=1, v2a=1, independent=1))
    for name, given, (video, audio) in zip(draw.names, draw.given_B2.tolist(), draw.times_B2.tolist()):
        assert given == given_row(name)
        match name:
            case "joint":
                assert video == audio > 0
            case "a2v":
                assert audio == 0 < video
            case "v2a":
                assert video == 0 < audio
            case "independent":
                assert video != audio and min(video, audio) > 0


def test_a_missing_weight_is_zero():
    assert set(draw_tasks(0, range(200), config(a2v=1.0)).names) == {"a2v"}


def test_times_of_a_joint_task_are_logit_normal_and_independent_of_the_task():
    draw = draw_tasks(0, MANY, config(joint=1, independent=1))
    own = torch.tensor([name == "independent" for name in draw.names])
    for rows in (own, ~own):
        logits = draw.times_B2[rows, 0].logit()
        assert logits.mean().item() == pytest.approx(0, abs=0.08) and logits.std().item() == pytest.approx(
            1, abs=0.08
        )
    assert torch.corrcoef(draw.times_B2[own].T)[0, 1].abs() < 0.08


def test_ddpm_draws_discrete_times():
    draw = draw_tasks(
        0, range(100), Config.model_validate({"diffusion": {"objective": "ddpm", "ddpm_steps": 10}})
    )
    assert set((draw.times_B2 * 10).round(decimals=4).flatten().tolist()) <= set(range(11))


def test_sampling_tasks():
    assert sampling_task("a2v") is TASKS["a2v"]
    with pytest.raises(UserError, match="expected one of joint, a2v, v2a, i2av, continue"):
        sampling_task("independent")


def test_draws_of_a_run_without_masked_tasks_are_those_of_the_first_version():
    draw = draw_tasks(3, range(5), Config())
    assert draw.names == ("joint", "joint", "joint", "a2v", "joint")
    expected = ["0x1.cdbab8p-2", "0x1.8d8c36p-3", "0x1.39e938p-1", "0x1.63f004p-2", "0x1.e4f2cap-2"]
    assert draw.times_B2[:, 0].tolist() == [float.fromhex(value) for value in expected]
    assert draw.drop_label_B.tolist() == [True, False, False, False, False]


def test_names_are_those_of_the_draws():
    shares = config(joint=1, independent=1, i2av=1, inpaint=1)
    draw = draw_tasks(0, MANY, shares)
    assert task_names(0, MANY, shares) == draw.names
    assert set(draw.names) == {"joint", "independent", "i2av", "inpaint"}


def test_masked_tasks_are_noisy_in_all_planes_at_one_time():
    draw = draw_tasks(0, range(200), config(i2av=1, inpaint=1, **{"continue": 1}))
    assert not draw.given_B2.any() and torch.equal(draw.times_B2[:, 0], draw.times_B2[:, 1])


def test_a_model_makes_clips_by_the_masked_tasks_that_it_was_trained_for():
    some = config(joint=1, inpaint=0.1, i2av=0)
    assert masked_tasks(some) == ("inpaint",) and masked_tasks(Config()) == ()
    assert sampled_tasks(some) == ("joint", "a2v", "v2a", "inpaint")
    check_trained("inpaint", some)
    with pytest.raises(UserError, match="not trained for it .* expected one of joint, a2v, v2a, inpaint"):
        check_trained("i2av", some)


def test_the_mask_of_a_window_follows_from_its_names_alone():
    some = config(inpaint=1)
    masks = {
        (segment, window): mask_of_window("inpaint", some, segment, window)
        for segment in ("a", "b")
        for window in range(8)
    }
    other_seed = some.model_copy(update={"seed": 5})
    assert all(torch.equal(mask_of_window("inpaint", other_seed, *key), mask) for key, mask in masks.items())
    assert len({tuple(mask.flatten().tolist()) for mask in masks.values()}) > 8
    assert torch.equal(mask_of_window("i2av", some, "a", 0), fixed_mask("i2av", some))


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"diffusion": {"task_weights": {"joint": 1, "sing": 0}}}, "no task sing; expected some of joint"),
        ({"generate": {"task": "sing"}}, "generate.task=sing is not available; expected one of joint"),
        ({"generate": {"task": "independent"}}, "expected one of joint, a2v, v2a,"),
    ],
)
def test_a_task_that_is_not_in_the_table_is_refused(section, said):
    with pytest.raises(UserError, match=said):
        check_tasks(Config.model_validate(section))


def test_every_task_of_the_table_may_have_a_weight():
    for name in TASKS:
        check_tasks(config(**{name: 1.0}))
