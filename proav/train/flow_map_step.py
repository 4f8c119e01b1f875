"""One training step of a flow map: latents -> pairs of times -> where it arrives -> the teacher's velocity.

The student starts as a copy of its teacher, a trained flow, and learns to go many of its steps at once.
Every draw is a function of (seed, clip position). Not here: the formulas of the target
(`proav/diffusion/flow_maps.py`), sampling (`proav/diffusion/solvers.py`). B clips, D latent channels, P=6
planes, N plane side.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from proav.config import Config
from proav.diffusion.flow_maps import draw_time_pairs, flow_map_target, last_step, step_along
from proav.diffusion.modalities import denoising_loss
from proav.diffusion.tasks import draw_tasks
from proav.generation.denoise import guided_prediction
from proav.train.engines import Engine
from proav.train.generator_step import GeneratorStep
from proav.train.loop import Parts, StepOutput, mean_part

STEADY = 0.02
"""Added to the loss of a clip before its weight is taken, so that small losses do not get huge weights; our
choice."""
SPAN_BUCKETS = 4
"""The squared error is also reported by the length of the span t - r, in this many equal classes."""


class FlowMapStep(GeneratorStep):
    """Loss of the average velocity against its target, on stored latents.

    config: of the run.
    teacher: a trained flow, whole on every worker; its weights stay.
    data: number of labels and statistics of the latents, as in GeneratorStep.
    """

    def __init__(self, config: Config, *, teacher: nn.Module, **data) -> None:
        super().__init__(config, **data)
        self.teacher = teacher.requires_grad_(False).eval()

    def loss(self, engine: Engine, batch: dict, clips: int) -> StepOutput:
        """Mean over clips of l / (l + c), l: the squared error of u(z_t, t, r) on planes that are not given.

        c is STEADY. The denominator has no gradient, so it acts as a weight of the clip, as in MeanFlow.
        Without it the longest spans t - r would dominate: their errors are a hundred times those of short
        ones.

        The target takes two more forward passes without gradients: the student's to a time just before r, and
        the teacher's from there (of twice as many clips if there is guidance). Forward-mode derivatives are
        not used: they would bypass ZeRO's hooks, and fused attention has none. Arguments as in GeneratorStep.
        """
        settings, device = self.config.distill, engine.device
        draw = draw_tasks(self.config.seed, batch["position"], self.config)
        times_B2, next_B2 = draw_time_pairs(
            self.config.seed, batch["position"], draw.names, draw.given_B2, settings.time_shift
        )
        made = self.add_noise(batch, replace(draw, times_B2=times_B2), device)
        last_B2, share_B2 = (
            values.to(device)
            for values in last_step(times_B2, next_B2, settings.time_step, settings.time_shift)
        )
        next_B2 = next_B2.to(device)
        with torch.no_grad():
            before_BDPNN = engine.forward(made.noisy_BDPNN, made.times_B2, made.conditions, last_B2)
            state_BDPNN = step_along(before_BDPNN, made.noisy_BDPNN, made.times_B2, last_B2)
            scales_B2 = torch.tensor([settings.guidance_scales], device=device).expand(len(times_B2), 2)
            with engine.autocast():
                velocity_BDPNN = guided_prediction(
                    self.teacher, state_BDPNN, last_B2, made.conditions, scales_B2
                )
        prediction_BDPNN = engine.forward(made.noisy_BDPNN, made.times_B2, made.conditions, next_B2)
        target_BDPNN = flow_map_target(velocity_BDPNN, prediction_BDPNN.detach(), before_BDPNN, share_B2)
        losses_B = denoising_loss(prediction_BDPNN, target_BDPNN, made.given_B2, self.own_DP.to(device))
        weighted_B = losses_B / (losses_B.detach() + STEADY)
        parts = _by_span(losses_B.detach(), (made.times_B2 - next_B2).amax(1))
        return StepOutput(weighted_B.mean(), {"squared_error": mean_part(losses_B), **parts})


def _by_span(losses_B: Tensor, spans_B: Tensor) -> Parts:
    """The squared error of each class of spans, which are in [0, 1]."""
    bucket_B = (spans_B * SPAN_BUCKETS).long().clamp(max=SPAN_BUCKETS - 1)
    parts = {}
    for bucket in range(SPAN_BUCKETS):
        inside_B = (bucket_B == bucket).to(losses_B)
        name = f"squared_error_span_{bucket + 1}_of_{SPAN_BUCKETS}"
        parts[name] = ((losses_B * inside_B).sum(), inside_B.sum())
    return parts
