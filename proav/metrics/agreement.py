"""Scores of single clips from the outputs of feature networks.

The scores are the agreement of picture and sound, the offset between them, the class, and the change of
class. The user brings the networks (`networks/given.py`), except for I3D. All scores are computed in float64.
Letters: W and V windows of a clip, D features, K classes.
"""

from collections.abc import Sequence

import numpy as np

from proav.text import find_labels

OFFSET_CLASSES_SECONDS = np.linspace(-2, 2, 21)
"""Synchformer's classes: how late the sound is, in seconds (Iashin et al. 2024)."""


def cosine_agreement(picture_WD: np.ndarray, sound_VD: np.ndarray) -> float:
    """AV-IB (JavisDiT's benchmark): cosine between the mean vectors of a clip's picture and of its sound.

    In [-1, 1]; NaN if a mean vector is zero.
    """
    picture, sound = (np.asarray(values, np.float64).mean(0) for values in (picture_WD, sound_VD))
    length = np.linalg.norm(picture) * np.linalg.norm(sound)
    return float(picture @ sound / length) if length else float("nan")


def offset_seconds(logits_WK: np.ndarray) -> float:
    """DeSync: mean over windows of the likeliest class's |offset|, in [0, 2] seconds (21 classes)."""
    return float(np.abs(OFFSET_CLASSES_SECONDS[np.asarray(logits_WK).argmax(1)]).mean())


def class_hit(logits_WK: np.ndarray, label: str, classes: Sequence[str]) -> float:
    """1 if the windows' mean logits are largest at `label`, else 0; NaN if `label` is no class.

    label: several may stand in it, as `find_labels` reads them; then any of them counts.
    """
    places = [place for place in find_labels(label, classes) if place is not None]
    if not places:
        return float("nan")
    return float(int(np.asarray(logits_WK, np.float64).mean(0).argmax()) in places)


def class_divergence(made_WK: np.ndarray, real_WK: np.ndarray) -> float:
    """KL(real | made) = sum_k p log(p / q) in nats.

    Logits are averaged over a clip's windows. p is their softmax for the real clip, q for the made clip.
    """
    made, real = (_log_softmax(np.asarray(values, np.float64).mean(0)) for values in (made_WK, real_WK))
    return float(max(0.0, (np.exp(real) * (real - made)).sum()))


def _log_softmax(logits_K: np.ndarray) -> np.ndarray:
    shifted = logits_K - logits_K.max()
    return shifted - np.log(np.exp(shifted).sum())
