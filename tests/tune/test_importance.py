"""Importance of the axes: large for an axis that matters, and a reason if it cannot be computed."""

import builtins

import pytest

from proav.tune.axes import grid_points
from proav.tune.importance import find_importance
from proav.tune.rows import Row
from tests.tune.test_space import GROUPS, SCALES, sweep_config


def rows_of(tune, score):
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
            rungs=[{"budget": 8, "score": score(point)}],
        )
        for number, point in enumerate(grid_points(tune))
    ]


def test_the_axis_that_matters_is_first_and_shares_add_up():
    pytest.importorskip("optuna")
    pytest.importorskip("sklearn")
    tune = sweep_config().tune
    found = find_importance(tune, rows_of(tune, lambda point: 0.1 * len(point[SCALES]) + point[GROUPS]))
    assert list(found.shares) == [GROUPS, SCALES] and found.shares[GROUPS] > 0.9
    assert sum(found.shares.values()) == pytest.approx(1) and found.num_trials == 6 and not found.absent
    assert found == find_importance(
        tune, rows_of(tune, lambda point: 0.1 * len(point[SCALES]) + point[GROUPS])
    )


def test_too_few_trials_have_none():
    tune = sweep_config().tune
    assert (
        "needs 4 measured trials that differ; there are 3"
        in find_importance(tune, rows_of(tune, lambda _: 1.0)[:3]).absent
    )
    assert not find_importance(tune, rows_of(tune, lambda _: 1.0)).shares


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
