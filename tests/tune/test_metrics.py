"""Metrics of trials: which names exist, whether large is better, and where an evaluation has the number."""

import math
import re

import pytest

from proav.errors import ConfigError, UserError
from proav.tune.metrics import (
    check_metric,
    is_evaluated,
    is_large_better,
    known_metrics,
    needs_of,
    numbers_of,
    score,
    unlisted_metrics,
    value_of,
    why_not_finite,
)
from tests.tiny import tiny_config

METRICS = {
    "tables": [
        {
            "name": "generated",
            "rows": [
                {"metric": "sFVD", "value": 12.5},
                {"metric": "FVD", "value": None, "needs": "more clips"},
            ],
        }
    ],
    "reconstruction": {"psnr_db": 20.0, "num_clips": 3, "protocol": "words"},
    "stdit": {"loss": 0.7},
}
MEASURED = {"psnr_db": 20.0, "mel_error_db": 2.0, "clips": 8, "numbers": numbers_of(METRICS)}


def test_numbers_of_an_evaluation_have_the_names_of_their_tables():
    assert numbers_of(METRICS) == {"generated.sFVD": 12.5, "reconstruction.psnr_db": 20.0, "stdit.loss": 0.7}


@pytest.mark.parametrize(
    ("metric", "large", "judged"),
    [
        ("score", True, 18),
        ("psnr_db", True, 20),
        ("mel_error_db", False, -2),
        ("generated.sFVD", False, -12.5),
        ("stdit.loss", False, -0.7),
    ],
)
def test_the_name_says_which_way_is_better(metric, large, judged):
    tune = tiny_config(f"tune.metric={metric}").tune
    assert is_large_better(tune) == large and score(MEASURED, tune) == judged
    assert score(MEASURED, tiny_config(f"tune.metric={metric}", "tune.mode=min").tune) == -abs(judged)


def test_what_a_number_needs_is_found():
    assert needs_of(METRICS, "generated.FVD") == "more clips" and needs_of(METRICS, "generated.sFVD") == ""


def test_only_what_needs_an_evaluation_has_one():
    assert not is_evaluated(tiny_config("tune.metric=psnr_db").tune)
    assert is_evaluated(tiny_config("tune.metric=reconstruction.ssim").tune) and is_evaluated(
        tiny_config("tune.stage=stdit").tune
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tune.metric=psnr"], "tune.metric=psnr is not measured; did you mean"),
        (["tune.metric=generated.sFVD"], "write tune.stage=stdit for numbers of generated clips"),
        (
            ["tune.metric=samples.sFVD", "tune.stage=stdit"],
            "expected a number of reconstruction, generated, generated_held_out, stdit",
        ),
    ],
)
def test_a_metric_that_no_evaluation_has_is_refused(words, said):
    with pytest.raises(ConfigError) as error:
        check_metric(tiny_config(*words))
    assert said in str(error.value)


def test_a_metric_that_the_protocol_does_not_list_is_reported():
    config = tiny_config("tune.stage=stdit", "tune.metric=generated.sFVG")
    assert "did you mean generated.sFVD?" in unlisted_metrics(config)[0]
    assert unlisted_metrics(tiny_config("tune.stage=stdit", "tune.metric=generated.sFVD")) == []
    assert {"stdit.loss", "generated.sKVD", "reconstruction.rsFVD"} <= set(known_metrics(config))


def test_a_metric_that_was_not_measured_is_reported_with_what_was():
    with pytest.raises(UserError, match="generated.FVD was not measured .* such as generated.sFVD"):
        score(MEASURED, tiny_config("tune.metric=generated.FVD").tune)


LOWER = "MDSA's reconstructions are not finite; lower mdsa.train.learning_rate"


@pytest.mark.parametrize(
    ("words", "measured", "said"),
    [
        (["tune.metric=score"], {"psnr_db": math.nan}, f"score is nan after 8 clips, .*: {LOWER}"),
        (["tune.metric=psnr_db"], {"psnr_db": math.nan}, f"psnr_db is nan .*: {LOWER}"),
        (["tune.metric=mel_error_db"], {"mel_error_db": math.inf}, f"mel_error_db is inf .*: {LOWER}"),
        (["tune.metric=psnr_db"], {"psnr_db": math.inf}, "psnr_db is inf .*predicted exactly, and its PSNR"),
        (["tune.metric=score"], {"psnr_db": math.nan, "num_clips": 0}, "all clips .* are of one colour"),
        (["tune.metric=score", "tune.stage=stdit"], {"psnr_db": math.nan}, LOWER),
        (
            ["tune.metric=reconstruction.psnr_db"],
            {"numbers": {"reconstruction.psnr_db": math.nan}},
            f"reconstruction.psnr_db is nan .*: {LOWER}",
        ),
        (
            ["tune.metric=stdit.loss", "tune.stage=stdit"],
            {"numbers": {"stdit.loss": math.nan}},
            "the loss is not finite; lower stdit.train.learning_rate",
        ),
    ],
)
def test_a_metric_that_is_not_finite_is_no_missing_metric_and_the_message_says_why(words, measured, said):
    tune, measured = tiny_config(*words).tune, {**MEASURED, "num_clips": 3, **measured}
    assert not math.isfinite(value_of(measured, tune))
    message = why_not_finite(measured, tune)
    assert re.search(said, message) and message.startswith(f"tune.metric={tune.metric} is ")


def test_numbers_that_are_only_shown_are_checked_like_the_metric_and_make_trials_whole_evaluations():
    show = "tune.show=[reconstruction.psnr_lone_db]"
    config = tiny_config(show)
    check_metric(config)
    assert is_evaluated(config.tune) and not is_evaluated(tiny_config().tune)
    assert unlisted_metrics(config) == []
    (line,) = unlisted_metrics(tiny_config("tune.show=[reconstruction.psnr_lone]"))
    assert "did you mean reconstruction.psnr_lone_db? Its column stays empty" in line
    with pytest.raises(ConfigError, match="tune.show=generated.sFVD: expected a number of reconstruction"):
        check_metric(tiny_config("tune.show=[generated.sFVD]"))
