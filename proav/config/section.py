"""What every section of the configuration is, and the kinds of values that settings share."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

PositiveInt = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
Probability = Annotated[float, Field(ge=0, le=1)]
Stage = Literal["mdsa", "stdit", "distill"]
UseGPU = bool | Literal["auto"]
TaskName = Literal["joint", "a2v", "v2a", "i2av", "continue"]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False, validate_default=True)
