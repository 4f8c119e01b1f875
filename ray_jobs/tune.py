"""A sweep over any settings with Ray Tune. Trials are Ray Train runs. It leaves a table, Pareto plots, and
the best configuration for train.py.
"""

from proav.command_line import Config, run_job
from proav.tune.space import plan_text


def main(config: Config) -> None:
    from proav.tune.sweep import sweep

    sweep(config)


if __name__ == "__main__":
    run_job(main, description=__doc__, records=True, trains=True, plan=plan_text)
