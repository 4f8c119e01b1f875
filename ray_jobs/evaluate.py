"""Measures a run (reconstructions, loss, samples) or two folders of clips; every number has its protocol."""

from proav.command_line import Config, run_job


def main(config: Config) -> None:
    from proav.evaluate.job import evaluate
    from proav.reports.run_page import write_report

    evaluate(config)
    print(f"evaluate: {write_report(config)}")


if __name__ == "__main__":
    run_job(main, description=__doc__)
