"""Which point comes next: planned ones in order, or Optuna's proposals; behind Ray Tune's Searcher, one class for all three searches.

Points are tried once: what was measured before the start comes first and is only replayed, so that scheduler and sampler know of it.
"""

import json
from collections.abc import Callable, Sequence
from typing import Protocol

from ray.tune.search import Searcher

from proav.config import TuneConfig
from proav.errors import ConfigError, UserError
from proav.tune.space import Point, Trial, describe, num_combinations, num_trials, random_points

MAX_REPEATS = 100
"""Proposals of points that were tried already, before one that was not is drawn at random."""


class Points(Protocol):
    """A source of points, each given out once."""

    def ask(self) -> Point | None:
        """The next point; None where there are no more."""

    def tell(self, point: Point, score: float | None) -> None:
        """How it went: its last score, None where there is none."""


class PlannedPoints:
    """Points in the order given; results change nothing."""

    def __init__(self, points: Sequence[Point]) -> None:
        self.left = list(points)

    def ask(self) -> Point | None:
        return self.left.pop(0) if self.left else None

    def tell(self, point: Point, score: float | None) -> None:
        pass


class OptunaPoints:
    """Optuna's TPE over the values of each axis; `known` points are given out first. Raises UserError where Optuna is not installed."""

    def __init__(self, tune: TuneConfig, known: Sequence[Point] = ()) -> None:
        try:
            import optuna
        except ImportError:
            raise UserError(
                "tune.search=optuna needs Optuna; type: pip install 'proav[tune]', or write tune.search=random"
            ) from None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.tune, self.axes, self.known = tune, tune.axes, list(known)
        self.fail = optuna.trial.TrialState.FAIL
        # The first third is drawn at random. A resumed sweep has another seed than it began with: the same one would draw the same points again.
        sampler = optuna.samplers.TPESampler(
            seed=tune.seed + len(self.known), n_startup_trials=min(10, max(2, num_trials(tune) // 3))
        )
        self.study = optuna.create_study(direction="maximize", sampler=sampler)
        self.distributions = {
            key: optuna.distributions.CategoricalDistribution(range(len(values)))
            for key, values in tune.axes.items()
        }
        self.asked: dict[str, object] = {}

    def ask(self) -> Point | None:
        if self.known:
            return self._ask_for(self.known.pop(0))
        for _ in range(MAX_REPEATS):
            trial = self.study.ask(self.distributions)
            point = {key: self.axes[key][place] for key, place in trial.params.items()}
            if json.dumps(point) not in self.asked:
                self.asked[json.dumps(point)] = trial
                return point
            self.study.tell(trial, state=self.fail)
        drawn = random_points(self.tune, seed=self.tune.seed, count=num_combinations(self.tune))
        point = next((point for point in drawn if json.dumps(point) not in self.asked), None)
        return None if point is None else self._ask_for(point)

    def tell(self, point: Point, score: float | None) -> None:
        trial = self.asked[json.dumps(point)]
        if score is None:
            self.study.tell(trial, state=self.fail)
        else:
            self.study.tell(trial, score)

    def _ask_for(self, point: Point) -> Point:
        self.study.enqueue_trial({key: self.axes[key].index(value) for key, value in point.items()})
        self.asked[json.dumps(point)] = self.study.ask(self.distributions)
        return point


class TrialSearcher(Searcher):
    """Gives Ray Tune trials from `points`; `begin` makes a point a trial and raises ConfigError where it cannot be run."""

    def __init__(self, points: Points, begin: Callable[[Point], Trial]) -> None:
        super().__init__(metric="score", mode="max")
        self.points, self.begin = points, begin
        self.given: dict[str, Point] = {}

    def suggest(self, trial_id: str) -> dict | str:
        """{"trial": id, "point": JSON}. Keys with dots in them would be taken apart by Ray Tune."""
        while (point := self.points.ask()) is not None:
            try:
                trial = self.begin(point)
            except (
                ConfigError
            ) as error:  # where the combinations were too many to look at all before the start
                print(f"tune: left out {describe(point)}: {error}")
                self.points.tell(point, None)
                continue
            self.given[trial_id] = point
            return {"trial": trial.id, "point": json.dumps(point)}
        return Searcher.FINISHED

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        self.points.tell(self.given[trial_id], None if error else (result or {}).get("score"))

    def save(self, checkpoint_path: str) -> None:
        """Nothing: a sweep goes on from its trials' records."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, likewise."""
