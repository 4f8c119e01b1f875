"""Scores of single clips, computed from the features of a measured set.

The scores are defined in proav/metrics/agreement.py; here they are computed for each clip of a set.
"""

from collections.abc import Sequence

import numpy as np

from proav.evaluate.measure import Measured
from proav.metrics.agreement import class_divergence, class_hit, cosine_agreement, offset_seconds
from proav.metrics.protocols import FeatureScore


def clip_values(
    score: FeatureScore, measured: Measured, *, real: Measured | None = None, classes: Sequence[str] = ()
) -> np.ndarray | None:
    """One value for each clip, float64 [N]; None if the score needs `real` but `real` is None.

    score: which score, from which networks.
    measured: the set, with the features of those networks.
    real: the clips' originals, matched by id.
    classes: the classifier's class names, in the order of its logits.
    """
    features = [measured.features[name] for name in score.networks]
    if score.kind == "agreement":
        values = [cosine_agreement(picture, sound) for picture, sound in zip(*features, strict=True)]
    elif score.kind == "offset":
        values = [offset_seconds(logits) for logits in features[0]]
    elif score.kind == "class":
        values = [
            class_hit(logits, label, classes)
            for logits, label in zip(features[0], measured.labels, strict=True)
        ]
    elif real is None:
        return None
    else:
        by_id = dict(zip(real.ids, real.features[score.networks[0]], strict=True))
        values = [
            class_divergence(made, by_id[id]) if id in by_id else np.nan
            for id, made in zip(measured.ids, features[0], strict=True)
        ]
    return np.array(values, np.float64)
