"""The conditions of samples as one value: the inputs of a model besides noisy planes and their times.

To add a kind of condition, add a field here and the part of ST-DiT that reads it: docs/extending.md has the
recipe. Letters: B clips, D channels, E=D+1, P=6 planes, N plane side.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Conditions:
    """The conditions of a batch. Every field has one row a clip; None: no clip has that condition."""

    labels_B: Tensor
    """int64, 0 .. num_labels; the last is the null label: no label is told."""
    masked_BEPNN: Tensor | None = None
    """Planes of a masked clip, with the mask as their last channel (`masked_condition` in
    `proav/models/mdsa/planes.py`). Zeros: nothing is given.
    """

    @classmethod
    def of_rows(cls, rows: Mapping[str, Tensor]) -> "Conditions":
        """The conditions of stored windows, from the rows that `LatentFeed` gives, without masked planes.

        Those are normalized first (`proav/train/generator_step.py`).
        """
        return cls(rows["label"])

    def __len__(self) -> int:
        return len(self.labels_B)

    def rows(self, which: Tensor | slice) -> "Conditions":
        """The conditions of some clips, in the order of `which`."""
        return self._each(lambda values: values[which])

    def to(self, device: torch.device | str) -> "Conditions":
        return self._each(lambda values: values.to(device, non_blocking=True))

    def conditioned_B(self, null_label: int) -> Tensor:
        """bool: the clips that have a condition for guidance to pull towards."""
        return self.labels_B != null_label

    def dropped(self, null_label: int, which_B: Tensor) -> "Conditions":
        """The same clips. Those that `which_B` marks get the null label. Dropout and guidance use this."""
        return replace(self, labels_B=self.labels_B.masked_fill(which_B, null_label))

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Conditions":
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return Conditions(
            **{name: None if value is None else change(value) for name, value in values.items()}
        )


def join_conditions(parts: Sequence[Conditions]) -> Conditions:
    """One batch from several, in order. Clips without a condition that others have get zeros for it."""
    if len(parts) == 1:
        return parts[0]
    columns = {field.name: [getattr(part, field.name) for part in parts] for field in fields(Conditions)}
    return Conditions(**{name: _joined(values, parts) for name, values in columns.items()})


def _joined(values: Sequence[Tensor | None], parts: Sequence[Conditions]) -> Tensor | None:
    like = next((value for value in values if value is not None), None)
    if like is None:
        return None
    return torch.cat(
        [
            like.new_zeros(len(part), *like.shape[1:]) if value is None else value
            for value, part in zip(values, parts, strict=True)
        ]
    )
