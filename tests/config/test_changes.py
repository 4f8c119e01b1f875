"""What each setting changes: every setting says it, and the rules that use it hold."""

from proav.config import Config
from proav.config.changes import KINDS, changes_of, setting_values, settings_that_change
from proav.generation.sampling_settings import SamplingSettings


def test_no_setting_is_silent():
    assert [key for key, kinds in changes_of(Config).items() if not kinds or not set(kinds) <= KINDS] == []


def test_values_are_those_of_all_settings():
    values = setting_values(Config())
    assert list(values) == list(changes_of(Config))
    assert values["clip.fps"] == 10 and values["diffusion.task_weights"]["joint"] == 0.7


def test_a_shape_changes_data_and_both_models_and_a_number_of_workers_nothing():
    for kind in ("data", "mdsa", "stdit"):
        assert "clip.height" in settings_that_change(kind)
    others = KINDS - {"machine"}
    for key in ("data.num_workers", "mdsa.train.num_workers", "generate.batch_size", "job.retry_seconds"):
        assert key in settings_that_change("machine") and key not in settings_that_change(*others)


def test_how_weights_come_about_may_change_and_what_they_mean_may_not():
    training, fixed = (
        settings_that_change("training"),
        settings_that_change("mdsa", "stdit", "discriminators"),
    )
    assert {"mdsa.train.learning_rate", "mdsa.loss.mel", "stdit.label_dropout"} <= set(training)
    assert {"mdsa.width", "stdit.depth", "seed", "mdsa.loss.discriminator_width"} <= set(fixed)
    assert not set(training) & set(fixed)


def test_settings_of_samples_travel_as_one_value():
    """SamplingSettings has all settings of `generate` except those that say which samples are made, how long
    they are, by which model, and in which precision."""
    said = {key.partition(".")[2] for key in settings_that_change("samples") if key.startswith("generate.")}
    others = {"num_samples", "label", "listing", "prompts", "seconds", "encoders", "stage", "checkpoint"}
    others |= {"precision"}
    assert said - others == set(SamplingSettings.__dataclass_fields__)
