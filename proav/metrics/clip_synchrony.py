"""Synchrony of sound and picture on clips as short as 1.6 s.

It is a measure of one clip; its mean over a set tells how well the set keeps time. Onsets of the sound are
correlated with jerks of the picture (`proav/signals/synchrony.py`). One clip says little, the mean of some
hundred says much: `bench/metrics/sync_shift.py` shows how it falls when sound is shifted, beside AV-Align.
"""

import torch

from proav.media.container import Clip
from proav.media.melframes import MelFrames
from proav.signals.segment_scores import reduce_pictures, shot_starts
from proav.signals.synchrony import synchrony


def clip_synchrony(clip: Clip, mel_frames: MelFrames) -> float:
    """Correlation of onsets with jerks at no lag, in [-1, 1].

    It is 0 on average if sound and picture have nothing to do with each other. It is NaN if a stream holds no
    events, and for clips of fewer than 10 frames (at up to 12 fps). mel_frames: at the clip's own rates.
    """
    mel_TMS = mel_frames.encode(torch.from_numpy(clip.audio)[None])[0].numpy()
    reduced = reduce_pictures(clip.video)
    starts = shot_starts(reduced.luma_TYX, reduced.colours_TK, fps=clip.fps)
    return synchrony(reduced.luma_TYX, mel_TMS, fps=clip.fps, shot_starts=starts)[0]
