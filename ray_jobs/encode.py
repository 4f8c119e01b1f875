"""Windows of the prepared segments -> latents of the trained MDSA, joint and lone, with Ray Data."""

from proav.config import Config
from proav.jobs import run_job


def main(config: Config) -> None:
    from proav.data.latents import encode_latents

    encode_latents(config)


if __name__ == "__main__":
    run_job(main, description=__doc__)
