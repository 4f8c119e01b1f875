"""The base class of every section of the configuration, and the types of values that settings share."""

import re
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from proav.text import one_form

PositiveInt = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
Probability = Annotated[float, Field(ge=0, le=1)]
Stage = Literal["mdsa", "stdit", "distill"]
UseGPU = bool | Literal["auto"]
LabelName = Annotated[str, BeforeValidator(lambda value: _label_name(value))]
"""A label, in Unicode's composed form; a class number may be written without quotes."""
TaskName = str
"""A name of the table in `proav/diffusion/tasks.py`, whose `check_tasks` refuses any other."""
VectorName = Annotated[str, AfterValidator(lambda name: _vector_name(name))]
"""A name of given vectors, which is also a column of listings."""
VectorShape = PositiveInt | tuple[PositiveInt, PositiveInt]
"""For one vector a clip, its width. For a sequence, the largest number of vectors and their width."""
TAKEN_NAMES = frozenset(
    "path start_seconds end_seconds seconds label labels split seed count index number given span "
    "stream".split()
)
"""Columns of listings and manifests that mean something else."""


def _label_name(value: object) -> object:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return one_form(value) if isinstance(value, str) else value


def _vector_name(name: str) -> str:
    if not re.fullmatch("[a-z][a-z0-9_]{0,31}", name):
        raise ValueError(
            f"{name!r} is no name of vectors; expected small letters, digits and _, such as caption"
        )
    if name in TAKEN_NAMES:
        raise ValueError(
            f"vectors cannot be called {name}: listings have a column of that name; choose another"
        )
    return name


def guidance_scales(both: float, audio: float | None) -> tuple[float, float]:
    """(video's, audio's) scale of guidance. audio: None if it is as video's."""
    return both, both if audio is None else audio


class Section(BaseModel):
    """Base of every section: frozen, refuses unknown keys, and takes field docstrings as descriptions."""

    changes: ClassVar[tuple[str, ...]] = ()
    """Kinds of things that the section's fields change, unless a field declares its own (`changes.py`)."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False, validate_default=True
    )
