"""TensorFlow's padding, for networks whose weights come from TensorFlow."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor


def pad_same(x: Tensor, kernel: Sequence[int], stride: Sequence[int], value: float = 0.0) -> Tensor:
    """TensorFlow's SAME: one output per stride. Padding is split evenly; an odd cell goes to the end.

    x: [B, C, ...].
    kernel, stride: of the layer that follows, along the axes after C.
    value: the padding's value.
    """
    pads = []
    for size, width, step in zip(x.shape[:1:-1], kernel[::-1], stride[::-1], strict=True):
        missing = max(0, (-(-size // step) - 1) * step + width - size)
        pads += [missing // 2, missing - missing // 2]
    return F.pad(x, pads, value=value) if any(pads) else x
