"""Videos with sound -> aligned segments in Parquet shards, with Ray Data."""

from proav.command_line import Config, run_job


def main(config: Config) -> None:
    from proav.data.prepare.preprocess import preprocess
    from proav.reports.run_page import write_data_report

    preprocess(config)
    print(f"preprocess: {write_data_report(config)}")


def verify(config: Config) -> None:
    from proav.data.prepare.preprocess import verify_run

    verify_run(config)


if __name__ == "__main__":
    help_text = (
        "prepare nothing: read all prepared data again and check that nothing is missing, doubled, "
        "truncated or changed"
    )
    run_job(main, description=__doc__, records=True, instead={"--verify": (verify, help_text)})
