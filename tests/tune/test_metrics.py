"""Metrics of trials: which names exist, whether large is better, and where an evaluation has the number."""

import math
import re

import numpy as np
import pytest

from proav.errors import ConfigError, UserError
from proav.evaluate.job import Comparison, table_numbers
from proav.evaluate.measure import Measured
from proav.evaluate.numbers import Resampling
from proav.evaluate.reconstruction import SCORES
from proav.metrics.protocols import find_protocol
from proav.train.engines import NonFiniteError
from proav.tune.metrics import (
    HELD_OUT,
    check_metric,
    is_evaluated,
    is_large_better,
    known_metrics,
    needs_of,
    not_finite,
    numbers_of,
    score,
    value_of,
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


FULL, FIXED = "evaluate.protocol=full", "evaluate.protocol=mm-diffusion-64"


@pytest.mark.parametrize(
    ("protocol", "metric", "near"),
    [
        ("evaluate.protocol=small", "generated.sFVG", "generated.sFVD"),
        (FIXED, "generated_held_out.FVD", "generated.FVD"),  # no such table, as the number of clips is fixed
        (FULL, "generated_held_out.diversity", "generated.diversity"),
        (FULL, "generated_held_out.nearest_training", "generated.nearest_training"),
        (FULL, "generated.KL-I3D", "reconstruction.KL-I3D"),  # it compares clips with their originals
        (FULL, "generated.precision_recall", "generated.precision"),
    ],
)
def test_a_number_that_a_table_does_not_have_is_refused_and_the_nearest_is_named(protocol, metric, near):
    for setting in (f"tune.metric={metric}", f"tune.show=[{metric}]"):
        with pytest.raises(ConfigError) as error:
            check_metric(tiny_config("tune.stage=stdit", protocol, setting))
        assert f"{metric} is not measured by {protocol}; did you mean" in str(error.value)
    config = tiny_config("tune.stage=stdit", protocol, f"tune.metric={near}")
    check_metric(config)
    assert near in known_metrics(config)


def test_the_names_are_those_of_the_tables_of_an_evaluation():
    protocol, draw = find_protocol("small"), np.random.default_rng(0)
    ids, scores = [str(number) for number in range(12)], dict.fromkeys(protocol.scores, np.ones(12))
    sets = {
        kind: Measured(
            ids,
            ids,
            [""] * 12,
            scores,
            {name: list(draw.normal(size=(12, 1, 4)).astype("f4")) for name in protocol.networks},
            {},
            {},
        )
        for kind in ("real", "fake", "held_out")
    }
    names = {name for name in known_metrics(tiny_config("tune.stage=stdit")) if not name.startswith("stdit.")}
    for table, more in (
        ("reconstruction", {"paired": True, "kinds": ("frechet", "kernel")}),
        ("generated", {}),
        ("generated_held_out", {"kinds": HELD_OUT}),
    ):
        comparison = Comparison(table, "", real=None, fake=None, **more)
        rows = table_numbers(protocol, comparison, sets, Resampling(2, 0), {})
        found = {f"{table}.{row.metric}" for row in rows}
        beside = {f"{table}.{name}" for name in SCORES if more.get("paired")}  # of the means over clips
        assert found | beside == {name for name in names if name.startswith(f"{table}.")}


def test_a_leak_has_no_direction_of_its_own():
    leak = "tune.metric=reconstruction.psnr_leak_db"
    with pytest.raises(ConfigError, match="write tune.mode=max or tune.mode=min"):
        check_metric(tiny_config(leak))
    check_metric(tiny_config(leak, "tune.mode=min"))
    check_metric(tiny_config("tune.show=[reconstruction.psnr_leak_db]"))


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
    error = not_finite(measured, tune)
    message, is_sound = str(error), "predicted exactly" in str(error)
    assert isinstance(error, NonFiniteError) != is_sound
    assert re.search(said, message) and message.startswith(f"tune.metric={tune.metric} is ")


def test_numbers_that_are_only_shown_are_checked_like_the_metric_and_make_trials_whole_evaluations():
    show = "tune.show=[reconstruction.psnr_lone_db]"
    config = tiny_config(show)
    check_metric(config)
    assert is_evaluated(config.tune) and not is_evaluated(tiny_config().tune)
    with pytest.raises(ConfigError, match="did you mean reconstruction.psnr_lone_db?"):
        check_metric(tiny_config("tune.show=[reconstruction.psnr_lone]"))
    with pytest.raises(ConfigError, match="tune.show=generated.sFVD: expected a number of reconstruction"):
        check_metric(tiny_config("tune.show=[generated.sFVD]"))
