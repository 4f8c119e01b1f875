"""The linear half of MDSA: images to three planes by fixed-size windows, and back; fitted before training.

The paper calls its projection an orthogonal decomposition; this is that decomposition without a network. Each
plane takes the principal components of what the planes before it have left. Pictures begin with HW, whose
cells code the temporal mean; sound begins with HT, whose cells are a spectrogram's. The windows are lapped
(`lapping.py`), so that pictures have no grid and sound no steps between frames. Not here: the network that
adds to it (`streams.py`, `refiner.py`).
B clips, C image channels, T frames, R S rows and columns of an image, H W rows and columns of cells, D latent
channels; in the fit N clips, F images kept of a clip, L blocks, V values of a block.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn

from proav.geometry import PLANES, StreamGeometry
from proav.models.lapping import lapped
from proav.models.layers import full_precision
from proav.models.switched import SwitchedCells
from proav.models.windows import WindowAnalysis, WindowSynthesis, principal_components, set_windows

FIT_FRAMES = 2
"""Frames of a clip that the fit looks at, beside the temporal mean: all of them gained 0.05 dB at most."""
FIT_CELLS = 64
"""Cells of a clip that the bases of switched cells are fitted on."""
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
        self,
        geometry: StreamGeometry,
        channels: Mapping[str, int],
        *,
        sound: bool,
        overlap: bool = True,
        switched: tuple[int, int] = (1, 0),
    ) -> None:
        """switched: (bases, channels) of `SwitchedCells`, the channels out of the first plane's; none by
        default.
        """
        super().__init__()
        num_bases, switched_channels = switched
        self.geometry, self.sound = geometry, sound
        self.cuts = SOUND_CUTS if sound else PICTURE_CUTS
        self.first, self.last = next(iter(self.cuts)), next(reversed(self.cuts))
        self.channels = dict(channels) | {self.first: channels[self.first] - switched_channels}
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
        self.switched = None
        if switched_channels:
            first = self.analysis[self.first]
            self.switched = SwitchedCells(
                switched_channels, num_bases, first.shape[1:], first.stride, first.margin
            )

    def analyse(self, clip_BCTRS: Tensor) -> dict[str, Tensor]:
        """{"HW": [B, D, H, W], "WT": [B, D, T, W], "HT": [B, D, T, H]}, float32, of about unit deviation."""
        with full_precision(clip_BCTRS.device):
            planes, rest = self._analyse_planes(clip_BCTRS.float())
            if self.switched is not None:
                cut, rest = self.cuts[self.first], rest - self._part(self.last, planes[self.last])
                cells = self.switched.analyse(cut.to_images(rest))
                switched = cut.to_plane(cells, self._sizes(len(rest)))
                planes[self.first] = torch.cat([planes[self.first], switched], dim=1)
        return {name: planes[name] for name in PLANES}

    def synthesize(self, planes: Mapping[str, Tensor]) -> Tensor:
        """The clip [B, C, T, R, S] of planes as `analyse` gives them, float32, not bounded."""
        with full_precision(planes["HW"].device):
            planes = {name: plane.float() for name, plane in planes.items()}
            if self.switched is None:
                return self._synthesize_planes(planes)
            cut, channels = self.cuts[self.first], self.channels[self.first]
            common, switched = planes[self.first].tensor_split([channels], dim=1)
            images = self.switched.synthesize(cut.to_cells(switched))
            clip_BCTRS = cut.to_clip(images, self._sizes(len(switched)))
            return self._synthesize_planes(planes | {self.first: common}) + clip_BCTRS

    def _analyse_planes(self, clip_BCTRS: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """All planes without switched cells, and what was left for the last of them."""
        rest, planes = self.mean(clip_BCTRS, -1.0), {}
        for name in self.cuts:
            planes[name] = self._cells(name, rest)
            if len(planes) < len(self.cuts):
                rest = rest - self._part(name, planes[name])
        return planes, rest

    def _synthesize_planes(self, planes: Mapping[str, Tensor]) -> Tensor:
        return self.mean(sum(self._part(name, planes[name]) for name in PLANES), 1.0)

    def _cells(self, name: str, clip_BCTRS: Tensor) -> Tensor:
        cut = self.cuts[name]
        return cut.to_plane(self.analysis[name](cut.to_images(clip_BCTRS)), self._sizes(len(clip_BCTRS)))

    def _part(self, name: str, plane: Tensor) -> Tensor:
        cut = self.cuts[name]
        return cut.to_clip(self.synthesis[name](cut.to_cells(plane)), self._sizes(len(plane)))

    def _sizes(self, batch: int) -> dict[str, int]:
        return {"b": batch, "c": self.geometry.channels, "t": self.geometry.num_frames}

    @torch.no_grad()
    def fit(self, clips_NCFRS: Tensor) -> None:
        """Fills the maps: the mean, then each plane's principal components of what is left, block by block.

        clips_NCFRS: what `FitSample` keeps of the clips. Blocks are those of the lapped images
        (`lapping.py`), so that the fit is a singular value decomposition a plane and windows overlap from
        the start; a plane's codes are scaled by one number to unit mean square. The result depends on the
        rounding of the machine's matrix kernels: one worker fits, the others take its weights.
        """
        self.mean.value.copy_(self._means(clips_NCFRS).mean((0, 2, 4))[..., None])
        rest_NCFRS = self.mean(clips_NCFRS, -1.0)
        for name in self.cuts:
            shown = self._means(rest_NCFRS) if name == "HW" else self._frames(rest_NCFRS)
            components_DV, deviation = principal_components(self._to_blocks(name, shown), self.channels[name])
            self._set_windows(name, components_DV, deviation)
            for part_NCFRS in rest_NCFRS.split(FIT_CLIPS_AT_ONCE) if name != self.last else ():
                coded_NCFRS = self._means(part_NCFRS) if name == "HW" else part_NCFRS
                blocks_LV = self._to_blocks(name, coded_NCFRS)
                taken_LV = blocks_LV @ components_DV.T @ components_DV
                part_NCFRS -= self._from_blocks(name, taken_LV, coded_NCFRS)

    def _means(self, clips_NCFRS: Tensor) -> Tensor:
        """Of `FitSample`'s clips the temporal means, [N, C, 1, R, S]."""
        return clips_NCFRS.mean(2, keepdim=True) if self.sound else clips_NCFRS[:, :, :1]

    def _frames(self, clips_NCFRS: Tensor) -> Tensor:
        return clips_NCFRS if self.sound else clips_NCFRS[:, :, 1:]

    def _to_blocks(self, name: str, clips_NCFRS: Tensor) -> Tensor:
        """All blocks [L, V] of a plane in these clips, lapped; of HW a block of the frames that there are."""
        sides, margins = self.windows[name][1], self.synthesis[name].margin
        images = lapped(self.cuts[name].to_images(clips_NCFRS), sides, margins)
        return rearrange(images, "b c (h p) (w q) -> (b h w) (c p q)", p=sides[0], q=sides[1])

    def _from_blocks(self, name: str, blocks_LV: Tensor, like_NCFRS: Tensor) -> Tensor:
        """The clips, shaped as `like_NCFRS`, of which `_to_blocks` gives these blocks."""
        cut, sides, margins = self.cuts[name], self.windows[name][1], self.synthesis[name].margin
        rows, columns = cut.to_images(like_NCFRS).shape[2:]
        axes = {"h": rows // sides[0], "w": columns // sides[1], "p": sides[0], "q": sides[1]}
        images = rearrange(blocks_LV, "(b h w) (c p q) -> b c (h p) (w q)", **axes)
        images = lapped(images, sides, margins, back=True)
        return cut.to_clip(images, dict(zip("bct", like_NCFRS.shape[:3], strict=True)))

    def _set_windows(self, name: str, components_DV: Tensor, deviation: float) -> None:
        """Windows of these blocks; codes are divided by their deviation.

        HW's block is the same in all T frames, its code their mean: blocks / sqrt(T) have unit length.
        """
        (rows, columns), scale = self.windows[name][1], max(deviation, MIN_SCALE)
        blocks = rearrange(components_DV, "d (c p q) -> d c p q", p=rows, q=columns)
        if name == "HW":
            length = self.geometry.num_frames**0.5
            blocks, scale = blocks.repeat_interleave(self.geometry.num_frames, dim=1) / length, length * scale
        set_windows(self.analysis[name], self.synthesis[name], blocks, scale)

    @torch.no_grad()
    def left_over(self, clip_BCTRS: Tensor, clips_before: int) -> Tensor:
        """Blocks [L, V] of the first plane's cells, of what the planes leave: the sample for `fit_switched`.

        At most FIT_CELLS of a clip, spread evenly, others in the next clip. clips_before: of the sample.
        """
        planes, _ = self._analyse_planes(clip_BCTRS.float())
        rest_BCTRS = clip_BCTRS.float() - self._synthesize_planes(planes)
        blocks_BLV = self._to_blocks(self.first, rest_BCTRS).unflatten(0, (len(clip_BCTRS), -1))
        step = -(-blocks_BLV.shape[1] // FIT_CELLS)
        return torch.cat(
            [blocks_LV[(clips_before + i) % step :: step] for i, blocks_LV in enumerate(blocks_BLV)]
        )

    @torch.no_grad()
    def fit_switched(self, blocks_LV: Tensor) -> None:
        """Fills the switched cells' bases, after `fit`; codes keep the scale of the plane around them."""
        scale = float(self.synthesis[self.first].gain)
        self.switched.fit(blocks_LV, self._motion(blocks_LV), scale)

    def _motion(self, blocks_LV: Tensor) -> Tensor:
        """[L]: the share of a block's energy that changes over time."""
        rows, columns = self.windows[self.first][1]
        sizes = {"p": rows, "q": columns, "c": self.geometry.channels}
        layout = "l (c t p q) -> l (c p q) t" if self.first == "HW" else "l (c p q) -> l (c p) q"
        over_time_LVT = rearrange(blocks_LV, layout, **sizes)
        change = over_time_LVT - over_time_LVT.mean(2, keepdim=True)
        return change.square().sum((1, 2)) / over_time_LVT.square().sum((1, 2)).clamp(min=1e-6)


class FitSample:
    """What the fit keeps of clips, which are read once.

    Of a picture clip the temporal mean and a few frames; of sound all frames, since its windows reach across
    them.
    """

    def __init__(self, *, sound: bool) -> None:
        self.sound, self.parts, self.num_clips = sound, [], 0

    def add(self, clip_BCTRS: Tensor) -> None:
        """Frames are picked in turn, so that over the clips every place in time occurs."""
        clip_BCTRS, (batch, _, frames) = clip_BCTRS.float(), clip_BCTRS.shape[:3]
        if self.sound:
            self.parts.append(clip_BCTRS)
        else:
            picked = min(FIT_FRAMES, frames)
            clips_B, apart_F = torch.arange(batch), torch.arange(picked) * frames // picked
            times_BF = (self.num_clips + clips_B[:, None] + apart_F) % frames
            some_BFCRS = clip_BCTRS.transpose(1, 2)[clips_B[:, None], times_BF]
            mean_BC1RS = clip_BCTRS.mean(2, keepdim=True)
            self.parts.append(torch.cat([mean_BC1RS, some_BFCRS.transpose(1, 2)], dim=2))
        self.num_clips += batch

    def clips(self) -> Tensor:
        """[N, C, F, R, S]: temporal mean, then frames; of sound all frames. Empties the sample."""
        clips_NCFRS, self.parts = torch.cat(self.parts), []
        return clips_NCFRS


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
