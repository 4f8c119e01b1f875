"""Published weights of other projects: pickles of nested dicts of NumPy arrays, read without running code.

Not here: how they are converted to safetensors (`proav/models/perceptual.py`, `proav/metrics/networks`).
"""

import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path

import numpy

from proav.errors import UserError

_DAMAGED_PICKLE = (
    pickle.UnpicklingError,
    EOFError,
    AttributeError,
    IndexError,
    KeyError,
    TypeError,
    ValueError,
)


class _ArrayUnpickler(pickle.Unpickler):
    """Admits only numpy arrays in builtin containers, so that a file from outside cannot run code."""

    _admitted = {
        "_reconstruct": numpy.zeros(0).__reduce__()[0],
        "ndarray": numpy.ndarray,
        "dtype": numpy.dtype,
    }

    def find_class(self, module: str, name: str):
        if module.split(".")[0] == "numpy" and name in self._admitted:
            return self._admitted[name]
        raise UserError(f"it wants to load {module}.{name}; expected nested dicts of numpy arrays only")


def read_array_tree(source: str | Path, *, expected: str) -> Mapping:
    """The nested dicts of arrays in a published checkpoint.

    expected: what the file should be, for messages.
    Raises UserError for any other file.
    """
    try:
        with open(source, "rb") as file:
            tree = _ArrayUnpickler(file).load()
    except UserError as error:
        raise UserError(f"{source} is not {expected}: {error}") from None
    except (OSError, *_DAMAGED_PICKLE) as error:
        raise UserError(f"cannot read {source}: {error}; expected {expected}") from None
    if not isinstance(tree, Mapping):
        raise UserError(
            f"{source} holds {type(tree).__name__}, not nested dicts of numpy arrays; expected {expected}"
        )
    return tree


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal. Raises UserError if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
