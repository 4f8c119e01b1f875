"""The linear half of MDSA: images to three planes, block by block, and back; fitted before training.

The paper calls its projection an orthogonal decomposition. This is that decomposition without a network. Each
plane takes the principal components of what the planes before it have left. Pictures begin with HW, whose
cells code the temporal mean. Sound begins with HT, whose cells are a spectrogram's. The blocks are those of
lapped images (`lapping.py`), so that neither pictures nor sound show their borders. Not here: the network
that adds to it (`streams.py`, `refiner.py`).
Letters: B clips, C image channels, T frames, R S rows and columns of an image, H W rows and columns of cells,
D latent channels. In the fit: N clips, F images kept of a clip, L blocks, V values of a block.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from proav.geometry import PLANES, StreamGeometry
from proav.models.layers import full_precision
from proav.models.mdsa.blocks import BlockAnalysis, BlockSynthesis, principal_components, set_blocks
from proav.models.mdsa.lapping import Lapping
from proav.models.mdsa.switched import SwitchedCells
from proav.models.sampled import Sampled

FIT_FRAMES = 2
"""Frames of a picture clip in the fit, beside the temporal mean. All frames gained 0.05 dB at most."""
FIT_CELLS = 64
"""Cells of a clip that the bases of switched cells are fitted on."""
FIT_CLIPS_AT_ONCE = 8
"""Number of clips that a plane is subtracted from at a time; bounds the memory of the fit."""
MIN_SCALE = 1e-3
"""Codes with a smaller deviation are scaled up no further: 8-bit pictures have steps of 8e-3."""


@dataclass(frozen=True)
class Cut:
    """How one plane's cells are cut from a clip.

    The clip is laid out as 2D images; the cells of these images are laid out as a plane.
    """

    images: str
    """Layout of the images, from a clip "b c t r s"."""
    cells: str
    """Layout of the cells of those images' blocks."""
    plane: str
    """Layout of the same cells as a plane: T is the first axis of WT and HT."""

    def to_images(self, clip_BCTRS: Tensor) -> Tensor:
        return rearrange(clip_BCTRS, f"b c t r s -> {self.images}")

    def to_clip(self, images: Tensor, channels: int, frames: int) -> Tensor:
        return rearrange(images, f"{self.images} -> b c t r s", c=channels, t=frames)

    def to_plane(self, cells: Tensor, frames: int) -> Tensor:
        axes = {"t": frames} if "t" in self.plane else {}
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
"""In the order in which planes are fitted and subtracted.

The columns of a mel image are time within its frame. Laid end to end, blocks of WT and HT overlap across the
borders of frames. The order HT, then WT, lost least (docs/experiments.md).
"""


class MeanImage(nn.Module):
    """The training clips' mean by channel and row, [C, R, 1].

    For pictures these are the colours by height, for sound the mean spectrum.
    """

    def __init__(self, channels: int, rows: int) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(channels, rows, 1))

    def forward(self, clip_BCTRS: Tensor, sign: float) -> Tensor:
        """clip + sign * mean."""
        return clip_BCTRS + sign * self.value.float()[:, None]


