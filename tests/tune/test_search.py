"""Points one after the other: none twice, none left out, and what was measured before is known."""

import json
import pickle

import pytest

from proav.errors import ConfigError
from proav.tune.axes import is_on_axes
from proav.tune.search import OptunaPoints, PlannedPoints, TrialSearcher
from proav.tune.space import make_trial
from tests.tune.test_space import GROUPS, SCALES, sweep_config


def asked(points, count, score=lambda point: 0.0):
    found = []
    while len(found) < count and (point := points.ask()) is not None:
        points.tell(point, score(point))
        found.append(point)
    return found


def test_optuna_tries_every_point_once_and_then_ends():
    pytest.importorskip("optuna", reason="Optuna is not installed: pip install 'proav[tune]'")
    points = pickle.loads(
        pickle.dumps(OptunaPoints(sweep_config("tune.search=optuna").tune))
    )  # Ray Tune pickles its searcher
    found = asked(points, 99)
    assert len(found) == 6 == len({json.dumps(point) for point in found})


def test_optuna_finds_what_is_good_sooner_than_chance():
    """Only one axis of two matters. A third of the proposals are random; of the rest, more than by chance are
    near the best value of that axis."""
    pytest.importorskip("optuna", reason="Optuna is not installed: pip install 'proav[tune]'")
    tune = sweep_config(
        "tune.axes={mdsa.width: [8,16,24,32,40,48,56,64], mdsa.train.learning_rate: [1,2,3,4,5,6,7,8]}",
        "tune.num_trials=24",
    ).tune
    found = asked(OptunaPoints(tune), 24, score=lambda point: -abs(point["mdsa.width"] - 40))
    assert sum(abs(point["mdsa.width"] - 40) <= 8 for point in found[8:]) > 16 * 3 / 8


def test_known_points_come_first_and_are_not_proposed_again():
    pytest.importorskip("optuna", reason="Optuna is not installed: pip install 'proav[tune]'")
    known = [{SCALES: [1, 2], GROUPS: 4}, {SCALES: [1], GROUPS: 2}]
    found = asked(OptunaPoints(sweep_config("tune.search=optuna").tune, known), 99)
    assert found[:2] == known and len({json.dumps(point) for point in found}) == 6


def test_optuna_proposes_ranges_under_conditions_and_leaves_out():
    pytest.importorskip("optuna", reason="Optuna is not installed: pip install 'proav[tune]'")
    tune = sweep_config(
        "tune.axes={mdsa.train.optimizer: [adamw, muon], "
        "mdsa.train.learning_rate: {loguniform: [1.0e-4, 1.0e-2]}, "
        "mdsa.train.muon_momentum: {uniform: [0.8, 0.95], step: 0.05, when: {mdsa.train.optimizer: muon}}, "
        "mdsa.width: {integer: [16, 48], step: 16}}",
        "tune.leave_out=[{mdsa.train.optimizer: adamw, mdsa.width: 48}]",
        "tune.search=optuna", "tune.num_trials=24",
    ).tune  # fmt: skip
    found = asked(OptunaPoints(tune), 24, score=lambda point: -point["mdsa.train.learning_rate"])
    assert len({json.dumps(point) for point in found}) == 24 and all(
        is_on_axes(tune, point) for point in found
    )
    assert {"adamw", "muon"} == {point["mdsa.train.optimizer"] for point in found}
    again = OptunaPoints(tune, found[:5])
    assert asked(again, 5) == found[:5]


def test_a_point_that_cannot_be_run_is_left_out_and_reported(capsys):
    config = sweep_config()

    def begin(point):
        if point[GROUPS] == 4:
            raise ConfigError("four is too many")
        return make_trial(config, point, data_hash="abc")

    searcher = TrialSearcher(PlannedPoints([{SCALES: [1], GROUPS: 4}, {SCALES: [1], GROUPS: 2}]), begin)
    assert json.loads(searcher.suggest("x")["point"]) == {SCALES: [1], GROUPS: 2}
    assert searcher.suggest("y") == TrialSearcher.FINISHED
    assert "four is too many" in capsys.readouterr().out
