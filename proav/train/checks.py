"""What the stages need of the configuration, checked before anything begins. Plain torch.

Not here: the weights that a stage starts from (`start.py`).
"""

from proav.config import Config
from proav.diffusion import make_process
from proav.diffusion.solvers import find_solver
from proav.errors import UserError
from proav.generation.sampling_settings import SamplingSettings


def check_stages(config: Config, *stages: str) -> None:
    """Raises UserError if one of these stages, trained in turn, would be refused, or if no server could load
    its model.

    The checkpoint of an ST-DiT holds the section `generate` as the defaults of its samples, so its process
    must take them. A flow map has defaults of its own.

    stages: names of the stages that one command trains.
    """
    objective = config.diffusion.objective
    if "stdit" in stages and objective == "flow_map":
        raise UserError(
            "stage=stdit cannot train diffusion.objective=flow_map: a flow map is made from a trained "
            "flow; write diffusion.objective=flow, then train stage=distill"
        )
    if {"stdit", "distill"} <= set(stages) and objective != "flow" and not config.distill.teacher:
        raise UserError(
            f"generate.stage=distill with diffusion.objective={objective}: a flow map is made from a flow; "
            "write diffusion.objective=flow, or generate.stage=stdit to train no flow map"
        )
    if "stdit" not in stages:
        return
    try:
        find_solver(config.generate.solver, objective)
        SamplingSettings.from_config(config).filled(make_process(config))
    except UserError as error:
        raise UserError(
            f"generate.{str(error).removeprefix('generate.')}. The ST-DiT that stage=stdit trains has the "
            "section generate as its defaults, and could make no clips with them"
        ) from None
