"""Fits weights of a new model before its training: MDSA's linear planes, on the feed's first clips.

Not here: weights that are taken from a trained model (`start.py`).

The result depends on the seed, the data and the configuration alone. Worker 0 fits with one thread, whatever
the number of workers, and the others copy its weights exactly. The fit itself is in
`proav/models/mdsa/linear_planes.py`.
Letters: B clips, T frames, C channels, H W rows and columns, M mel bins, S mel columns in a frame.
"""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from proav.data.feeds.feed import ClipFeed
from proav.generation.coder import pixels_to_unit
from proav.media.melframes import one_torch_thread
from proav.models.mdsa import MDSA
from proav.train.resume import on_worker_0

CLIPS_AT_ONCE = 8
"""Clips of a batch of `FirstClips`."""


class FirstWeights(NamedTuple):
    """Where a new model's weights are from."""

    line: str
    """A sentence about it."""
    init_hash: str | None = None
    """The hash of the checkpoint that they were taken from, if they were."""


class FirstClips(Sequence):
    """The clips at positions 0 to num_clips - 1 of a feed, as MDSA reads them; they are made on demand.

    Batches are (video_BCTHW in [-1, 1], mel_BTMS). Positions beyond an epoch continue in the next epoch.
    """

    def __init__(self, feed: ClipFeed, num_clips: int) -> None:
        self.feed, self.num_clips = feed, num_clips

    def __len__(self) -> int:
        return -(-self.num_clips // CLIPS_AT_ONCE)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        first = index * CLIPS_AT_ONCE
        batch = self.feed.at(np.arange(first, min(first + CLIPS_AT_ONCE, self.num_clips)))
        return pixels_to_unit(batch["video"]), batch["mel"]


def fit_linear_planes(model: MDSA, feed: ClipFeed, num_clips: int) -> FirstWeights:
    """Fits the linear planes on the first clips of the feed."""
    started = time.monotonic()
    with one_torch_thread():  # the last bits depend on the number of threads
        model.fit_linear_planes(FirstClips(feed, num_clips))
    seconds = time.monotonic() - started
    return FirstWeights(f"linear planes fitted on {num_clips} clips in {seconds:.1f} s")


def fit_on_worker_0(
    model: nn.Module, fit: Callable[[nn.Module], FirstWeights], device: torch.device
) -> FirstWeights:
    """Runs `fit(model)` on worker 0; the others copy all its weights. Every worker calls it.

    device: the worker's device, for its collectives.
    Returns what `fit` returned, on every worker.
    """
    found = on_worker_0(lambda: fit(model))
    for weight in model.parameters() if dist.is_initialized() else ():
        shared = weight.detach().to(device)
        dist.broadcast(shared, 0)
        weight.data.copy_(shared)
    return found
