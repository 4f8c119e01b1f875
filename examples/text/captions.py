"""Captions of clips, and their vectors: `data.vectors={caption: examples.text.captions:embed}`.

Clips have labels, and files have names, but seldom a sentence. So a clip is called by the words of its file's
name, if it has any, or by its labels, and a wording makes a caption of that. The segment's id decides the
wording. So training sees all wordings, and a model does not learn one phrase by heart.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

import numpy as np

from examples.text.e5 import encode

WORDINGS = (
    "{}",
    "the sound of {}",
    "a video of {}",
    "{}, seen and heard",
    "a short clip with {}",
    "here we have {}",
    "this shows {}",
    "picture and sound of {}",
)


def embed(rows: Sequence[Mapping]) -> list[np.ndarray | None]:
    """The vector of each segment's caption, float32 [384]; None if there is nothing to say.

    rows: of the data set's index, with `id`, `source` and `labels`.
    """
    captions = [caption(row) for row in rows]
    different = sorted(set(captions) - {""})
    vectors = dict(zip(different, encode(different), strict=True)) if different else {}
    return [vectors.get(text) for text in captions]


def caption(row: Mapping) -> str:
    """The caption of a segment; empty if its file's name has no words and it has no labels."""
    words = re.findall(r"[^\W\d_]{2,}", PurePosixPath(row["source"]).stem)
    called = " ".join(words) or " and ".join(row["labels"])
    return WORDINGS[int(row["id"][:8], 16) % len(WORDINGS)].format(called) if called else ""
