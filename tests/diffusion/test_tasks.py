"""Task draws: a function of (seed, position), with the configured shares, times and dropout."""

import pytest
import torch

from proav.config import Config
from proav.diffusion.tasks import TASKS, check_tasks, draw_tasks, given_row, sampling_task
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
    with pytest.raises(UserError, match="i2av is not available; expected one of joint, a2v, v2a"):
        sampling_task("i2av")


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
