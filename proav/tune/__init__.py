"""Sweeps: trainings that differ in a few settings, each a Ray Train run, compared at equal budgets.

`axes.py` says which points there are, `allowed.py` which settings may vary, `space.py` what a trial is,
`budgets.py` how long it lasts, `repeats.py` what its seeds say, `metrics.py` what it is judged by. `trial.py`
and `trial_measure.py` are what one does, `sweep.py` runs them under Ray Tune (`search.py`, `population.py`),
`record.py` keeps what each has reached, `results.py` and `sweep_page.py` tell how it went.
"""
