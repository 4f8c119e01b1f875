"""Sweeps: trainings that differ in a few settings, each a Ray Train run, compared at equal budgets.

`axes.py` defines the points of a sweep, `allowed.py` the settings that may vary, `space.py` the trial at a
point, `budgets.py` its length, `repeats.py` the statistics over its seeds, `metrics.py` what it is judged by.
`trial.py` and `trial_measure.py` run one trial. `sweep.py` runs all of them under Ray Tune (`search.py`,
`population.py`). `record.py` keeps what each has reached. `results.py` and `sweep_page.py` report the result.
"""
