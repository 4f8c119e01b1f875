"""What each setting changes, declared once, beside the setting.

A section declares it for all its fields (`changes`); a field can declare its own with `Changes()`. This tells
which settings shape stored data, which ones fix the meaning of a model's weights, and which ones concern the
machine alone. The kinds are:

    sources         what there is to prepare; it is compared source by source
    data            prepared data
    vectors         stored vectors of prepared segments
    windows         the prepared segments from which windows are drawn
    mdsa, stdit     what the weights of a model mean: fixed for all of its training
    discriminators  the same, for the networks that train beside MDSA
    flow_map        the same, for the flow map that ST-DiT is made into
    training        how weights are trained; may change during training
    latents         stored latents
    samples         generated clips
    numbers         what is measured, and how
    sweep           which trials a sweep has
    machine         speed, memory and places; changes no result
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

KINDS = frozenset(
    "sources data vectors windows mdsa stdit discriminators flow_map training latents samples numbers sweep "
    "machine".split()
)


@dataclass(frozen=True, init=False)
class Changes:
    """The kinds of things that a field changes."""

    kinds: tuple[str, ...]

    def __init__(self, *kinds: str) -> None:
        unknown = set(kinds) - KINDS
        assert kinds and not unknown, f"unknown kinds {unknown}: expected some of {sorted(KINDS)}"
        object.__setattr__(self, "kinds", kinds)


def changes_of(section: type[BaseModel], prefix: str = "") -> dict[str, tuple[str, ...]]:
    """{dotted key: kinds} of every setting below a section; kinds are () if none are declared.

    prefix: put in front of each key, such as "mdsa.".
    """
    found = {}
    for name, field in section.model_fields.items():
        default = field.get_default(call_default_factory=True)
        if isinstance(default, BaseModel):
            found |= changes_of(type(default), f"{prefix}{name}.")
        else:
            found[prefix + name] = _own(field) or section.changes
    return found


@cache
def settings_that_change(*kinds: str) -> tuple[str, ...]:
    """Dotted keys of the settings that change any of these kinds, in file order."""
    from proav.config import Config

    assert set(kinds) <= KINDS, kinds
    return tuple(key for key, own in changes_of(Config).items() if set(own) & set(kinds))


def setting_values(config: BaseModel, prefix: str = "") -> dict[str, Any]:
    """{dotted key: value as JSON holds it} of every setting below a section; `prefix` as in `changes_of`."""
    found = {}
    for name in type(config).model_fields:
        value = getattr(config, name)
        if isinstance(value, BaseModel):
            found |= setting_values(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = config.model_dump(mode="json", include={name})[name]
    return found


def _own(field: FieldInfo) -> tuple[str, ...]:
    return next((word.kinds for word in field.metadata if isinstance(word, Changes)), ())
