"""Sweeps: many MDSAs that differ in a few settings, each a Ray Train run, compared at equal numbers of clips seen.

`space.py` says which trials there are, `trial.py` what one does, `sweep.py` runs them under Ray Tune, `record.py` keeps what each has reached,
`results.py` and `page.py` tell how it went.
"""
