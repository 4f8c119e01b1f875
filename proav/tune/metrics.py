"""What trials are judged by: one number of a reconstruction or of an evaluation, and its better direction.

A measurement is a flat dict. Its entry "numbers" holds what `proav/evaluate` measured of a whole run, by
TABLE.METRIC: {"reconstruction.ssim": 0.91, "generated.sFVD": 12.3, "stdit.loss": 0.8}.
"""

import difflib
import math
import re

from proav.config import Config, TuneConfig
from proav.errors import ConfigError, UserError
from proav.evaluate.reconstruction import SCORES
from proav.evaluate.scores import OF_ONE, OF_PAIRS
from proav.evaluate.yardsticks import YARDSTICK_SCORES
from proav.metrics.protocols import Protocol, find_protocol
from proav.train.engines.base import NonFiniteError

SMALL_IS_BETTER = re.compile(
    r"error|loss|(^|\.)r?s?(FVD|KVD|FAD|KAD)|lpips|blockiness|(^|\.)KL|DeSync|median_offset_ms", re.IGNORECASE
)
"""Names of metrics for which less is better; for all others more is better."""
BRIEF = ("psnr_db", "psnr_mean_colour_db", "psnr_temporal_mean_db", "mel_error_db", "mel_error_mean_mel_db")
"""What a trial over MDSA measures without a whole evaluation."""
TABLES = ("reconstruction", "generated", "generated_held_out", "stdit")
"""Tables of an evaluation; all but the first need tune.stage=stdit."""
HELD_OUT = ("frechet", "kernel", "precision_recall", "density_coverage")
"""Kinds of distances in the table generated_held_out."""
PAIRS = ("precision_recall", "density_coverage")
"""Kinds of distances that are two numbers; the distance has the names of both."""


def check_metric(config: Config) -> None:
    """Raises ConfigError if no evaluation of such trials has the number; nothing is measured.

    So it does for a metric of which nobody can say which way is better.
    """
    tune = config.tune
    _check_name(config, "tune.metric", tune.metric)
    for name in tune.show:
        _check_name(config, "tune.show", name)
    if tune.mode == "auto" and tune.metric.endswith("_leak_db"):
        raise ConfigError(
            f"tune.metric={tune.metric} with tune.mode=auto: it is one modality, decoded from the planes of "
            "the other, and its name does not say which way is better; write tune.mode=max or tune.mode=min"
        )


def _check_name(config: Config, setting: str, given: str) -> None:
    """setting: the one that names the number, for messages."""
    if given == "score":
        return
    tables = TABLES if config.tune.stage == "stdit" else TABLES[:1]
    table, _, name = given.partition(".")
    if name and table not in tables:
        more = "" if table not in TABLES else "; write tune.stage=stdit for numbers of generated clips"
        raise ConfigError(f"{setting}={given}: expected a number of {', '.join(tables)}{more}")
    known = [*BRIEF, *known_metrics(config)]
    if given not in known:
        near = difflib.get_close_matches(given, known, n=1, cutoff=0.3)
        hint = f"did you mean {near[0]}?" if near else f"expected score, {', '.join(BRIEF)} or TABLE.METRIC"
        by = f" by evaluate.protocol={config.evaluate.protocol}" if name else ""
        raise ConfigError(f"{setting}={given} is not measured{by}; {hint}")


def known_metrics(config: Config) -> list[str]:
    """Every TABLE.METRIC of an evaluation by this protocol, as proav/evaluate/job.py makes the tables.

    Some of them may need weights, a library or more clips.
    """
    protocol = find_protocol(config.evaluate.protocol)
    of_one = {score for score in protocol.scores if score in OF_ONE}
    of_pairs = {score for score in protocol.scores if score in OF_PAIRS} | {*SCORES, *YARDSTICK_SCORES}
    of_features = {score.name for score in protocol.feature_scores}
    of_lone_features = {score.name for score in protocol.feature_scores if score.kind != "class_divergence"}
    in_table = {
        "reconstruction": {f"r{name}" for name in _distances(protocol, ("frechet", "kernel"))}
        | of_one
        | of_pairs
        | of_features
    }
    if config.tune.stage == "stdit":
        in_table["generated"] = _distances(protocol, None) | of_one | of_lone_features
        if protocol.num_clips is None:
            in_table["generated_held_out"] = _distances(protocol, HELD_OUT) | of_one | of_lone_features
        in_table["stdit"] = {"loss", "loss_at_initialization"}
    return sorted(f"{table}.{name}" for table, names in in_table.items() for name in names)


def _distances(protocol: Protocol, kinds: tuple[str, ...] | None) -> set[str]:
    """Names of the numbers of a protocol's distances of these kinds; None: of all."""
    found = [distance for distance in protocol.distances if kinds is None or distance.kind in kinds]
    pairs = [distance.name.split("_") for distance in found if distance.kind in PAIRS]
    return {distance.name for distance in found if distance.kind not in PAIRS}.union(*pairs)


