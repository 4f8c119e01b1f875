"""What the pipeline is asked for: one clip, or one window of a longer one.

Not here: what users give from Python (`inputs.py`), sampling (`pipeline.py`), the windows of long clips
(`long_clips.py`). Letters: T frames.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from proav.config import Config
from proav.diffusion.tasks import TASKS, fixed_mask
from proav.generation.sampling_settings import SamplingSettings
from proav.media.container import Clip


@dataclasses.dataclass(frozen=True)
class SampleRequest:
    """One clip to make. Requests of any kind can share a batch."""

    seed: int = 0
    index: int = 0
    label: str | Sequence[str] | None = None
    """One of the model's labels, or several: a list, or a text with ; between them."""
    given: Clip | None = None
    """The clip whose sound (a2v), picture (v2a) or frames are given, at the model's rates and size. For
    a2v and v2a it is as long as all windows together. For `continue` it may have any length, but at least the
    frames that a window is given. For other tasks it is as long as one window.
    """
    settings: SamplingSettings = SamplingSettings()
    known: np.ndarray | None = None
    """bool [2, T], for `inpaint`: which frames of the picture and of the sound are given."""
    num_windows: int = 1
    """Windows to make, one after the other. Each continues the clip so far."""
    num_frames: int | None = None
    """Frames of the result. What the windows make beyond them is cut off. None: all frames are kept."""
    vectors: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    """{name: [W] or [L, W]} of the model's `stdit.vectors`. A missing name means no vector."""

    def num_calls(self, objective: str) -> int:
        """Calls of the model for this clip alone, by a process of this objective."""
        return self.num_windows * self.settings.num_calls(objective)


def known_frames(config: Config, request: SampleRequest) -> np.ndarray:
    """The mask of a request for a masked task, bool [2, T]. config: of the model."""
    if TASKS[request.settings.task].asks_span:
        return request.known
    return fixed_mask(request.settings.task, config).numpy()
