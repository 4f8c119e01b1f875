"""How much of the differences between trials each axis explains: Optuna's importances, at one rung.

Optuna and scikit-learn are optional. An axis with a condition is not in every trial, so it has no importance.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from proav.config import TuneConfig
from proav.tune.budgets import budget_words
from proav.tune.rows import Row

MIN_TRIALS = 4
"""With fewer trials an importance says nothing."""


@dataclass(frozen=True)
class Importance:
    """Shares of the axes, largest first, with a sum of 1; or why there are none."""

    shares: dict[str, float] = field(default_factory=dict)
    budget: float | None = None
    """The rung at which the trials were compared."""
    num_trials: int = 0
    method: str = ""
    absent: str = ""


def find_importance(tune: TuneConfig, rows: Sequence[Row]) -> Importance:
    """Importances of the axes for the metric, by fANOVA, at the first rung that enough trials reached.

    It is a rung of the present schedule; a folder may also hold measurements of an earlier one. Trials that
    were not measured there are left out.
    """
    if tune.scheduler == "pbt":
        return Importance(
            absent="trials of a population change their settings during training: axes have no importance"
        )
    try:
        import optuna
        import sklearn  # noqa: F401  Optuna's fANOVA is one of its forests
    except ImportError as error:
        return Importance(absent=f"the axes' importance needs {error.name}; type: pip install 'proav[tune]'")
    measured = {
        budget: [(row.point, rung["score"]) for row in rows for rung in row.rungs if rung["budget"] == budget]
        for budget in tune.rungs
    }
    budget = next((rung for rung, found in measured.items() if len(found) >= MIN_TRIALS), None)
    if budget is None:
        return Importance(
            absent=(
                f"importance of the axes needs {MIN_TRIALS} trials measured at the same rung of this sweep; "
                f"there are {max(map(len, measured.values()))}"
            )
        )
    at = measured[budget]
    varied = [
        key
        for key in tune.axes
        if all(key in point for point, _ in at) and len({repr(point[key]) for point, _ in at}) > 1
    ]
    there = f"the {len(at)} trials measured after {budget_words(tune, budget)}"
    if not varied:
        return Importance(absent=f"{there} differ in no axis that all of them have: none has an importance")
    if len({score for _, score in at}) < 2:
        return Importance(absent=f"{there} have equal scores: there are no differences to explain")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize")
    distributions = {key: _distribution(optuna, tune, key) for key in varied}
    for point, score in at:
        parameters = {key: _parameter(tune, key, point[key]) for key in varied}
        study.add_trial(
            optuna.trial.create_trial(params=parameters, distributions=distributions, value=score)
        )
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=tune.seed)
    shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return Importance(
        shares={key: float(share) for key, share in sorted(shares.items(), key=lambda pair: -pair[1])},
        budget=budget,
        num_trials=len(at),
        method="Optuna's fANOVA: shares of the variance that a random forest over the axes explains",
    )


def _distribution(optuna, tune: TuneConfig, key: str):
    axis = tune.space[key]
    if axis.listed is not None:
        return optuna.distributions.CategoricalDistribution(range(len(axis.listed)))
    if axis.integer is not None:
        return optuna.distributions.IntDistribution(*axis.integer)
    low, high = axis.uniform or axis.loguniform
    return optuna.distributions.FloatDistribution(low, high, log=axis.loguniform is not None)


def _parameter(tune: TuneConfig, key: str, value):
    axis = tune.space[key]
    return axis.listed.index(value) if axis.listed is not None else value
