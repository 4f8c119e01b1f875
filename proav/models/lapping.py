"""Blocks that overlap: an orthogonal filter across their borders, and mirrors at the edges of the images.

Blocks that end at their borders leave a grid. A lapped transform (Malvar and Staelin, 1989) has none, and
codes better: before the blocks are cut, the pixels around each border are turned into one another by an
orthogonal matrix, afterwards they are turned back. So the block grows a margin of half its side, in which it
fades out, and whatever is known of orthogonal blocks stays true. The filter has the form of Tran, Liang and
Tu, "Lapped transform via time-domain pre- and post-filtering", 2003. Its angles are those of the lapped
orthogonal transform but for one, which is ours: flat blocks of any heights join by straight lines, so that
even cells that know nothing of each other show no borders. P pixels of a block along an axis, M = P / 2.
"""

import numpy as np
import torch
from torch import Tensor, nn


def border_filter(side: int) -> Tensor:
    """F [P, P], float32, for the P pixels around a border: orthogonal; even about the border stays as it is.

        F = W diag(I, V) W,   W = [[I, J], [J, -I]] / sqrt(2),   V = J C2' C4 J R'

    with J the exchange of order, C2 and C4 the orthonormal cosine transforms of type II and IV, all M x M. R
    turns J C4' C2 1 into the ramp 1, 3, 5 ..., in the plane of the two (6 degrees for P = 8). side: P, even.
    """
    half = side // 2
    frequency, place = np.mgrid[:half, :half]
    second = np.sqrt(2 / half) * np.cos(np.pi / half * frequency * (place + 0.5))
    second[0] /= np.sqrt(2)
    fourth = np.sqrt(2 / half) * np.cos(np.pi / half * (frequency + 0.5) * (place + 0.5))
    same, exchange = np.eye(half), np.eye(half)[::-1]
    butterfly = np.block([[same, exchange], [exchange, -same]]) / np.sqrt(2)
    plain = exchange @ second.T @ fourth @ exchange
    turn = plain @ rotation(plain.T @ np.ones(half), 2 * np.arange(half) + 1.0).T
    middle = np.block([[same, np.zeros_like(same)], [np.zeros_like(same), turn]])
    return torch.from_numpy(butterfly @ middle @ butterfly).float()


def rotation(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """The rotation, in the plane of two vectors, of the direction of one to that of the other."""
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
    """images [..., R, S] with every border of their blocks filtered, or with `back` as they were before.

    Orthogonal. Edges are mirrored, which leaves them as they are.
    """

    def __init__(self, sides: tuple[int, int], *, overlap: bool = True) -> None:
        """sides: P of rows and of columns. Where P is odd, or without `overlap`, nothing changes."""
        super().__init__()
        for name, side in zip(("rows", "columns"), sides, strict=True):
            is_lapped = overlap and side % 2 == 0
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


def mirrored(images: Tensor, margin: int, axis: int) -> Tensor:
    """The images and their mirror images beyond both ends of an axis, so many pixels at each."""
    first, last = images.narrow(axis, 0, margin), images.narrow(axis, -margin, margin)
    return torch.cat([first.flip(axis), images, last.flip(axis)], dim=axis)
