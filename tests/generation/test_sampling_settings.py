"""SamplingSettings are checked when they are made, read from a configuration, and written to a manifest."""

import pytest

from proav.config import Config
from proav.config.reading import load_config
from proav.diffusion import DDPM, FlowMap, RectifiedFlow
from proav.diffusion.solvers import DEFAULT_STEPS, SOLVERS
from proav.errors import UserError
from proav.generation.sampling_settings import SamplingSettings, changed_settings, with_settings
from tests.tiny import TINY, tiny_config


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"steps": 0}, "steps=0: expected 1 to 1000"),
        ({"steps": 1001}, "steps=1001"),
        ({"solver": "rk4"}, f"solver=rk4 is unknown; expected one of {', '.join(SOLVERS)}"),
        ({"task": "dub"}, "expected one of joint, a2v, v2a"),
        ({"guidance_scale": -1.0}, "guidance_scale=-1.0: expected 0 to 30"),
        ({"audio_guidance_scale": 31.0}, "audio_guidance_scale=31.0: expected 0 to 30"),
        ({"guidance_interval": (0.8, 0.2)}, r"guidance_interval=\[0.8,0.2\]: expected two times"),
        ({"guidance_interval": (0.1, 0.5, 1.0)}, "0.5, 1.0.: expected two times"),
        ({"guidance_interval": ("a", "b")}, "guidance_interval=.'a', 'b'.: expected two times"),
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


def test_an_interval_is_two_times_in_any_sequence():
    settings = SamplingSettings(guidance_interval=[0.1, 0.8])
    assert settings == SamplingSettings(guidance_interval=(0.1, 0.8)) and len({settings}) == 1


def test_guidance_of_the_sound_is_that_of_the_pictures_unless_it_is_given():
    assert SamplingSettings(guidance_scale=2.0).guidance_scales == (2, 2)
    settings = SamplingSettings.from_config(load_config(None, ["generate.audio_guidance_scale=3"]))
    assert settings.guidance_scales == (1, 3) and settings.to_dict()["audio_guidance_scale"] == 3
    assert settings.schedule == SamplingSettings().schedule


def test_a_flow_map_takes_both_of_its_scales_or_none():
    process = FlowMap(guidance_scales=(2.0, 3.0))
    own = SamplingSettings().filled(process)
    assert own.guidance_scales == (2, 3) and own.filled(process) == own
    for other in ({"guidance_scale": 2.0}, {"audio_guidance_scale": 3.0}):
        said = r"learned guidance_scale=2, audio_guidance_scale=3 .* with distill\.guidance_scale=[12]"
        with pytest.raises(UserError, match=said):
            SamplingSettings(**other).filled(process)


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


@pytest.mark.parametrize(
    ("steps", "shift", "said"),
    [
        (1000, None, "generate.steps=1000: ddpm has 100 steps; expected at most generate.steps=100$"),
        (50, 5.0, "generate.schedule_shift=5: .* at most generate.steps=20, or a smaller shift"),
    ],
)
def test_times_that_the_process_does_not_have_are_reported_before_anything_is_made(steps, shift, said):
    settings = SamplingSettings(steps=steps, schedule_shift=shift)
    for process in (RectifiedFlow(), FlowMap()):
        assert settings.filled(process).steps == steps
    with pytest.raises(UserError, match=said):
        settings.filled(DDPM(num_steps=100))


def test_a_job_changes_the_settings_that_it_names_and_no_others():
    words = [word for word in TINY if not word.startswith("mel.griffin_lim")]
    model, unnamed = tiny_config(), load_config(None, words)
    assert unnamed.mel.griffin_lim_iterations != model.mel.griffin_lim_iterations
    assert changed_settings(model, unnamed) == changed_settings(model, tiny_config()) == {}
    job = tiny_config("mel.griffin_lim_iterations=64", "diffusion.ddim_eta=0.5", "diffusion.ddpm_steps=10")
    changed = {"mel.griffin_lim_iterations": 64, "diffusion.ddim_eta": 0.5}
    assert changed_settings(model, job) == changed
    made_so = with_settings(model, changed)
    assert changed_settings(made_so, job) == {} and made_so.diffusion.ddpm_steps == 1000
    assert with_settings(made_so, changed_settings(made_so, tiny_config("diffusion.ddim_eta=0"))) != made_so


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"mel.hop": 100}, "mel.hop=100: a trained model keeps this setting; expected some of mel.griffin"),
        ({"mel.griffin_lim_momentum": 2}, "mel.griffin_lim_momentum=2: input should be less than 1"),
    ],
)
def test_settings_that_a_trained_model_does_not_take_are_reported(settings, said):
    with pytest.raises(UserError, match=said):
        with_settings(tiny_config(), settings)
