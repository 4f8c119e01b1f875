"""The conditions of samples as one value: the inputs of a model besides noisy planes and their times.

To add a kind of condition, add a field here and the part of ST-DiT that reads it: docs/extending.md has the
recipe. Letters: B clips, K labels of a clip, D channels, E=D+1, P=6 planes, N plane side.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from proav.text import NO_LABEL

VECTOR_KEY = "vector."
"""Prefix of a vector's name in stored rows, as in vector.caption."""


@dataclass(frozen=True)
class Conditions:
    """The conditions of a batch. Every tensor has one row a clip; None: no clip has that condition."""

    labels_BK: Tensor
    """int64. Each row holds a clip's labels, 0 .. num_labels - 1, then NO_LABEL. A clip without a label has
    the null label, num_labels, alone. A tensor [B], one label a clip, is accepted too.
    """
    masked_BEPNN: Tensor | None = None
    """Planes of a masked clip, with the mask as their last channel (`masked_condition` in
    `proav/models/mdsa/planes.py`). Zeros: nothing is given.
    """
    vectors: Mapping[str, Tensor] = field(default_factory=dict)
    """{name: float32 [B, width] or [B, length, width]} of `stdit.vectors`. If a clip has no such vector, the
    name is missing or its values are zeros. The vectors of a sequence that is shorter than the longest are
    followed by zeros.
    """

    def __post_init__(self) -> None:
        if self.labels_BK.ndim == 1:
            object.__setattr__(self, "labels_BK", self.labels_BK[:, None])

    @classmethod
    def of_rows(cls, rows: Mapping[str, Tensor]) -> "Conditions":
        """The conditions of stored windows, from the rows that `LatentFeed` gives, without masked planes.

        Masked planes are added later, because they are normalized first (`proav/train/generator_step.py`).
        """
        named = {name: values for name, values in rows.items() if name.startswith(VECTOR_KEY)}
        return cls(
            rows["label"], vectors={name.removeprefix(VECTOR_KEY): values for name, values in named.items()}
        )

    def __len__(self) -> int:
        return len(self.labels_BK)

    def rows(self, which: Tensor | slice) -> "Conditions":
        """The conditions of some clips, in the order of `which`."""
        return self._each(lambda values: values[which])

    def to(self, device: torch.device | str) -> "Conditions":
        return self._each(lambda values: values.to(device, non_blocking=True))

    def conditioned_B(self, null_label: int) -> Tensor:
        """bool: the clips that have a label or a vector, to which guidance can be applied."""
        told_B = self.labels_BK[:, 0] != null_label
        for values in self.vectors.values():
            told_B = told_B | (values != 0).flatten(1).any(1)
        return told_B

    def dropped(self, null_label: int, which_B: Tensor) -> "Conditions":
        """The same clips. Those that `which_B` marks get the null label, and zeros for their vectors.

        Dropout and guidance use this.
        """
        null_K = torch.full_like(self.labels_BK[0], NO_LABEL)
        null_K[0] = null_label
        return replace(
            self,
            labels_BK=torch.where(which_B[:, None], null_K, self.labels_BK),
            vectors={
                name: values.masked_fill(which_B.view(-1, *[1] * (values.ndim - 1)), 0)
                for name, values in self.vectors.items()
            },
        )

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Conditions":
        return Conditions(
            change(self.labels_BK),
            None if self.masked_BEPNN is None else change(self.masked_BEPNN),
            {name: change(values) for name, values in self.vectors.items()},
        )


def join_conditions(parts: Sequence[Conditions]) -> Conditions:
    """One batch from several, in order. Clips without a condition that others have get zeros for it."""
    if len(parts) == 1:
        return parts[0]
    most = max(part.labels_BK.shape[1] for part in parts)
    labels = [F.pad(part.labels_BK, (0, most - part.labels_BK.shape[1]), value=NO_LABEL) for part in parts]
    names = dict.fromkeys(name for part in parts for name in part.vectors)
    return Conditions(
        torch.cat(labels),
        _joined([part.masked_BEPNN for part in parts], parts),
        {name: _joined([part.vectors.get(name) for part in parts], parts) for name in names},
    )


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
