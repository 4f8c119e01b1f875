"""SamplingSettings are checked when they are made, read from a configuration, and written to a manifest."""

import pytest

from proav.config import Config
from proav.diffusion.solvers import DEFAULT_STEPS, SOLVERS
from proav.errors import UserError
from proav.generation.sampling_settings import SamplingSettings


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"steps": 0}, "steps=0: expected 1 to 1000"),
        ({"steps": 1001}, "steps=1001"),
        ({"solver": "rk4"}, f"solver=rk4 is unknown; expected one of {', '.join(SOLVERS)}"),
        ({"task": "dub"}, "expected one of joint, a2v, v2a"),
        ({"guidance_scale": -1.0}, "guidance_scale=-1.0: expected 0 to 30"),
        ({"guidance_interval": (0.8, 0.2)}, r"guidance_interval=\[0.8,0.2\]: expected two times"),
        ({"schedule_shift": 0.5}, "schedule_shift=0.5: expected 1 to 100"),
    ],
)
def test_what_no_model_can_do_is_reported_at_once(given, said):
    with pytest.raises(UserError, match=said):
        SamplingSettings(**given)


def test_they_come_from_the_section_generate_and_have_its_defaults():
    assert SamplingSettings.from_config(Config()) == SamplingSettings()
    section = {"steps": 7, "solver": "heun", "guidance_interval": [0.2, 0.8], "schedule_shift": 3.0}
    settings = SamplingSettings.from_config(Config.model_validate({"generate": section}))
    assert settings.to_dict() == {"task": "joint", "guidance_scale": 1.0, **section}


def test_samples_of_one_schedule_may_differ_in_guidance_alone():
    one, other = SamplingSettings(guidance_scale=2.0), SamplingSettings(guidance_interval=(0.1, 0.9))
    assert one.schedule == other.schedule != SamplingSettings(steps=3).schedule


@pytest.mark.parametrize("name", SOLVERS)
def test_calls_are_those_of_the_solver(name):
    objective = SOLVERS[name].objectives[0]
    assert SamplingSettings(solver=name, steps=4).num_calls(objective) == SOLVERS[name].num_calls(4)
    assert SamplingSettings(solver=name).num_calls(objective) == SOLVERS[name].num_calls(
        DEFAULT_STEPS[objective]
    )
