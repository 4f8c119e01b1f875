"""New clips with picture and sound from the trained ST-DiT, as mp4 files, with Ray Data."""

from proav.jobs import Config, run_job


def main(config: Config) -> None:
    from proav.batch import generate
    from proav.report import write_report

    generate(config)
    print(f"generate: {write_report(config)}")


if __name__ == "__main__":
    run_job(main, description=__doc__)
