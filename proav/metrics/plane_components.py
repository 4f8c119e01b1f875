"""A baseline for MDSA: its three planes, made by principal components instead of a network.

The baseline stores as many numbers as MDSA. MDSA has to beat it to be worth its training. The baseline is not
in the paper; its planes are those of Section 3. The linear planes that are a part of MDSA are in
`proav/models/mdsa/linear_planes.py`. Letters: B clips, T frames, C channels, H W rows and columns (for sound:
mel bins and steps), N cells of a side of a plane, D channels of a cell, d values of a patch, n rows.
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from proav.geometry import PLANES

Chunks = Callable[[], Iterable[Tensor]]
"""Each call iterates over the training data: a few clips at a time, always in the same order."""
ROUNDS = 8
"""Rounds of subspace iteration. On the demo's clips, six rounds already keep the variance of the exact
components to within 0.03 %.
"""


@dataclass(frozen=True, eq=False)
class LinearPlanes:
    """A fitted code of images [B, C, T, H, W]. A call encodes images and decodes them again.

    HW codes the mean over time in patches of H/N x W/N. WT codes the residual, in columns of H x W/N of a
    frame. HT codes the residual of both, in rows of H/N x W of a frame. The reconstruction is the sum of all
    three, clamped to [-1, 1].
    """

    side: int
    """N, which divides H and W."""
    planes: dict[str, tuple[Tensor, Tensor]]
    """{plane: (mean [d], directions [D, d])}, float32, in the order in which they are fitted."""

    @classmethod
    @torch.inference_mode()
    def fit(cls, chunks: Chunks, *, side: int, channels: dict[str, int]) -> "LinearPlanes":
        """chunks: images float32 [b, C, T, H, W]. channels: {plane: D}; if d < D, all d values are kept."""
        code = cls(side, {})
        for name in PLANES:
            rows = functools.partial(code._all_rows, name, chunks)
            code.planes[name] = principal_directions(rows, channels[name])
        return code

    def encode(self, images_BCTHW: Tensor) -> dict[str, Tensor]:
        """{"HW": [B, N, N, D], "WT": [B, T, N, D], "HT": [B, T, N, D]}."""
        codes, rest = {}, images_BCTHW
        for name in self.planes:
            codes[name] = self._code(name, rest)
            rest = rest - self._paste(name, codes[name], images_BCTHW.shape)
        return codes

    def decode(self, codes: dict[str, Tensor], shape: torch.Size | tuple[int, ...]) -> Tensor:
        """Images of `shape` [B, C, T, H, W], in [-1, 1]."""
        return sum(self._paste(name, codes[name], shape) for name in self.planes).expand(shape).clamp(-1, 1)

    @torch.inference_mode()
    def __call__(self, images_BCTHW: Tensor) -> Tensor:
        return self.decode(self.encode(images_BCTHW), images_BCTHW.shape)

    def _rest(self, images: Tensor) -> Tensor:
        """The images minus their reconstruction by the planes fitted so far."""
        for name in self.planes:
            images = images - self._paste(name, self._code(name, images), images.shape)
        return images

    def _code(self, name: str, images: Tensor) -> Tensor:
        mean, directions = self.planes[name]
        return (self._cut(name, images) - mean) @ directions.T

    def _all_rows(self, name: str, chunks: Chunks) -> Iterator[Tensor]:
        """Patches [n, d] of a plane's cells, cut from the images that `_rest` returns."""
        for images in chunks():
            yield self._cut(name, self._rest(images)).flatten(0, -2)

    def _cut(self, name: str, images: Tensor) -> Tensor:
        """The patches of a plane's cells, [B, rows, columns, d]."""
        if name == "HW":
            return rearrange(images.mean(2), "b c (n p) (m q) -> b n m (c p q)", n=self.side, m=self.side)
        if name == "WT":
            return rearrange(images, "b c t h (n q) -> b t n (c h q)", n=self.side)
        return rearrange(images, "b c t (n p) w -> b t n (c p w)", n=self.side)

    def _paste(self, name: str, codes: Tensor, shape: torch.Size | tuple[int, ...]) -> Tensor:
        """Images [B, C, T, H, W] from one plane's codes [B, rows, columns, D]; T is 1 for HW."""
        mean, directions = self.planes[name]
        patches, (_, c, _, h, w) = codes @ directions + mean, shape
        if name == "HW":
            return rearrange(patches, "b n m (c p q) -> b c 1 (n p) (m q)", c=c, p=h // self.side)
        if name == "WT":
            return rearrange(patches, "b t n (c h q) -> b c t h (n q)", c=c, h=h)
        return rearrange(patches, "b t n (c p w) -> b c t (n p) w", c=c, w=w)


def principal_directions(rows: Chunks, count: int) -> tuple[Tensor, Tensor]:
    """Mean [d] and orthonormal directions of largest variance [count, d] of rows [n, d]; largest first.

    Subspace iteration (Halko, Martinsson and Tropp 2011, algorithm 4.4) on 2 count + 8 columns from a fixed
    start: Q <- orthonormal basis of C Q, with C = sum (x - mean)(x - mean)^T. At the end the eigenvectors of
    Q^T C Q are taken. C itself is never computed, since d is 12,288 for pictures of 256 x 256. The mean is
    summed in float64. C Q is summed in float32 within a chunk, and in float64 over chunks. If d < count,
    there are d directions.
    """
    total, num_rows = 0.0, 0
    for x in rows():
        total, num_rows = total + x.sum(0, dtype=torch.float64), num_rows + len(x)
    mean = total / num_rows
    size, shift = len(mean), mean.float()
    width = min(size, 2 * count + 8)
    start = torch.randn(size, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for _ in range(ROUNDS if width < size else 1):  # one round is exact if the basis spans all d values
        basis = torch.linalg.qr(start)[0]
        narrow, start = basis.float(), torch.zeros(size, width, dtype=torch.float64)
        for x in rows():
            centred = x - shift
            start += centred.T @ (centred @ narrow)
    small = basis.T @ start
    vectors = torch.linalg.eigh((small + small.T) / 2)[1]
    return shift, (basis @ vectors).flip(1)[:, :count].T.float().contiguous()
