"""The linear half of MDSA: images to three planes by fixed-size windows, and back; fitted before training.

The paper calls its projection an orthogonal decomposition; this is that decomposition without a network. Each
plane takes the principal components of what the planes before it have left. Pictures begin with HW, whose
cells code the temporal mean; sound begins with HT, whose cells are a spectrogram's. The windows overlap by
half, so that pictures have no grid and sound no steps between frames. Not here: the network that adds to it
(`streams.py`, `refiner.py`).
B clips, C image channels, T frames, R S rows and columns of an image, H W rows and columns of cells, D latent
channels; in the fit N clips, F images kept of a clip, L blocks, V values of a block.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from proav.geometry import PLANES, StreamGeometry
from proav.models.layers import full_precision

FIT_FRAMES = 2
"""Frames of a clip that the fit looks at, beside the temporal mean: all of them gained 0.05 dB at most."""
FIT_POWERS = 4
"""Power iterations of the randomized decomposition: three times as many gained less than 0.01 dB."""
FIT_CLIPS_AT_ONCE = 8
"""Clips that a plane is taken off at a time: bounds the memory of the fit."""
MIN_SCALE = 1e-3
"""A plane whose codes are smaller is scaled up no further: 8-bit pictures have steps of 8e-3."""


@dataclass(frozen=True)
class Cut:
    """How one plane's cells are cut from a clip: the clip laid out as 2D images, and the images' cells as a
    plane.
    """

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
        axes = {axis: sizes[axis] for axis in "bt" if axis in self.plane}
        return rearrange(cells, f"{self.cells} -> {self.plane}", **axes)

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
"""In the order in which planes are fitted and taken off. The columns of a mel image are time within its
frame: laid end to end, windows of WT and HT reach across the borders of frames. HT first, then WT, lost least
(docs/experiments.md)."""


class WindowAnalysis(nn.Module):
    """Cells of a plane, each the inner products of D kernels with a window of the images.

    A strided convolution in float32 with the kernels gain * weight. The weight [D, V], V values of a window,
    has orthonormal rows after the fit. It is a hidden matrix: Muon needs half of AdamW's clips, or fewer.
    """

    def __init__(self, shape: tuple[int, ...], stride: tuple[int, int], padding: tuple[int, int]) -> None:
        super().__init__()
        self.shape, self.stride, self.padding = shape, stride, padding
        self.weight = nn.Parameter(torch.zeros(shape[0], math.prod(shape[1:])))
        self.gain = nn.Parameter(torch.ones(1))
        self.hidden_parts = 1

    @property
    def kernel(self) -> Tensor:
        """[D, channels of the images, rows, columns]."""
        return (self.gain.float() * self.weight.float()).view(self.shape)

    def forward(self, images: Tensor) -> Tensor:
        return F.conv2d(images, self.kernel, stride=self.stride, padding=self.padding)


class WindowSynthesis(WindowAnalysis):
    """Images as the sum of overlapping windows, each a combination of D kernels.

    The transposed convolution, in float32.
    """

    def forward(self, cells: Tensor) -> Tensor:
        return F.conv_transpose2d(cells, self.kernel, stride=self.stride, padding=self.padding)


class MeanImage(nn.Module):
    """The training clips' mean by channel and row, [C, R, 1].

    Of pictures the colours by height, of sound the mean spectrum.
    """

    def __init__(self, channels: int, rows: int) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(channels, rows, 1))

    def forward(self, clip_BCTRS: Tensor, sign: float) -> Tensor:
        """clip + sign * mean."""
        return clip_BCTRS + sign * self.value.float()[:, None]


class LinearPlanes(nn.Module):
    """A stream's linear code: z_p = A_p (x - m - sum over earlier planes of S_q z_q), x' = m + sum_p S_p z_p.

    A_p and S_p are `WindowAnalysis` and `WindowSynthesis`; m is `MeanImage`. Zero until `fit` or a checkpoint
    fills it.
    """

    def __init__(
        self, geometry: StreamGeometry, channels: Mapping[str, int], *, sound: bool, overlap: bool = True
    ) -> None:
        super().__init__()
        self.geometry, self.channels = geometry, dict(channels)
        self.cuts = SOUND_CUTS if sound else PICTURE_CUTS
        self.windows = _windows(geometry, sound=sound)
        self.mean = MeanImage(geometry.channels, geometry.rows)
        self.analysis, self.synthesis = nn.ModuleDict(), nn.ModuleDict()
        for name in PLANES:
            depth, (rows, columns) = self.windows[name]
            one_row = name == "WT" or (name == "HT" and not sound)  # of all rows there is but one window
            margin = (_margin(rows, overlap and not one_row), _margin(columns, overlap))
            shape = (self.channels[name], depth, rows + 2 * margin[0], columns + 2 * margin[1])
            self.analysis[name] = WindowAnalysis(shape, (rows, columns), margin)
            self.synthesis[name] = WindowSynthesis(shape, (rows, columns), margin)

    def analyse(self, clip_BCTRS: Tensor) -> dict[str, Tensor]:
        """{"HW": [B, D, H, W], "WT": [B, D, T, W], "HT": [B, D, T, H]}, float32, of about unit deviation."""
        with full_precision(clip_BCTRS.device):
            rest, planes = self.mean(clip_BCTRS.float(), -1.0), {}
            for name in self.cuts:
                planes[name] = self._cells(name, rest)
                if len(planes) < len(self.cuts):
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
    def fit(self, images_NFCRS: Tensor) -> None:
        """Fills the maps: the mean, then each plane's principal components of what is left, block by block.

        images_NFCRS: what `FitSample` keeps of the clips. Kernels begin as blocks without overlap, so that
        the fit is a singular value decomposition a plane, and cells of WT and HT depend on their frame alone;
        a plane's codes are scaled by one number to unit mean square. Training widens the windows. The result
        depends on the rounding of the machine's matrix kernels: one worker fits, the others take its weights.
        """
        self.mean.value.copy_(images_NFCRS[:, 0].mean((0, 3))[..., None])
        rest_NFCRS = images_NFCRS - self.mean.value
        for name in self.cuts:
            shown = rest_NFCRS[:, :1] if name == "HW" else rest_NFCRS[:, 1:]
            components_DV, deviation = _principal(self._to_blocks(name, shown)[0], self.channels[name])
            self._set_kernels(name, components_DV, max(deviation, MIN_SCALE))
            for part_NFCRS in rest_NFCRS.split(FIT_CLIPS_AT_ONCE) if name != list(self.cuts)[-1] else ():
                coded_NFCRS = part_NFCRS[:, :1] if name == "HW" else part_NFCRS
                blocks_LV, to_images = self._to_blocks(name, coded_NFCRS)
                part_NFCRS -= to_images(blocks_LV @ components_DV.T @ components_DV)

    def _to_blocks(self, name: str, images_NFCRS: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """All blocks [L, V] of a plane in these images, each a clip of one frame; and the way back."""
        cut, (rows, columns) = self.cuts[name], self.windows[name][1]
        clips_BC1RS = rearrange(images_NFCRS, "n f c r s -> (n f) c 1 r s")
        laid_out = cut.to_images(clips_BC1RS)
        sides = {"h": laid_out.shape[2] // rows, "w": laid_out.shape[3] // columns, "p": rows, "q": columns}

        def to_images(blocks_LV: Tensor) -> Tensor:
            images = rearrange(blocks_LV, "(b h w) (c p q) -> b c (h p) (w q)", **sides)
            clips = cut.to_clip(images, {"b": len(clips_BC1RS), "c": self.geometry.channels, "t": 1})
            return rearrange(clips, "(n f) c 1 r s -> n f c r s", n=len(images_NFCRS))

        return rearrange(laid_out, "b c (h p) (w q) -> (b h w) (c p q)", **sides), to_images

    def _set_kernels(self, name: str, components_DV: Tensor, scale: float) -> None:
        """Blocks as the middles of the kernels; codes are divided by `scale`.

        HW's block is the same in all T frames, its code their mean: blocks / sqrt(T) have unit length.
        """
        (rows, columns), frames = self.windows[name][1], self.geometry.num_frames
        blocks = rearrange(components_DV, "d (c p q) -> d c p q", p=rows, q=columns)
        length = 1.0
        if name == "HW":
            length = frames**0.5
            blocks = blocks.repeat_interleave(frames, dim=1) / length
        for part, gain in (
            (self.analysis[name], 1 / (length * scale)),
            (self.synthesis[name], length * scale),
        ):
            margin = part.padding
            part.weight.copy_(F.pad(blocks, (margin[1], margin[1], margin[0], margin[0])).flatten(1))
            part.gain.fill_(gain)


class FitSample:
    """What the fit keeps of clips, which are read once: of each the temporal mean and a few frames."""

    def __init__(self) -> None:
        self.parts: list[Tensor] = []
        self.num_clips = 0

    def add(self, clip_BCTRS: Tensor) -> None:
        """Frames are picked in turn, so that over the clips every place in time occurs."""
        batch, frames = len(clip_BCTRS), clip_BCTRS.shape[2]
        picked = min(FIT_FRAMES, frames)
        clips_B, apart_F = torch.arange(batch), torch.arange(picked) * frames // picked
        times_BF = (self.num_clips + clips_B[:, None] + apart_F) % frames
        images_BTCRS = clip_BCTRS.float().transpose(1, 2)
        some_BFCRS = images_BTCRS[clips_B[:, None], times_BF]
        self.parts.append(torch.cat([images_BTCRS.mean(1, keepdim=True), some_BFCRS], dim=1))
        self.num_clips += batch

    def images(self) -> Tensor:
        """[N, 1 + F, C, R, S]: temporal mean, then frames. The sample is empty afterwards."""
        images_NFCRS, self.parts = torch.cat(self.parts), []
        return images_NFCRS


def _principal(cells_LV: Tensor, channels: int) -> tuple[Tensor, float]:
    """Principal directions [D, V], strongest first, zero beyond what sizes allow; their codes' deviation.

    By a randomized decomposition (Halko, Martinsson, Tropp, 2011) with twice as many trial directions as are
    kept. Its random numbers are the same each time and leave the stream outside as it was.
    """
    trials = min(2 * channels + 8, *cells_LV.shape)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        _, strengths_K, directions_VK = torch.svd_lowrank(cells_LV, q=trials, niter=FIT_POWERS)
    strongest_DV = directions_VK[:, :channels].T
    largest_D1 = strongest_DV.gather(1, strongest_DV.abs().argmax(1, keepdim=True))
    signed_DV = strongest_DV * torch.where(largest_D1 < 0, -1.0, 1.0)  # else arbitrary
    deviation = float(strengths_K[:channels].double().square().sum() / (len(cells_LV) * channels)) ** 0.5
    return F.pad(signed_DV, (0, 0, 0, channels - len(signed_DV))), deviation


def _margin(side: int, overlap: bool) -> int:
    """By how much a window reaches beyond its cell on either side."""
    return side // 2 if overlap and side % 2 == 0 else 0


def _windows(geometry: StreamGeometry, *, sound: bool) -> dict[str, tuple[int, tuple[int, int]]]:
    """{plane: (channels of its images, (rows, columns) of a cell in them)}."""
    p, q = geometry.patch
    channels, frames, rows, columns = geometry.input_shape
    if sound:
        return {
            "HW": (channels * frames, (p, q)),
            "WT": (channels * rows, (1, q)),
            "HT": (channels, (p, columns)),
        }
    return {
        "HW": (channels * frames, (p, q)),
        "WT": (channels * rows, (1, q)),
        "HT": (channels * columns, (1, p)),
    }
