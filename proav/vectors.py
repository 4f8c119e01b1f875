"""Vectors that users give as conditions, from any encoder: finds functions, checks values, pads sequences.

Not here: what ST-DiT does with them (`proav/models/stdit`), where they are stored
(`proav/data/store/vectors.py`). Letters: L vectors of a sequence, W width.
"""

import base64
import importlib
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from proav.errors import UserError

Shape = tuple[int, ...]
"""(W,) for one vector a clip, (L, W) for a sequence of at most L; see `STDiTConfig.vector_shapes`."""


def find_function(text: str, setting: str) -> Callable[[Sequence], Any]:
    """The function that "package.module:function" names. Modules of the current folder are found too.

    setting: the key that names it, for the message of UserError if there is no such function.
    """
    expected = "expected package.module:function, such as my_encoders:embed"
    module_name, colon, name = text.partition(":")
    if not colon or not module_name or not name:
        raise UserError(f"{setting}={text}: {expected}")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise UserError(
            f"{setting}={text}: {error}; {expected}, in the current folder or installed"
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        raise UserError(f"{setting}={text}: {module_name} has no function {name}; {expected}")
    return function


def as_vectors(value: Any, where: str) -> np.ndarray:
    """float32 [W] or [L, W]. Raises UserError if it is no such array of finite numbers.

    where: begins the message, such as "caption of segment 0123".
    """
    expected = "expected finite numbers [width], or [length, width] for a sequence"
    try:
        values = np.asarray(value, np.float32)
    except (ValueError, TypeError) as error:
        raise UserError(f"{where} is no array of numbers; {expected}") from error
    if values.ndim not in (1, 2) or not values.size:
        raise UserError(f"{where} has the shape {list(values.shape)}; {expected}")
    if not np.isfinite(values).all():
        raise UserError(f"{where} holds numbers that are not finite; {expected}")
    return values


def fitted(value: Any, shape: Shape, where: str) -> np.ndarray:
    """The vectors of one clip as float32 of the model's `shape`; zeros follow a shorter sequence.

    value: see `as_vectors`; None: the clip has none, so the result is zeros.
    where: begins the message of UserError if they do not fit.
    """
    result = np.zeros(shape, np.float32)
    if value is None:
        return result
    values = as_vectors(value, where)
    if values.ndim != len(shape) or values.shape[-1] != shape[-1] or len(values) > shape[0]:
        said = f"{where} has the shape {list(values.shape)}; the model takes "
        if len(shape) == 1:
            raise UserError(f"{said}one vector of {shape[0]} numbers: stdit.vectors says so")
        raise UserError(f"{said}1 to {shape[0]} vectors of {shape[1]} numbers: stdit.vectors says so")
    result[: len(values)] = values
    return result


def check_vector_names(names: Iterable[str], shapes: Mapping[str, Shape]) -> None:
    """Raises UserError if the model does not take vectors of one of these names."""
    for name in names:
        if name not in shapes:
            known = ", ".join(shapes) or "none: it was trained without vectors"
            raise UserError(f"the model takes no vectors {name!r}; expected some of: {known}")


def called(function: Callable[[Sequence], Any], given: Sequence, where: str) -> list[np.ndarray | None]:
    """Calls function(given) and checks the result: for each item of `given` its vectors, or None for none.

    where: names the function in the message of UserError.
    """
    made = function(given)
    if not hasattr(made, "__len__") or len(made) != len(given):
        count = len(made) if hasattr(made, "__len__") else "no"
        raise UserError(f"{where} gave {count} results for {len(given)}; expected one each, or None")
    return [
        None if value is None else as_vectors(value, f"{where}: result {place}")
        for place, value in enumerate(made)
    ]


class Encoders:
    """Users' functions that turn texts into vectors, each called with a list of texts.

    named: {name of the vectors: "package.module:function"}.
    shapes: of all vectors that the model takes.
    setting: the key that names the functions, for messages.
    Raises UserError if the model takes no vectors of a name, or if a function cannot be found.
    """

    def __init__(self, named: Mapping[str, str], shapes: Mapping[str, Shape], *, setting: str) -> None:
        check_vector_names(tuple(named), shapes)
        self.shapes = shapes
        self._functions = {
            name: (find_function(text, f"{setting}: {name}"), f"{setting}: {name}: {text}")
            for name, text in named.items()
        }

    def __call__(self, texts: Sequence[Mapping[str, str]]) -> list[dict[str, np.ndarray]]:
        """{name: float32 of the model's shape} for each {name: text}.

        Raises UserError if a function does not give what the model takes.
        """
        made: list[dict[str, np.ndarray]] = [{} for _ in texts]
        for name, (function, where) in self._functions.items():
            places = [place for place, named in enumerate(texts) if name in named]
            if places:
                results = called(function, [texts[place][name] for place in places], where)
                for place, value in zip(places, results, strict=True):
                    made[place][name] = fitted(value, self.shapes[name], where)
        return made


def to_text(values: np.ndarray) -> str:
    """float32 values as a text in base64, for plans and orders."""
    return base64.b64encode(np.ascontiguousarray(values, np.float32).tobytes()).decode()


def of_text(text: str, shape: Shape) -> np.ndarray:
    """The vectors that `to_text` has written, float32 of `shape`."""
    return np.frombuffer(base64.b64decode(text), np.float32).reshape(shape)
