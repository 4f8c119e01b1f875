"""The linear half of MDSA: images to three planes by fixed-size windows, and back, fitted by algebra before training starts.

The paper calls its projection an orthogonal decomposition; this is that decomposition without a network. Each plane takes the principal
components of what the planes before it have left. Pictures begin with HW, whose cells code the temporal mean; sound begins with HT, whose
cells are a spectrogram's. The windows overlap by half, so that pictures have no grid and sound has no steps between frames.
Not here: the network that adds to it (`streams.py`, `refiner.py`).
B clips, C image channels, T frames, R S rows and columns of an image, N plane side, H W rows and columns of cells, D latent channels.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from proav.geometry import PLANES, StreamGeometry
from proav.models.layers import full_precision

MAX_FIT_CELLS = 4096
"""Cells of a plane that its components are taken from: enough for 64 channels, and small enough for a laptop at 256x256."""
MIN_SCALE = 1e-6
"""A plane that is zero on all clips of the fit keeps the scale 1 / MIN_SCALE at most."""


@dataclass(frozen=True)
class Cut:
    """How one plane's cells are cut from a clip: the clip laid out as 2D images, and the images' cells as a plane."""

    images: str
    """Layout of a clip "b c t r s"."""
    cells: str
    """Layout of the cells that a strided convolution of those images gives."""
    plane: str
    """The same cells as a plane: T is the first axis of WT and HT."""

    def to_images(self, clip_BCTRS: Tensor) -> Tensor:
        return rearrange(clip_BCTRS, f"b c t r s -> {self.images}")

    def to_clip(self, images: Tensor, sizes: Mapping[str, int]) -> Tensor:
        return rearrange(images, f"{self.images} -> b c t r s", **{axis: sizes[axis] for axis in "bct"})

    def to_plane(self, cells: Tensor, sizes: Mapping[str, int]) -> Tensor:
        return rearrange(cells, f"{self.cells} -> {self.plane}", **{axis: sizes[axis] for axis in "bt" if axis in self.plane})

    def to_cells(self, plane: Tensor) -> Tensor:
        return rearrange(plane, f"{self.plane} -> {self.cells}")


PICTURE_CUTS = {
    "HW": Cut("b (c t) r s", "b d h w", "b d h w"),
    "WT": Cut("(b t) (c r) 1 s", "(b t) d 1 w", "b d t w"),
    "HT": Cut("(b t) (c s) 1 r", "(b t) d 1 h", "b d t h"),
}
SOUND_CUTS = {
    "HT": Cut("b c r (t s)", "b d h t", "b d t h"),
    "WT": Cut("b (c r) 1 (t s)", "b d 1 (t w)", "b d t w"),
    "HW": PICTURE_CUTS["HW"],
}
"""In the order in which planes are fitted and taken off. The columns of a mel image are time within its frame: laid end to end, windows of WT
and HT reach across the borders of frames. HT first, then WT, lost least (docs/experiments.md)."""


class WindowAnalysis(nn.Module):
    """Cells of a plane, each the inner products of D kernels with a window of the images: a strided convolution in float32."""

    def __init__(self, shape: tuple[int, ...], stride: tuple[int, int], padding: tuple[int, int]) -> None:
        super().__init__()
        self.kernel, self.stride, self.padding = nn.Parameter(torch.zeros(shape)), stride, padding

    def forward(self, images: Tensor) -> Tensor:
        return F.conv2d(images, self.kernel.float(), stride=self.stride, padding=self.padding)


class WindowSynthesis(WindowAnalysis):
    """Images as the sum of overlapping windows, each a combination of D kernels: the transposed convolution, in float32."""

    def forward(self, cells: Tensor) -> Tensor:
        return F.conv_transpose2d(cells, self.kernel.float(), stride=self.stride, padding=self.padding)


class MeanImage(nn.Module):
    """The training clips' mean by channel and row, [C, R, 1]: the colour of the picture's height, the mean spectrum of sound."""

    def __init__(self, channels: int, rows: int) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(channels, rows, 1))

    def forward(self, clip_BCTRS: Tensor, sign: float) -> Tensor:
        """clip + sign * mean."""
        return clip_BCTRS + sign * self.value.float()[:, None]


class LinearPlanes(nn.Module):
    """A stream's linear code: z_p = A_p (x - m - sum over earlier planes of S_q z_q), x' = m + sum_p S_p z_p.

    A_p and S_p are `WindowAnalysis` and `WindowSynthesis`; m is `MeanImage`. Zero until `fit` or a checkpoint fills it.
    """

    def __init__(self, geometry: StreamGeometry, channels: Mapping[str, int], *, sound: bool, overlap: bool = True) -> None:
        super().__init__()
        self.geometry, self.channels = geometry, dict(channels)
        self.cuts = SOUND_CUTS if sound else PICTURE_CUTS
        self.windows = _windows(geometry, sound=sound)
        self.mean = MeanImage(geometry.channels, geometry.rows)
        self.analysis, self.synthesis = nn.ModuleDict(), nn.ModuleDict()
        for name in PLANES:
            depth, (rows, columns) = self.windows[name]
            whole = name == "WT" or (name == "HT" and not sound), False  # of all rows there is but one window
            margin = tuple(side // 2 if overlap and side % 2 == 0 and not all_of_it else 0 for side, all_of_it in zip((rows, columns), whole))
            shape = (self.channels[name], depth, rows + 2 * margin[0], columns + 2 * margin[1])
            self.analysis[name] = WindowAnalysis(shape, (rows, columns), margin)
            self.synthesis[name] = WindowSynthesis(shape, (rows, columns), margin)

    def analyse(self, clip_BCTRS: Tensor) -> dict[str, Tensor]:
        """{"HW": [B, D, H, W], "WT": [B, D, T, W], "HT": [B, D, T, H]}, float32, of about unit deviation."""
        with full_precision(clip_BCTRS.device):
            rest, planes = self.mean(clip_BCTRS.float(), -1.0), {}
            for name in self.cuts:
                planes[name] = self._cells(name, rest)
                rest = rest - self._part(name, planes[name])
        return {name: planes[name] for name in PLANES}

    def synthesize(self, planes: Mapping[str, Tensor]) -> Tensor:
        """The clip [B, C, T, R, S] of planes as `analyse` gives them, float32, not bounded."""
        with full_precision(planes["HW"].device):
            return self.mean(sum(self._part(name, planes[name].float()) for name in PLANES), 1.0)

    def _cells(self, name: str, clip_BCTRS: Tensor) -> Tensor:
        cut = self.cuts[name]
        return cut.to_plane(self.analysis[name](cut.to_images(clip_BCTRS)), self._sizes(len(clip_BCTRS)))

    def _part(self, name: str, plane: Tensor) -> Tensor:
        cut = self.cuts[name]
        return cut.to_clip(self.synthesis[name](cut.to_cells(plane)), self._sizes(len(plane)))

    def _sizes(self, batch: int) -> dict[str, int]:
        return {"b": batch, "c": self.geometry.channels, "t": self.geometry.num_frames}

    @torch.no_grad()
    def fit(self, clips: Callable[[], Iterable[Tensor]]) -> None:
        """Fills the maps from clips in [-1, 1]: the mean, then each plane's principal components of what is left, block by block.

        clips: called once a pass, gives batches [B, C, T, R, S], the same ones each time. Kernels begin as blocks without overlap, so that the
        fit is a singular value decomposition a plane; a plane's codes are scaled by one number to unit mean square. Training widens the windows.
        Deterministic up to the rounding of the machine's matrix kernels: one worker fits, the others take its weights.
        """
        total, count = 0, 0
        for clip_BCTRS in clips():
            total, count = total + clip_BCTRS.double().mean((2, 4)).sum(0), count + len(clip_BCTRS)
        self.mean.value.copy_((total / count)[..., None])
        for index, name in enumerate(self.cuts):
            before = tuple(self.cuts)[:index]
            components_DV = self._components(name, clips, before, count)
            self._set_kernels(name, components_DV, 1.0)
            mean_square = torch.stack([self._cells(name, self._rest(clip, before)).double().square().mean() for clip in clips()]).mean()
            self._set_kernels(name, components_DV, max(float(mean_square.sqrt()), MIN_SCALE))

    def _rest(self, clip_BCTRS: Tensor, planes: Iterable[str]) -> Tensor:
        """What is left of a clip without its mean and its parts in these planes."""
        rest = self.mean(clip_BCTRS.float(), -1.0)
        for name in planes:
            rest = rest - self._part(name, self._cells(name, rest))
        return rest

    def _components(self, name: str, clips: Callable[[], Iterable[Tensor]], before: Iterable[str], count: int) -> Tensor:
        """The principal directions [D, V] of a plane's cells, V values of a block, the strongest first."""
        kept = []
        for clip_BCTRS in clips():
            blocks_LV = self._blocks(name, self._rest(clip_BCTRS, before))
            share = max(1, MAX_FIT_CELLS * len(clip_BCTRS) // count)
            kept.append(blocks_LV[torch.linspace(0, len(blocks_LV) - 1, min(share, len(blocks_LV))).round().long()])
        cells_LV, channels = torch.cat(kept).double(), self.channels[name]
        if cells_LV.shape[0] < cells_LV.shape[1]:  # the smaller of the two Gram matrices
            values, vectors = torch.linalg.eigh(cells_LV @ cells_LV.T)
            directions_VL = cells_LV.T @ vectors / values.clamp(min=1e-12).sqrt()
        else:
            values, directions_VL = torch.linalg.eigh(cells_LV.T @ cells_LV)
        strongest_DV = directions_VL.flip(1)[:, :channels].T * (values.flip(0)[:channels, None] > 1e-9 * values[-1].clamp(min=1e-12))
        signs_D1 = torch.where(strongest_DV.gather(1, strongest_DV.abs().argmax(1, keepdim=True)) < 0, -1.0, 1.0)  # else arbitrary
        return F.pad(strongest_DV * signs_D1, (0, 0, 0, channels - len(strongest_DV))).float()

    def _blocks(self, name: str, clip_BCTRS: Tensor) -> Tensor:
        """The values [L, V] of all blocks of a plane, without overlap; of HW those of the temporal mean."""
        (rows, columns) = self.windows[name][1]
        images = clip_BCTRS.mean(2) if name == "HW" else self.cuts[name].to_images(clip_BCTRS)
        return rearrange(images, "b c (h p) (w q) -> (b h w) (c p q)", p=rows, q=columns)

    def _set_kernels(self, name: str, components_DV: Tensor, scale: float) -> None:
        """Blocks as the middles of the kernels; codes are divided by `scale`. HW's block is the same in all frames, its code their mean."""
        (rows, columns), frames = self.windows[name][1], self.geometry.num_frames
        blocks = rearrange(components_DV, "d (c p q) -> d c p q", p=rows, q=columns)
        share = 1.0
        if name == "HW":
            blocks, share = blocks.repeat_interleave(frames, dim=1), 1 / frames
        for part, factor in ((self.analysis[name], share / scale), (self.synthesis[name], scale)):
            margin = part.padding
            part.kernel.copy_(F.pad(blocks * factor, (margin[1], margin[1], margin[0], margin[0])))


def _windows(geometry: StreamGeometry, *, sound: bool) -> dict[str, tuple[int, tuple[int, int]]]:
    """{plane: (channels of its images, (rows, columns) of a cell in them)}."""
    p, q = geometry.patch
    channels, frames, rows, columns = geometry.input_shape
    if sound:
        return {"HW": (channels * frames, (p, q)), "WT": (channels * rows, (1, q)), "HT": (channels, (p, columns))}
    return {"HW": (channels * frames, (p, q)), "WT": (channels * rows, (1, q)), "HT": (channels * columns, (1, p))}

