"""What a model is told of a sample beside its noisy planes and their times, as one value.

To add a kind of condition, add a field here and the part of ST-DiT that reads it. Letters: B clips, D
channels, E=D+1, P=6 planes, N plane side.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True)
class Conditions:
    """The conditions of a batch. Every field has one row a clip; None: no clip has that condition."""

    labels_B: Tensor
    """int64, 0 .. num_labels; the last is the null label: no label is told."""
    masked_BEPNN: Tensor | None = None
    """Planes of a masked clip, with the mask as their last channel. No task of this version uses it."""

    def __len__(self) -> int:
        return len(self.labels_B)

    def rows(self, which: Tensor | slice) -> "Conditions":
        """The conditions of some clips, in the order of `which`."""
        return self._each(lambda values: values[which])

    def to(self, device: torch.device) -> "Conditions":
        return self._each(lambda values: values.to(device, non_blocking=True))

    def without_label(self, null_label: int) -> "Conditions":
        """The same clips with the null label. Guidance evaluates them too."""
        rest = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "labels_B"}
        return Conditions(torch.full_like(self.labels_B, null_label), **rest)

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Conditions":
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return Conditions(
            **{name: None if value is None else change(value) for name, value in values.items()}
        )


def join_conditions(parts: Sequence[Conditions]) -> Conditions:
    """One batch from several, in order. All of them have the same fields."""
    if len(parts) == 1:
        return parts[0]
    columns = {field.name: [getattr(part, field.name) for part in parts] for field in fields(Conditions)}
    return Conditions(
        **{
            name: None if all(value is None for value in values) else torch.cat(values)
            for name, values in columns.items()
        }
    )
