"""The base class of every section of the configuration, and the types of values that settings share."""

from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

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


def _label_name(value: object) -> object:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return one_form(value) if isinstance(value, str) else value


class Section(BaseModel):
    """Base of every section: frozen, refuses unknown keys, and takes field docstrings as descriptions."""

    changes: ClassVar[tuple[str, ...]] = ()
    """Kinds of things that the section's fields change, unless a field declares its own (`changes.py`)."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False, validate_default=True
    )
