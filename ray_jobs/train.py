"""Train MDSA (stage=mdsa) or ST-DiT (stage=stdit) with Ray Train and DeepSpeed.

stage=distill turns the trained ST-DiT into a flow map, which samples in few steps.
Without a stage: train MDSA, encode the latents, train ST-DiT, and with generate.stage=distill its flow map,
each unless it is done.
"""

from proav.command_line import Config, run_job


def main(config: Config) -> None:
    from proav.latents.encode import encode_latents
    from proav.train.on_ray.launch import train_stage

    if config.stage is not None:
        train_stage(config, config.stage)
        return
    train_stage(config, "mdsa")
    encode_latents(config, replace_unused=True)
    train_stage(config, "stdit")
    if config.generate.stage == "distill":
        train_stage(config, "distill")


def plan(config: Config) -> None:
    from proav.runs.stages import stages_in_turn
    from proav.train.checks import check_stages
    from proav.train.start import check_starts

    stages = stages_in_turn(config) if config.stage is None else (config.stage,)
    check_stages(config, *stages)
    check_starts(config, *(stage for stage in stages if stage != "distill"))


if __name__ == "__main__":
    run_job(main, description=__doc__, records=True, trains=True, plan=plan)