class LinearPlanes(nn.Module):
    """A stream's linear code: z_p = A_p (x - m - sum over earlier planes of S_q z_q), x' = m + sum_p S_p z_p.

    A_p is `Lapping`, then `BlockAnalysis`. S_p is `BlockSynthesis`, then `Lapping` back. m is `MeanImage`.
    All are zero until `fit` or a checkpoint fills them.
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
        """geometry: of the stream's images.

        channels: {plane: D}.
        sound: whether the stream is sound.
        overlap: whether blocks overlap.
        switched: (bases, channels) of `SwitchedCells`; the channels are taken from the first plane's. By
            default there are none.
        """
        super().__init__()
        num_bases, switched_channels = switched
        self.geometry, self.sound = geometry, sound
        self.cuts = SOUND_CUTS if sound else PICTURE_CUTS
        self.first, self.last = next(iter(self.cuts)), next(reversed(self.cuts))
        self.channels = dict(channels) | {self.first: channels[self.first] - switched_channels}
        self.mean = MeanImage(geometry.channels, geometry.rows)
        self.sides, self.lapping = {}, nn.ModuleDict()
        self.analysis, self.synthesis = nn.ModuleDict(), nn.ModuleDict()
        blocks = _blocks(geometry, sound=sound)
        for name, block in blocks.items():
            self.sides[name] = block[-2:]
            self.lapping[name], values = Lapping(block[-2:], overlap=overlap), math.prod(block)
            self.analysis[name] = BlockAnalysis(self.channels[name], values)
            self.synthesis[name] = BlockSynthesis(self.channels[name], values)
        self.switched = None
        if switched_channels:
            values = self.analysis[self.first].weight.shape[1]
            self.switched = SwitchedCells(switched_channels, num_bases, values)
        self.sampled = self._sampled(blocks)

    def _sampled(self, blocks: Mapping[str, tuple[int, ...]]) -> dict[str, Sampled]:
        """The weights that depend on the clip's size (`proav/models/sampled.py`): all of them.

        blocks: shapes of the planes' blocks.
        """
        found = {"mean.value": Sampled(tuple(self.mean.value.shape), (1,))}
        for way in ("analysis", "synthesis"):
            kernels = {f"{way}.{name}": (part, name) for name, part in getattr(self, way).items()}
            if self.switched is not None:
                bases = enumerate(getattr(self.switched, way))
                kernels |= {f"switched.{way}.{index}": (part, self.first) for index, part in bases}
            for key, (part, name) in kernels.items():
                shape = len(part.weight), *blocks[name]
                found[f"{key}.weight"] = Sampled(shape, (2, 3, 4), reads=way == "analysis")
        return found

    def analyse(self, clip_BCTRS: Tensor) -> dict[str, Tensor]:
        """{"HW": [B, D, H, W], "WT": [B, D, T, W], "HT": [B, D, T, H]}, float32, of about unit deviation."""
        with full_precision(clip_BCTRS.device):
            planes, rest = self._analyse_planes(clip_BCTRS.float())
            if self.switched is not None:
                rest = rest - self._part(self.last, planes[self.last])
                switched = self._to_plane(
                    self.first, self.switched.analyse(self._to_blocks(self.first, rest))
                )
                planes[self.first] = torch.cat([planes[self.first], switched], dim=1)
        return {name: planes[name] for name in PLANES}

    def synthesize(self, planes: Mapping[str, Tensor]) -> Tensor:
        """The clip [B, C, T, R, S] from planes as `analyse` gives them, float32, not bounded."""
        with full_precision(planes["HW"].device):
            planes = {name: plane.float() for name, plane in planes.items()}
            switched = None
            if self.switched is not None:
                common, switched = planes[self.first].tensor_split([self.channels[self.first]], dim=1)
                planes |= {self.first: common}
            return self._synthesize_planes(planes, switched)

    def analysis_flops(self) -> int:
        """FLOPs of `analyse` for one clip.

        Every plane but the last is subtracted, which takes its maps back. Switched cells are cut after the
        last plane is subtracted too, and their choice tries all bases.
        """
        there = {name: self._map_flops(name) for name in self.cuts}
        total = 2 * sum(there.values())
        if self.switched is None:
            return total - there[self.last]
        return total + self._lapping_flops(self.first) + 2 * self.switched.flops(self._num_cells(self.first))

    def synthesis_flops(self) -> int:
        """FLOPs of `synthesize` for one clip."""
        switched = 0 if self.switched is None else self.switched.flops(self._num_cells(self.first))
        return sum(self._map_flops(name) for name in self.cuts) + switched

    def _map_flops(self, name: str) -> int:
        """FLOPs between a clip and a plane, one way, without switched cells."""
        return 2 * self._num_cells(name) * self.analysis[name].weight.numel() + self._lapping_flops(name)

    def _lapping_flops(self, name: str) -> int:
        number, channels, *sides = self._images_shape(name)
        return self.lapping[name].flops(number * channels, *sides)

    def _num_cells(self, name: str) -> int:
        number, _, rows, columns = self._images_shape(name)
        p, q = self.sides[name]
        return number * (rows // p) * (columns // q)

    def _images_shape(self, name: str) -> tuple[int, int, int, int]:
        """(images, channels, rows, columns) of a plane, for one clip."""
        return tuple(
            self.cuts[name].to_images(torch.empty(1, *self.geometry.input_shape, device="meta")).shape
        )

    def _analyse_planes(self, clip_BCTRS: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """All planes without switched cells, and what was left for the last of them."""
        rest, planes = self.mean(clip_BCTRS, -1.0), {}
        for name in self.cuts:
            planes[name] = self._to_plane(name, self.analysis[name](self._to_blocks(name, rest)))
            if len(planes) < len(self.cuts):
                rest = rest - self._part(name, planes[name])
        return planes, rest

    def _synthesize_planes(self, planes: Mapping[str, Tensor], switched: Tensor | None = None) -> Tensor:
        """switched: the first plane's switched cells, as a plane."""
        parts = [self._part(name, planes[name], switched if name == self.first else None) for name in PLANES]
        return self.mean(sum(parts), 1.0)

    def _part(self, name: str, plane: Tensor, switched: Tensor | None = None) -> Tensor:
        """What a plane adds to the clip."""
        blocks_BHWV = self.synthesis[name](self.cuts[name].to_cells(plane))
        if switched is not None:
            blocks_BHWV = blocks_BHWV + self.switched.synthesize(self.cuts[name].to_cells(switched))
        return self._from_blocks(name, blocks_BHWV, self.geometry.num_frames)

    def _to_plane(self, name: str, cells: Tensor) -> Tensor:
        return self.cuts[name].to_plane(cells, self.geometry.num_frames)

    def _to_blocks(self, name: str, clip_BCTRS: Tensor) -> Tensor:
        """All blocks [., H, W, V] of a plane, cut from its lapped images.

        The values of an HW block cover all frames given.
        """
        images = self.lapping[name](self.cuts[name].to_images(clip_BCTRS))
        p, q = self.sides[name]
        return rearrange(images, "b c (h p) (w q) -> b h w (c p q)", p=p, q=q)

    def _from_blocks(self, name: str, blocks_BHWV: Tensor, frames: int) -> Tensor:
        """The inverse of `_to_blocks`: the clips with `frames` frames that have these blocks."""
        p, q = self.sides[name]
        images = rearrange(blocks_BHWV, "b h w (c p q) -> b c (h p) (w q)", p=p, q=q)
        return self.cuts[name].to_clip(self.lapping[name](images, back=True), self.geometry.channels, frames)

    @torch.no_grad()
    def fit(self, clips_NCFRS: Tensor) -> None:
        """Fills the maps: the mean, then each plane's principal components of what is left, block by block.

        clips_NCFRS: what `FitSample` keeps of the clips. One number per plane scales its codes to unit mean
        square. The result depends on the rounding of the machine's matrix kernels. So one worker fits, and
        the others take its weights.
        """
        self.mean.value.copy_(self._means(clips_NCFRS).mean((0, 2, 4))[..., None])
        rest_NCFRS = self.mean(clips_NCFRS, -1.0)
        for name in self.cuts:
            shown = self._means(rest_NCFRS) if name == "HW" else self._frames(rest_NCFRS)
            parts = shown.split(FIT_CLIPS_AT_ONCE)
            blocks_LV = torch.cat([self._to_blocks(name, part).flatten(0, 2) for part in parts])
            components_DV, deviation = principal_components(blocks_LV, self.channels[name])
            self._set_blocks(name, components_DV, deviation)
            for part_NCFRS in rest_NCFRS.split(FIT_CLIPS_AT_ONCE) if name != self.last else ():
                coded_NCFRS = self._means(part_NCFRS) if name == "HW" else part_NCFRS
                taken = self._to_blocks(name, coded_NCFRS) @ components_DV.T @ components_DV
                part_NCFRS -= self._from_blocks(name, taken, coded_NCFRS.shape[2])

    def _means(self, clips_NCFRS: Tensor) -> Tensor:
        """The temporal means of `FitSample`'s clips, [N, C, 1, R, S]."""
        return clips_NCFRS.mean(2, keepdim=True) if self.sound else clips_NCFRS[:, :, :1]

    def _frames(self, clips_NCFRS: Tensor) -> Tensor:
        return clips_NCFRS if self.sound else clips_NCFRS[:, :, 1:]

    def _set_blocks(self, name: str, components_DV: Tensor, deviation: float) -> None:
        """Sets a plane's kernels; its codes are divided by their deviation.

        HW's block is the same in all T frames, and its code is their mean: blocks / sqrt(T) have unit length.
        """
        blocks_DV, scale = components_DV, max(deviation, MIN_SCALE)
        if name == "HW":
            frames, channels = self.geometry.num_frames, self.geometry.channels
            blocks_DV = repeat(components_DV, "d (c v) -> d (c t v)", c=channels, t=frames) / frames**0.5
            scale *= frames**0.5
        set_blocks(self.analysis[name], self.synthesis[name], blocks_DV, scale)

    @torch.no_grad()
    def left_over(self, clip_BCTRS: Tensor, clips_before: int) -> Tensor:
        """Blocks [L, V] of the first plane's cells, cut from what the planes leave; for `fit_switched`.

        At most FIT_CELLS a clip are taken, spread evenly, and other cells in the next clip. clips_before:
        number of clips of the sample before these.
        """
        planes, _ = self._analyse_planes(clip_BCTRS.float())
        rest_BCTRS = clip_BCTRS.float() - self._synthesize_planes(planes)
        blocks_BLV = self._to_blocks(self.first, rest_BCTRS).flatten(1, 2)
        step = -(-blocks_BLV.shape[1] // FIT_CELLS)
        return torch.cat(
            [blocks_LV[(clips_before + i) % step :: step] for i, blocks_LV in enumerate(blocks_BLV)]
        )

    @torch.no_grad()
    def fit_switched(self, blocks_LV: Tensor) -> None:
        """Fills the switched cells' bases, after `fit`. Codes keep the scale of the plane around them."""
        scale = float(self.synthesis[self.first].gain)
        self.switched.fit(blocks_LV, self._motion(blocks_LV), scale)

    def _motion(self, blocks_LV: Tensor) -> Tensor:
        """[L]: the share of a block's energy that changes over time."""
        rows, columns = self.sides[self.first]
        sizes = {"p": rows, "q": columns, "c": self.geometry.channels}
        layout = "l (c t p q) -> l (c p q) t" if self.first == "HW" else "l (c p q) -> l (c p) q"
        over_time_LVT = rearrange(blocks_LV, layout, **sizes)
        change = over_time_LVT - over_time_LVT.mean(2, keepdim=True)
        return change.square().sum((1, 2)) / over_time_LVT.square().sum((1, 2)).clamp(min=1e-6)


class FitSample:
    """What the fit keeps of clips, so that it reads them only once.

    Of a picture clip it keeps the temporal mean and a few frames; of sound all frames, since its blocks
    overlap across them.
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
        """[N, C, F, R, S]: the temporal mean, then frames; for sound all frames. Empties the sample."""
        clips_NCFRS, self.parts = torch.cat(self.parts), []
        return clips_NCFRS


def _blocks(geometry: StreamGeometry, *, sound: bool) -> dict[str, tuple[int, int, int, int]]:
    """{plane: shape of its blocks}: channels, what is collapsed onto the plane, rows and columns of a cell.

    The images of a plane have channels x collapsed channels. HT of sound collapses nothing: the columns of
    its images are time.
    """
    p, q = geometry.patch
    channels, frames, rows, columns = geometry.input_shape
    if sound:
        return {"HW": (channels, frames, p, q), "WT": (channels, rows, 1, q), "HT": (channels, 1, p, columns)}
    return {"HW": (channels, frames, p, q), "WT": (channels, rows, 1, q), "HT": (channels, columns, 1, p)}
