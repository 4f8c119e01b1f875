"""Exponential moving average of the weights, with its length given in clips.

By EDM2's rule the half-life grows with training, so that early averages forget the initialization. The
average covers the shards of weights that the engine keeps on this rank; `engines/` gathers them.
"""

import torch


def ema_decay(*, batch_clips: int, clips: int, half_life_clips: float, ramp_up: float) -> float:
    """The share that the old average keeps in one step, in [0, 1].

    0.5 ** (batch_clips / half_life), half_life = min(half_life_clips, ramp_up * clips).

    batch_clips: clips of the step.
    clips: clips seen in training, including those of the step.
    half_life_clips: longest half-life, in clips.
    ramp_up: longest half-life as a share of `clips`.
    """
    half_life = min(half_life_clips, ramp_up * clips)
    return 0.5 ** (batch_clips / max(half_life, 1e-8))


class ExponentialMovingAverage:
    """The fp32 average of this rank's shards of the weights.

    Up to ZeRO stage 2 a shard is a whole tensor, at stage 3 a slice. In both cases the update is local: it
    needs no communication, and 4 bytes for each weight on the rank.
    """

    def __init__(self, shards: dict[str, torch.Tensor], *, half_life_clips: float, ramp_up: float) -> None:
        self.half_life_clips, self.ramp_up = half_life_clips, ramp_up
        self.shards = {name: shard.detach().to(torch.float32, copy=True) for name, shard in shards.items()}

    @torch.no_grad()
    def update(self, shards: dict[str, torch.Tensor], *, clips: int, batch_clips: int) -> None:
        """average <- decay * average + (1 - decay) * weights, after a step; arguments as in `ema_decay`."""
        decay = ema_decay(
            batch_clips=batch_clips, clips=clips, half_life_clips=self.half_life_clips, ramp_up=self.ramp_up
        )
        averages = list(self.shards.values())
        torch._foreach_lerp_(averages, [shards[name].detach().float() for name in self.shards], 1 - decay)

    def load(self, shards: dict[str, torch.Tensor]) -> None:
        """Replaces the current average by a saved one."""
        for name, average in self.shards.items():
            average.copy_(shards[name])
