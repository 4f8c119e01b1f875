"""Scores of a single clip, alone or beside its original.

A new score is a function in proav/metrics, a call here, and a name in OF_ONE or OF_PAIRS and in a protocol.
Scores from a network's features are in feature_scores.py.
"""

import functools

import numpy as np
import torch
from torch import nn

from proav.config import Config
from proav.evaluate.reconstruction import SCORES as RECONSTRUCTION_SCORES
from proav.evaluate.yardsticks import YARDSTICK_SCORES
from proav.media.container import Clip
from proav.media.melframes import MelFrames
from proav.metrics.av_align import av_align
from proav.metrics.blockiness import blockiness, blockiness_sound
from proav.metrics.clip_synchrony import clip_synchrony
from proav.metrics.quality import WINDOW, lpips, ssim
from proav.metrics.world import WORLD_SCORES, world_scores

OF_PAIRS = (*RECONSTRUCTION_SCORES, *YARDSTICK_SCORES, "ssim", "lpips")
"""Scores that need the clip's original."""
OF_ONE = ("av_align", "av_align_one_to_one", "synchrony", "blockiness", "blockiness_sound", *WORLD_SCORES)
OF_LIBRARIES = ("av_align", "av_align_one_to_one")
"""Scores that need optional libraries."""


class ClipScorer:
    """Scores clips of one view. Between clips it keeps only its tools, such as the mel transform."""

    def __init__(self, config: Config, names: tuple[str, ...], network: nn.Module | None = None) -> None:
        """config: gives the mel settings and MDSA's patches.
        names: of the scores.
        network: LPIPS, if it is among the scores.
        """
        self.names, self.network, self._config = names, network, config

    @functools.cached_property
    def _mel_frames(self) -> MelFrames:
        return MelFrames(self._config)

    def __call__(
        self, clip: Clip, real: Clip | None, measured: dict[str, float], *, label: str = ""
    ) -> dict[str, float]:
        """One value for each name; NaN if the score is undefined for this clip.

        clip: the clip to score.
        real: its original, if it has one.
        measured: scores that were already measured when the clip was loaded.
        label: the clip's own label, or the label that it was generated for.
        """
        found = {}
        if "ssim" in self.names and real is not None:
            found["ssim"] = (
                ssim(clip.video, real.video) if min(clip.video.shape[1:3]) >= WINDOW else float("nan")
            )
        if "lpips" in self.names and real is not None and self.network is not None:
            found["lpips"] = lpips(self.network, clip.video, real.video)
        if {"av_align", "av_align_one_to_one"} & set(self.names):
            found |= av_align(clip.video, clip.audio, fps=clip.fps, sample_rate=clip.sample_rate)
        if "synchrony" in self.names:
            found["synchrony"] = clip_synchrony(clip, self._mel_frames)
        if "blockiness" in self.names:
            found["blockiness"] = blockiness(clip.video, side=self._config.mdsa.plane_size)
        if "blockiness_sound" in self.names:
            mel_TMS = self._mel_frames.encode(torch.from_numpy(clip.audio)[None])[0].numpy()
            found["blockiness_sound"] = blockiness_sound(mel_TMS)
        if set(WORLD_SCORES) & set(self.names):
            rates = {"fps": clip.fps, "sample_rate": clip.sample_rate}
            found |= world_scores(clip.video, clip.audio, **rates, label=label)
        found |= measured
        return {name: float(found.get(name, np.nan)) for name in self.names}
