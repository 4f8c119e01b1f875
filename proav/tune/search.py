"""Which point comes next: planned ones in order, or the proposals of Ray Tune's OptunaSearch.

One Searcher serves both. Points are tried once. Points that were measured in an earlier run come first and
are only replayed, so that the scheduler and the sampler know their results.
"""

import json
from collections.abc import Callable, Sequence
from typing import Protocol

from ray.tune.search import Searcher

from proav.config import TuneConfig
from proav.errors import ConfigError, UserError
from proav.tune.axes import (
    Point,
    clamped,
    describe,
    in_order,
    is_active,
    is_left_out,
    num_combinations,
    num_trials,
    random_points,
)
from proav.tune.space import Trial

MAX_REPEATS = 100
"""After this many proposals of points that were tried before, a new point is drawn at random."""


class Points(Protocol):
    """A source of points. It gives each point once."""

    def ask(self) -> Point | None:
        """The next point; None if there are no more."""

    def tell(self, point: Point, score: float | None) -> None:
        """Takes the last score of a point; None if it has none."""


class PlannedPoints:
    """Points in the given order, whatever their results."""

    def __init__(self, points: Sequence[Point]) -> None:
        self.left = list(points)

    def ask(self) -> Point | None:
        return self.left.pop(0) if self.left else None

    def tell(self, point: Point, score: float | None) -> None:
        pass


class OptunaPoints:
    """Ray Tune's OptunaSearch (TPE) over lists, ranges and conditions; `known` points come first.

    Raises UserError if Optuna is not installed.
    """

    def __init__(self, tune: TuneConfig, known: Sequence[Point] = ()) -> None:
        try:
            import optuna
        except ImportError:
            raise UserError(
                "tune.search=optuna needs Optuna; type: pip install 'proav[tune]', or write "
                "tune.search=random"
            ) from None
        from ray.tune.search.optuna import OptunaSearch

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.tune, self.space = tune, _Space(tune)
        # The first points are drawn at random: a third of them, at least 2 and at most 10. A resumed sweep
        # uses another seed, as the same one would draw the same points again.
        startup = min(10, max(2, num_trials(tune) // 3))
        sampler = optuna.samplers.TPESampler(seed=tune.seed + len(known), n_startup_trials=startup)
        begun = [self.space.parameters(point) for point in known]
        self.search = OptunaSearch(
            self.space, metric="score", mode="max", sampler=sampler, points_to_evaluate=begun
        )
        self.names: dict[str, str] = {}
        self.asked = 0

    def ask(self) -> Point | None:
        for _ in range(MAX_REPEATS):
            self.asked += 1
            name = str(self.asked)
            point = self.space.point(self.search.suggest(name))
            text = json.dumps(point, sort_keys=True)
            if text not in self.names and not is_left_out(self.tune, point):
                self.names[text] = name
                return point
            self.search.on_trial_complete(name, error=True)
        most = num_combinations(self.tune) or num_trials(self.tune)
        for point in random_points(self.tune, seed=self.tune.seed, count=most):
            if json.dumps(point, sort_keys=True) not in self.names:
                self.names[json.dumps(point, sort_keys=True)] = ""
                return point
        return None

    def tell(self, point: Point, score: float | None) -> None:
        name = self.names[json.dumps(point, sort_keys=True)]
        if name:  # Optuna proposed the point; otherwise it was drawn at random
            self.search.on_trial_complete(
                name, None if score is None else {"score": score}, error=score is None
            )


class _Space:
    """The axes as an Optuna search space. A list is given as an index: its values may be of any type."""

    def __init__(self, tune: TuneConfig) -> None:
        self.tune, self.order, self.axes = tune, in_order(tune), tune.space

    def __call__(self, trial) -> None:
        point: Point = {}
        for key in self.order:
            if is_active(self.axes[key], point):
                point[key] = self._value(key, self._suggest(trial, key))

    def point(self, parameters: dict) -> Point:
        return {key: self._value(key, parameters[key]) for key in self.tune.axes if key in parameters}

    def parameters(self, point: Point) -> dict:
        return {
            key: self.axes[key].listed.index(value) if self.axes[key].listed is not None else value
            for key, value in point.items()
        }

    def _suggest(self, trial, key: str):
        axis = self.axes[key]
        if axis.listed is not None:
            return trial.suggest_categorical(key, range(len(axis.listed)))
        if axis.integer is not None:
            return trial.suggest_int(key, axis.choices[0], axis.choices[-1], step=int(axis.step or 1))
        if axis.step is not None:
            return trial.suggest_float(key, axis.choices[0], axis.choices[-1], step=axis.step)
        low, high = axis.uniform or axis.loguniform
        return trial.suggest_float(key, low, high, log=axis.loguniform is not None)

    def _value(self, key: str, suggested):
        axis = self.axes[key]
        return axis.listed[suggested] if axis.listed is not None else clamped(axis, suggested)


class TrialSearcher(Searcher):
    """Gives Ray Tune trials from `points`.

    `begin` makes a trial from a point; it raises ConfigError if the point cannot be run.
    """

    def __init__(self, points: Points, begin: Callable[[Point], Trial]) -> None:
        super().__init__(metric="score", mode="max")
        self.points, self.begin = points, begin
        self.given: dict[str, Point] = {}

    def suggest(self, trial_id: str) -> dict | str:
        """{"trial": id, "point": JSON}. The point is text because Ray Tune would split keys at their dots."""
        while (point := self.points.ask()) is not None:
            try:
                trial = self.begin(point)
            except ConfigError as error:  # there were too many combinations to check all before the start
                print(f"tune: left out {describe(point)}: {error}")
                self.points.tell(point, None)
                continue
            self.given[trial_id] = point
            return {"trial": trial.id, "point": json.dumps(point)}
        return Searcher.FINISHED

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        self.points.tell(self.given[trial_id], None if error else (result or {}).get("score"))

    def save(self, checkpoint_path: str) -> None:
        """Saves nothing: a sweep is resumed from its trials' records."""

    def restore(self, checkpoint_path: str) -> None:
        """Restores nothing: a sweep is resumed from its trials' records."""
