"""What the pipeline is asked for: one clip, or one window of a longer one.

Not here: what users give from Python (`inputs.py`), sampling (`pipeline.py`). Letters: T frames.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from proav.config import Config
from proav.diffusion.masks import continue_frames
from proav.diffusion.tasks import TASKS, fixed_mask
from proav.generation.joining import as_beginning, window_seed
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
    """The clip whose sound (a2v), picture (v2a) or frames are given, at the model's rates and size. It has
    the length of a window; for `continue` any length that holds the frames that a window is given.
    """
    settings: SamplingSettings = SamplingSettings()
    known: np.ndarray | None = None
    """bool [2, T], for `inpaint`: which frames of the picture and of the sound are given."""
    num_windows: int = 1
    """For `continue`: windows to make, one after the other. Each goes on from the end of what there is."""
    vectors: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    """{name: [W] or [L, W]} of the model's `stdit.vectors`; a name that is not there: nothing is told."""

    def num_calls(self, objective: str) -> int:
        """Calls of the model for this clip alone, by a process of this objective."""
        return self.num_windows * self.settings.num_calls(objective)


def window_of(
    config: Config, request: SampleRequest, window: int = 0, so_far: Clip | None = None
) -> SampleRequest:
    """A window of a request as a SampleRequest of its own; the request itself, if its task makes only one.

    config: of the model.
    request: of a whole clip.
    window: its number.
    so_far: the clip that the windows before it have made; None: the given one.
    """
    if not TASKS[request.settings.task].extends:
        return request
    return dataclasses.replace(
        request,
        seed=window_seed(request.seed, window),
        given=as_beginning(so_far or request.given, continue_frames(config), config.clip.num_frames),
    )


def known_frames(config: Config, request: SampleRequest) -> np.ndarray:
    """The mask of a request for a masked task, bool [2, T]. config: of the model."""
    if TASKS[request.settings.task].asks_span:
        return request.known
    return fixed_mask(request.settings.task, config).numpy()
