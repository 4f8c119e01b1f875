"""Importance of the axes: large for an axis that matters, and a reason if it cannot be computed."""

import builtins
import importlib.util
from dataclasses import replace

import pytest

from proav.tune.axes import grid_points
from proav.tune.importance import find_importance
from proav.tune.rows import Row
from tests.tune.test_space import GROUPS, SCALES, sweep_config

needs_forests = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("optuna", "sklearn"))), reason="needs optuna and sklearn"
)


def rows_of(tune, score, budget=8):
    return [
        Row(
            trial=str(number),
            point=point,
            status="finished",
            reason="",
            pareto=False,
            clips=8,
            psnr_db=1.0,
            mel_error_db=1.0,
            score=1.0,
            parameters=1,
            flops_per_clip=1,
            clips_per_second=1.0,
            peak_memory_gib=1.0,
            seconds=1.0,
            rungs=[{"budget": budget, "score": score(point)}],
        )
        for number, point in enumerate(grid_points(tune))
    ]


@needs_forests
def test_the_axis_that_matters_is_first_and_shares_add_up():
    tune = sweep_config().tune
    found = find_importance(tune, rows_of(tune, lambda point: 0.1 * len(point[SCALES]) + point[GROUPS]))
    assert list(found.shares) == [GROUPS, SCALES] and found.shares[GROUPS] > 0.9
    assert sum(found.shares.values()) == pytest.approx(1) and found.num_trials == 6 and not found.absent
    assert found == find_importance(
        tune, rows_of(tune, lambda point: 0.1 * len(point[SCALES]) + point[GROUPS])
    )


@needs_forests
def test_each_lack_has_its_own_reason():
    tune = sweep_config().tune
    few, equal = rows_of(tune, lambda point: point[GROUPS])[:3], rows_of(tune, lambda _: 1.0)
    same = [replace(row, point=few[0].point, rungs=few[n % 3].rungs) for n, row in enumerate(equal)]
    for rows, said in (
        ([], "needs 4 trials measured at the same rung of this sweep; there are 0"),
        (few, "needs 4 trials measured at the same rung of this sweep; there are 3"),
        (equal, "the 6 trials measured after 8 clips have equal scores"),
        (same, "the 6 trials measured after 8 clips differ in no axis"),
    ):
        found = find_importance(tune, rows)
        assert said in found.absent and not found.shares


@needs_forests
def test_measurements_of_an_earlier_schedule_are_left_out():
    tune = sweep_config().tune
    old, new = (rows_of(tune, lambda point: float(point[GROUPS]), budget=budget) for budget in (4, 8))
    found = find_importance(tune, [*old[:3], *new])
    assert (found.budget, found.num_trials, found.absent) == (8, 6, "")
    found = find_importance(tune, [*old, *new[:3]])
    assert "there are 3" in found.absent
    later = rows_of(tune, lambda point: float(point[GROUPS]), budget=16)
    found = find_importance(tune, [*new[:3], *later])
    assert (found.budget, found.num_trials) == (16, 6)


def test_without_the_library_it_says_what_to_type(monkeypatch):
    whole = builtins.__import__

    def without(name, *arguments, **options):
        if name == "sklearn":
            raise ImportError("no", name="sklearn")
        return whole(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    tune = sweep_config().tune
    absent = find_importance(tune, rows_of(tune, lambda point: point[GROUPS])).absent
    assert absent == "the axes' importance needs sklearn; type: pip install 'proav[tune]'"
