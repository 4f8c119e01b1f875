"""Windows of the prepared segments -> latents of the trained MDSA, joint and lone, with Ray Data."""

from proav.command_line import Config, run_job


def main(config: Config) -> None:
    from proav.latents.encode import encode_latents

    encode_latents(config)


def plan(config: Config) -> str:
    from proav.latents.encode import size_text

    return size_text(config)


if __name__ == "__main__":
    run_job(main, description=__doc__, plan=plan)
