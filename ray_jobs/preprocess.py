"""Videos with sound -> aligned segments in Parquet shards, with Ray Data."""

from proav.config import Config
from proav.jobs import run_job


def main(config: Config) -> None:
    from proav.data.preprocess import preprocess
    from proav.report import write_data_report

    preprocess(config)
    print(f"preprocess: {write_data_report(config)}")


if __name__ == "__main__":
    run_job(main, description=__doc__, records=True)