def is_evaluated(tune: TuneConfig) -> bool:
    """Whether trials need a whole evaluation. If not, the trial's own task measures reconstructions."""
    return tune.stage == "stdit" or any("." in name for name in (tune.metric, *tune.show))


def is_large_better(tune: TuneConfig) -> bool:
    if tune.mode != "auto":
        return tune.mode == "max"
    return tune.metric == "score" or not SMALL_IS_BETTER.search(tune.metric)


def numbers_of(metrics: dict) -> dict[str, float]:
    """eval/metrics.json as {TABLE.METRIC: value}; numbers that could not be measured are left out."""
    found = {
        f"{table['name']}.{row['metric']}": row["value"]
        for table in metrics.get("tables", ())
        for row in table["rows"]
        if row["value"] is not None
    }
    for part in ("reconstruction", "stdit"):
        values = metrics.get(part) or {}
        found |= {f"{part}.{key}": value for key, value in values.items() if isinstance(value, float)}
    return found


def needs_of(metrics: dict, metric: str) -> str:
    """What was missing to measure a number of eval/metrics.json; empty if the file does not say."""
    table, _, name = metric.partition(".")
    rows = (row for one in metrics.get("tables", ()) if one["name"] == table for row in one["rows"])
    return next((row["needs"] for row in rows if row["metric"] == name and row["value"] is None), "")


def number_in(measured: dict, name: str, tune: TuneConfig) -> float | None:
    """A number of a measurement by its name; None if it is missing or not finite."""
    value = _measured_number(measured, name, tune)
    return value if value is not None and math.isfinite(value) else None


def _measured_number(measured: dict, name: str, tune: TuneConfig) -> float | None:
    """Like `number_in`, but None only if it is missing."""
    if name == "score":
        return float(tune.picture_weight * measured["psnr_db"] - tune.sound_weight * measured["mel_error_db"])
    value = _numbers(measured).get(name)
    return None if value is None else float(value)


def value_of(measured: dict, tune: TuneConfig) -> float:
    """The metric in a measurement, which may be NaN or infinite: `not_finite` then says why.

    Raises UserError if it is missing.
    """
    value = _measured_number(measured, tune.metric, tune)
    if value is not None:
        return value
    near = difflib.get_close_matches(tune.metric, _numbers(measured), n=3, cutoff=0.2)
    raise UserError(
        f"tune.metric={tune.metric} was not measured (it may need weights, a library or more clips; "
        "docs/evaluation.md says which); expected a number that was measured, such as "
        f"{', '.join(near) or ', '.join(sorted(_numbers(measured))[:3])}"
    )


def not_finite(measured: dict, tune: TuneConfig) -> UserError:
    """The error for a metric that was measured and is NaN or infinite.

    It is a NonFiniteError, except for an infinite PSNR: that trial is sound, and another metric can judge it.
    """
    metric, value = tune.metric, value_of(measured, tune)
    table, _, name = metric.rpartition(".")
    said = f"tune.metric={metric} is {value} after {measured['clips']:,} clips, expected a finite number: "
    if table not in ("", "reconstruction"):
        what = "the loss is" if table == "stdit" else "the generated clips or their features are"
        return NonFiniteError(f"{said}{what} not finite; lower stdit.train.learning_rate")
    if measured["num_clips"] == 0:
        return NonFiniteError(
            f"{said}all clips of evaluate.split are of one colour, and such clips are left out; prepare "
            "other data, or write the other of evaluate.split=train and evaluate.split=validation"
        )
    if value == math.inf and (name == "score" or "psnr" in name):
        return UserError(
            f"{said}a clip was predicted exactly, and its PSNR is infinite; write another tune.metric, such "
            "as mel_error_db"
        )
    return NonFiniteError(f"{said}MDSA's reconstructions are not finite; lower mdsa.train.learning_rate")


def _numbers(measured: dict) -> dict[str, float]:
    numbers = {key: value for key, value in measured.items() if isinstance(value, int | float)}
    return numbers | measured.get("numbers", {})


def score(measured: dict, tune: TuneConfig) -> float:
    """The metric with its sign such that more is better, for schedulers and searches."""
    value = value_of(measured, tune)
    return value if is_large_better(tune) else -value


def metric_words(tune: TuneConfig) -> str:
    """The metric in words: PSNR - log-mel error, dB; or generated.sFVD, less is better."""
    if tune.metric == "score":
        return f"{_times(tune.picture_weight)}PSNR - {_times(tune.sound_weight)}log-mel error, dB"
    return f"{tune.metric}, {'more' if is_large_better(tune) else 'less'} is better"


def _times(weight: float) -> str:
    return "" if weight == 1 else f"{weight:g} * "
