"""Synchrony of sound and picture on clips as short as 1.6 s.

Onsets of the sound are correlated with jerks of the picture (`proav/signals/synchrony.py`). The value of one
clip is noisy; the mean over a few hundred clips shows how synchronous they are. `bench/metrics/sync_shift.py`
shows how this mean and AV-Align fall if the sound is shifted.
"""

import torch

from proav.media.container import Clip
from proav.media.melframes import MelFrames
from proav.signals.segment_scores import reduce_pictures, shot_starts
from proav.signals.synchrony import synchrony


def clip_synchrony(clip: Clip, mel_frames: MelFrames) -> float:
    """Correlation of onsets with jerks at no lag, in [-1, 1].

    It is 0 on average if sound and picture are unrelated. It is NaN if a stream holds no events, and for
    clips of fewer than 10 frames (up to 18 fps; more above). Frames beside a cut do not count.

    mel_frames: for the clip's own frame rate and sample rate.
    """
    mel_TMS = mel_frames.encode(torch.from_numpy(clip.audio)[None])[0].numpy()
    reduced = reduce_pictures(clip.video)
    starts = shot_starts(reduced.luma_TYX, reduced.colours_TK, fps=clip.fps)
    return synchrony(reduced.luma_TYX, mel_TMS, fps=clip.fps, shot_starts=starts)[0]
