"""Noise processes, their solvers, tasks and conditions: plain PyTorch mathematics over the stacked latents.

Not here: the model (`proav/models/stdit`), data (`proav/data`) and the sampling loop (`proav/generation`).
The processes have the same methods: `RectifiedFlow` (default), `FlowMap` (a flow in few steps) and `DDPM`
(the settings of PVDM). `make_process` chooses one by the configuration. Follows "ProAV-DiT", Figure 2 (b).
Letters: B clips, D channels, P=6 planes, N plane side.
"""

from proav.config import Config
from proav.diffusion.ddpm import DDPM
from proav.diffusion.flow import FlowMap, RectifiedFlow

__all__ = ["DDPM", "FlowMap", "RectifiedFlow", "make_process"]


def make_process(config: Config) -> RectifiedFlow | DDPM:
    """The process that config.diffusion describes.

    Training uses its methods draw_times(uniforms), add_noise(clean, noise, times), target(clean, noise) and
    zero_prediction_loss(second_moment). Sampling uses times_of(steps, shift), shares(time), estimates(state,
    prediction, time), objective and eta. Times are in [0, 1]: 0 is clean, 1 is noise. In training they may
    differ between the modalities: times_B2, column 0 video, 1 audio.
    """
    settings = config.diffusion
    if settings.objective == "flow":
        return RectifiedFlow(settings.time_sampling, settings.time_shift)
    if settings.objective == "flow_map":
        return FlowMap(guidance_scales=config.distill.guidance_scales)
    return DDPM(settings.ddpm_steps, settings.ddpm_beta_start, settings.ddpm_beta_end, settings.ddim_eta)
