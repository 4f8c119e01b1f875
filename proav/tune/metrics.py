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
from proav.metrics.protocols import find_protocol

SMALL_IS_BETTER = re.compile(
    r"error|loss|(^|\.)r?s?(FVD|KVD|FAD|KAD)|lpips|blockiness|(^|\.)KL|DeSync|median_offset_ms", re.IGNORECASE
)
"""Names of metrics for which less is better; for all others more is better."""
BRIEF = ("psnr_db", "psnr_mean_colour_db", "psnr_temporal_mean_db", "mel_error_db", "mel_error_mean_mel_db")
"""What a trial over MDSA measures without a whole evaluation."""
TABLES = ("reconstruction", "generated", "generated_held_out", "stdit")
"""Tables of an evaluation; all but the first need tune.stage=stdit."""


def check_metric(config: Config) -> None:
    """Raises ConfigError if no evaluation of such trials has the number; nothing is measured."""
    _check_name(config, "tune.metric", config.tune.metric)
    for name in config.tune.show:
        _check_name(config, "tune.show", name)


def _check_name(config: Config, setting: str, given: str) -> None:
    """setting: the one that names the number, for messages."""
    if given == "score":
        return
    table, _, name = given.partition(".")
    if not name:
        if given not in BRIEF:
            near = difflib.get_close_matches(given, known_metrics(config), n=1, cutoff=0.3)
            hint = (
                f"did you mean {near[0]}?" if near else f"expected score, {', '.join(BRIEF)} or TABLE.METRIC"
            )
            raise ConfigError(f"{setting}={given} is not measured; {hint}")
        return
    tables = TABLES if config.tune.stage == "stdit" else TABLES[:1]
    if table not in tables:
        more = "" if table not in TABLES else "; write tune.stage=stdit for numbers of generated clips"
        raise ConfigError(f"{setting}={given}: expected a number of {', '.join(tables)}{more}")


def unlisted_metrics(config: Config) -> list[str]:
    """A line for each number that the protocol does not list: a library may be missing, or it is misspelt."""
    tune, lines = config.tune, []
    if not is_evaluated(tune):
        return lines
    known = known_metrics(config)
    for name in dict.fromkeys((tune.metric, *tune.show)):
        if name not in ("score", *known):
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.3)
            lines.append(
                f"tune: evaluate.protocol={config.evaluate.protocol} does not list {name}"
                + (f"; did you mean {near[0]}?" if near else ".")
                + (" A trial fails" if name == tune.metric else " Its column stays empty")
                + " if it is not measured."
            )
    return lines


def known_metrics(config: Config) -> list[str]:
    """Names that an evaluation by this protocol has."""
    protocol = find_protocol(config.evaluate.protocol)
    pairs = {f"r{distance.name}" for distance in protocol.distances if distance.kind in ("frechet", "kernel")}
    made = {
        name
        for distance in protocol.distances
        for name in ([distance.name] if distance.kind == "nearest_training" else distance.name.split("_"))
    }
    of_one = {score for score in protocol.scores if score in OF_ONE} | {
        score.name for score in protocol.feature_scores
    }
    of_pairs = {score for score in protocol.scores if score in OF_PAIRS} | set(SCORES)
    names = {f"reconstruction.{name}" for name in pairs | of_pairs | of_one} | set(BRIEF)
    if config.tune.stage == "stdit":
        names |= {
            f"{table}.{name}" for table in ("generated", "generated_held_out") for name in made | of_one
        }
        names |= {"stdit.loss"}
    return sorted(names)


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
    """The metric in a measurement, which may be NaN or infinite: `why_not_finite` then says why.

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


def why_not_finite(measured: dict, tune: TuneConfig) -> str:
    """The message for a metric that was measured and is NaN or infinite."""
    metric, value = tune.metric, value_of(measured, tune)
    table, _, name = metric.rpartition(".")
    said = f"tune.metric={metric} is {value} after {measured['clips']:,} clips, expected a finite number: "
    if table not in ("", "reconstruction"):
        what = "the loss is" if table == "stdit" else "the generated clips or their features are"
        return f"{said}{what} not finite; lower stdit.train.learning_rate"
    if measured["num_clips"] == 0:
        return (
            f"{said}all clips of evaluate.split are of one colour, and such clips are left out; prepare "
            "other data, or write the other of evaluate.split=train and evaluate.split=validation"
        )
    if value == math.inf and (name == "score" or "psnr" in name):
        return (
            f"{said}a clip was predicted exactly, and its PSNR is infinite; write another tune.metric, such "
            "as mel_error_db"
        )
    return f"{said}MDSA's reconstructions are not finite; lower mdsa.train.learning_rate"


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
