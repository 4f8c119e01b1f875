"""Vectors on which samples of a batch job are conditioned: of a listing, of prompts, or stored ones.

A row of the plan may have `vectors`, {name: numbers in the form of `to_text`}. It may have `texts`, {name:
text}; a user's function turns them into vectors. It may name a window of prepared data, whose vectors are
stored. Not here: what a model takes (`proav/vectors.py`).
"""

import functools
import re
from collections.abc import Sequence

import numpy as np

from proav.config import Config
from proav.data.sources.strict_tables import check_not_missing, text_of
from proav.data.store.shards import SegmentStore
from proav.data.store.vectors import open_vectors
from proav.errors import UserError
from proav.generation.given_windows import index_of
from proav.vectors import Encoders, Shape, fitted, of_text, to_text


def told_of(record: dict, shapes: dict[str, Shape], encoders: dict[str, str]) -> dict:
    """{"vectors": ..., "texts": ...} of a listing's row; a key is missing if the row has nothing for it.

    record: {column: cell}.
    shapes: of the vectors that the model takes.
    encoders: `generate.encoders`.
    Raises UserError for a cell that does not fit.
    """
    vectors, texts = {}, {}
    for name, shape in shapes.items():
        value = record.get(name)
        if isinstance(value, list):
            vectors[name] = to_text(fitted(value, shape, name))
        elif text := text_of(value):
            _check_text(text, name)
            if name not in encoders:
                raise UserError(
                    f"{name}={text[:40]!r} is a text; to turn it into a vector, write "
                    f"generate.encoders={{{name}: package.module:function}}, or give numbers in Parquet"
                )
            texts[name] = text
    return {key: values for key, values in (("vectors", vectors), ("texts", texts)) if values}


def _check_text(text: str, name: str) -> None:
    """Raises UserError for a cell that holds no words: "nan", or numbers in brackets, as programs write them.

    name: of the column.
    """
    check_not_missing(text, name, "a text")
    if re.fullmatch(r"\[.*\]", text, re.DOTALL) and all(map(_is_number, re.findall(r"[^\s,;\[\]]+", text))):
        raise UserError(
            f"{name}={text[:40]!r} is a text, not a vector; numbers need Parquet, with a list in each cell"
        )


def _is_number(word: str) -> bool:
    """Whether a word is a number, or the dots that numpy writes in place of most numbers of a long array."""
    try:
        float(word)
    except ValueError:
        return word == "..."
    return True


def told_by_prompts(prompts: Sequence[str], shapes: dict[str, Shape], encoders: dict[str, str]) -> list[dict]:
    """What `told_of` would give for each of `generate.prompts`. [] if there are none.

    As in the server, a prompt is a text for the first of the encoders.
    Any text is a prompt, also one that `told_of` refuses in a cell.

    shapes, encoders: as in `told_of`.
    Raises UserError if the model takes no vectors, or if no encoder is named.
    """
    if not prompts:
        return []
    said = f"generate.prompts=[{prompts[0][:40]!r}{', ...' if len(prompts) > 1 else ''}]"
    if not shapes:
        raise UserError(
            f"{said}: the model takes no vectors, so no texts; expected a model with stdit.vectors. "
            "Write generate.prompts=[], or generate.label=NAME for a model with labels"
        )
    if not encoders:
        raise UserError(
            f"{said}: nothing turns these texts into vectors; expected a function for one of "
            f"{', '.join(shapes)}: write generate.encoders={{{next(iter(shapes))}: package.module:function}}"
        )
    name = next(iter(encoders))
    return [{"texts": {name: text_of(prompt)}} for prompt in prompts]


class GivenVectors:
    """The vectors of rows of a plan.

    config: of the model, with the job's `generate.encoders`.
    data_folder: of prepared data.
    Raises UserError if an encoder cannot be found, or if the model takes no vectors of its name.
    """

    def __init__(self, config: Config, data_folder: str) -> None:
        self.shapes, self.data_folder = config.stdit.vector_shapes, data_folder
        self.encoders = Encoders(config.generate.encoders, self.shapes, setting="generate.encoders")

    def __call__(self, rows: Sequence[dict]) -> list[dict[str, np.ndarray]]:
        """{name: float32 of the model's shape} of each row; a missing name means no vector.

        Raises UserError if a segment is gone.
        """
        told: list[dict[str, np.ndarray]] = [self._of_segment(row.get("given", {})) for row in rows]
        for values, row in zip(told, rows, strict=True):
            for name, text in row.get("vectors", {}).items():
                values[name] = of_text(text, self.shapes[name])
        for values, made in zip(told, self.encoders([row.get("texts", {}) for row in rows]), strict=True):
            values.update(made)
        return told

    def _of_segment(self, given: dict) -> dict[str, np.ndarray]:
        if "segment_id" not in given or not self.shapes:
            return {}
        place = index_of(self._segments, given["segment_id"])
        shard, row = (self._segments.index.column(name)[place].as_py() for name in ("shard", "row"))
        return {name: store.read(shard, row) for name, store in self._stored.items()}

    @functools.cached_property
    def _segments(self) -> SegmentStore:
        return SegmentStore(self.data_folder)

    @functools.cached_property
    def _stored(self) -> dict:
        return open_vectors(self.data_folder, self.shapes)
