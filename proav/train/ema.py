"""Exponential moving average of the weights, with its length given in clips.

Follows EDM2's rule: the half-life grows with training, so that early averages forget the initialization.
It averages whatever shards of the weights the engine keeps on this rank; gathering them is the engine's business.
"""

import torch


def ema_decay(*, batch_clips: int, clips: int, half_life_clips: float, ramp_up: float) -> float:
    """The share that the old average keeps when `batch_clips` clips have brought training to `clips` clips.

    0.5 ** (batch_clips / half_life), half_life = min(half_life_clips, ramp_up * clips).
    """
    half_life = min(half_life_clips, ramp_up * clips)
    return 0.5 ** (batch_clips / max(half_life, 1e-8))


class ExponentialMovingAverage:
    """The fp32 average of this rank's shards of the weights.

    Up to ZeRO stage 2 a shard is a whole tensor, at stage 3 a slice; the update is local in both cases and costs no communication,
    4 bytes per weight kept on the rank.
    """

    def __init__(self, shards: dict[str, torch.Tensor], *, half_life_clips: float, ramp_up: float) -> None:
        self.half_life_clips, self.ramp_up = half_life_clips, ramp_up
        self.shards = {name: shard.detach().to(torch.float32, copy=True) for name, shard in shards.items()}

    @torch.no_grad()
    def update(self, shards: dict[str, torch.Tensor], *, clips: int, batch_clips: int) -> None:
        """average <- decay * average + (1 - decay) * weights, after the step that brought training to `clips` clips."""
        decay = ema_decay(
            batch_clips=batch_clips, clips=clips, half_life_clips=self.half_life_clips, ramp_up=self.ramp_up
        )
        averages = list(self.shards.values())
        torch._foreach_lerp_(averages, [shards[name].detach().float() for name in self.shards], 1 - decay)

    def load(self, shards: dict[str, torch.Tensor]) -> None:
        """Puts a saved average in place of the current one."""
        for name, average in self.shards.items():
            average.copy_(shards[name])
