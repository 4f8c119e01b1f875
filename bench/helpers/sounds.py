"""How far sounds are from other sounds, for the benchmarks that compare them."""

import numpy as np
import torch

from proav.media.melframes import MelFrames
from proav.metrics.fidelity import mel_error_db


def mel_errors_db(mel_frames: MelFrames, sounds: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Mean absolute difference of the log-mel images of each pair of sounds, in dB: [N].

    mel_frames: the mel transform.
    sounds, truth: [N, L] at its sample rate.
    """
    mels = [mel_frames.encode(torch.from_numpy(each)) for each in (sounds, truth)]
    scale = mel_frames.settings
    return mel_error_db(*mels, floor_log10=scale.floor_log10, ceiling_log10=scale.ceiling_log10).numpy()
