"""All steps, small: prepare real clips, train all models, make new clips, measure them, write a page."""

import time

from proav.command_line import Config, run_job


def main(config: Config) -> None:
    from proav.data.prepare.preprocess import preprocess
    from proav.evaluate.job import evaluate
    from proav.generation.batch import generate
    from proav.latents.encode import encode_latents
    from proav.reports.run_page import write_data_report, write_report
    from proav.runs.progress import duration
    from proav.train.on_ray.launch import train_stage

    began = time.monotonic()
    preprocess(config)
    write_data_report(config)
    train_stage(config, "mdsa")
    encode_latents(config, replace_unused=True)
    train_stage(config, "stdit")
    if config.generate.stage == "distill":
        train_stage(config, "distill")
    generate(config)
    evaluate(config)
    page = write_report(config)
    print(f"demo: all done in {duration(time.monotonic() - began)}; open {page} in a browser")


def plan(config: Config) -> None:
    from proav.runs.stages import stages_in_turn
    from proav.train.checks import check_stages
    from proav.train.start import check_starts

    check_stages(config, *stages_in_turn(config))
    check_starts(config, "mdsa", "stdit")


if __name__ == "__main__":
    run_job(main, description=__doc__, records=True, trains=True, plan=plan)
