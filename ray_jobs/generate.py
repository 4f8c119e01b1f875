"""New clips with picture and sound from the trained ST-DiT, as mp4 files, with Ray Data."""

from proav.command_line import Config, run_job


def main(config: Config) -> None:
    from proav.generation.batch import generate
    from proav.reports.run_page import write_report

    outcome = generate(config)
    print(f"generate: {write_report(config)}; {outcome}")


if __name__ == "__main__":
    run_job(main, description=__doc__)
