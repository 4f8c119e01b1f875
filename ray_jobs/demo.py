"""The whole road, small: prepare real clips, train MDSA and ST-DiT on them, make new clips, measure, and write a page to play them."""

import time

from proav.jobs import Config, run_job


def main(config: Config) -> None:
    from proav.batch import generate
    from proav.data.latents import encode_latents
    from proav.data.preprocess import preprocess
    from proav.evaluate.job import evaluate
    from proav.progress import duration
    from proav.report import write_data_report, write_report
    from proav.train.launch import train_stage

    began = time.monotonic()
    preprocess(config)
    write_data_report(config)
    train_stage(config, "mdsa")
    encode_latents(config, replace_unused=True)
    train_stage(config, "stdit")
    generate(config)
    evaluate(config)
    page = write_report(config)
    print(f"demo: all done in {duration(time.monotonic() - began)}; open {page} in a browser")


if __name__ == "__main__":
    run_job(main, description=__doc__, records=True, trains=True)
