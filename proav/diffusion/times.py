"""Times of noise, shared by all processes: 0 is clean, 1 is noise."""

from typing import TypeVar

from torch import Tensor

Time = TypeVar("Time", float, Tensor)


def shifted(time: Time, shift: float) -> Time:
    """t' = s t / (1 + (s - 1) t): noise weighs s times as much against the signal (Esser et al., 2024).

    A shift of 1 leaves times as they are.
    """
    return shift * time / (1 + (shift - 1) * time) if shift != 1 else time
