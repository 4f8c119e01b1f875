"""Blocks that overlap: an orthogonal filter across their borders, and mirrors at the edges of the images.

Blocks that end at their borders leave a grid. A lapped transform (Malvar and Staelin, 1989) leaves none, and
codes better. Before the blocks are cut, an orthogonal matrix mixes the pixels around each border. Afterwards
its inverse is applied. So a block gains a margin of half its side, in which it fades out. The transform as a
whole is orthogonal, so principal components can still be found block by block. The filter has the form of
Tran, Liang and Tu, "Lapped transform via time-domain pre- and post-filtering", 2003. Its angles are those of
the lapped orthogonal transform, except for one, which is ours. With this angle, flat blocks of different
values join with the smallest possible steps. So borders show little between cells that are made
independently. Not here: how blocks are cut (`linear_planes.py`). Letters: P pixels of a block along an axis,
M = P / 2.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn


def border_filter(side: int) -> Tensor:
    """F [P, P], float32, for the P pixels around a border; orthogonal.

        F = W diag(I, V) W,   W = [[I, J], [J, -I]] / sqrt(2),   V = J C2' C4 J R'

    J reverses the order, C2 and C4 are the orthonormal cosine transforms of type II and IV; all are M x M. R
    turns the vector that V' 1 would be without it into the direction of `flat_join`, in the plane of both.
    For P = 8 the angle is 3.7 degrees. Pixels that are symmetric about the border are not changed.

    side: P, even.
    """
    half = side // 2
    frequency, place = np.mgrid[:half, :half]
    second = np.sqrt(2 / half) * np.cos(np.pi / half * frequency * (place + 0.5))
    second[0] /= np.sqrt(2)
    fourth = np.sqrt(2 / half) * np.cos(np.pi / half * (frequency + 0.5) * (place + 0.5))
    same, exchange = np.eye(half), np.eye(half)[::-1]
    butterfly = np.block([[same, exchange], [exchange, -same]]) / np.sqrt(2)
    plain = exchange @ second.T @ fourth @ exchange
    turn = plain @ rotation(plain.T @ np.ones(half), flat_join(half)).T
    middle = np.block([[same, np.zeros_like(same)], [np.zeros_like(same), turn]])
    return torch.from_numpy(butterfly @ middle @ butterfly).float()


def flat_join(half: int) -> np.ndarray:
    """v [M], which says how flat blocks join: one value for each pixel from the border to the middle of a
    block.

    A flat block's window is (1 + v) / 2 inside and (1 - v) / 2 outside. v has equal steps up, then down, and
    mean square 1, because the filter is orthogonal. Of all such v this is the one whose largest step is
    smallest. The steps are 2 v_0 across the border, those within v, and 1 - v_{M-1} in the middle of the
    block, where one neighbour's window ends and the other's begins.
    """
    rising = 2 * np.arange(half) + 1.0
    joins = [np.minimum(rising, 2 * top - rising) for top in np.linspace(half, 2 * half, 201)]
    joins = [join / np.sqrt(np.mean(join**2)) for join in joins]

    def largest_step(join: np.ndarray) -> float:
        return max(2 * join[0], np.abs(np.diff(join)).max(initial=0), abs(1 - join[-1]))

    return min(joins, key=largest_step)


def rotation(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """The rotation that turns the direction of `start` to that of `end`, in the plane of the two."""
    start, end = start / np.linalg.norm(start), end / np.linalg.norm(end)
    cosine = start @ end
    across = end - cosine * start
    sine = np.linalg.norm(across)
    across = across / max(sine, 1e-12)
    plane = np.outer(start, start) + np.outer(across, across)
    return (
        np.eye(len(start)) + (cosine - 1) * plane + sine * (np.outer(across, start) - np.outer(start, across))
    )


class Lapping(nn.Module):
    """images [..., R, S] with every border of their blocks filtered; with `back` the filter is undone.

    Orthogonal. At the edges the images are mirrored, so the half block there is not changed.
    """

    def __init__(self, sides: Sequence[int], *, overlap: bool = True) -> None:
        """sides: P of rows and of columns. Nothing changes if P is odd or 2, or without `overlap`."""
        super().__init__()
        for name, side in zip(("rows", "columns"), sides, strict=True):
            is_lapped = overlap and side % 2 == 0 and side > 2  # two pixels have no angle to turn
            self.register_buffer(name, border_filter(side) if is_lapped else None, persistent=False)

    def forward(self, images: Tensor, *, back: bool = False) -> Tensor:
        for axis, kernel in ((-2, self.rows), (-1, self.columns)):
            if kernel is not None:
                side, half = len(kernel), len(kernel) // 2
                borders = mirrored(images, half, axis).unflatten(axis, (-1, side))
                kernel = (kernel.T if back else kernel).to(images.dtype)
                filtered = kernel @ borders if axis == -2 else borders @ kernel.T
                images = filtered.flatten(axis - 1, axis).narrow(axis, half, images.shape[axis])
        return images

    def flops(self, number: int, rows: int, columns: int) -> int:
        """FLOPs for `number` images: on each axis P x P matrices multiply all pixels and P mirrored ones."""
        down = 0 if self.rows is None else (rows + len(self.rows)) * columns * len(self.rows)
        right = 0 if self.columns is None else rows * (columns + len(self.columns)) * len(self.columns)
        return 2 * number * (down + right)


def mirrored(images: Tensor, margin: int, axis: int) -> Tensor:
    """The images with their mirror images beyond both ends of an axis, `margin` pixels at each end."""
    first, last = images.narrow(axis, 0, margin), images.narrow(axis, -margin, margin)
    return torch.cat([first.flip(axis), images, last.flip(axis)], dim=axis)
