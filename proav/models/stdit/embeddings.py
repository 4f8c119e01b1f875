"""Embeddings of ST-DiT: positions are added to tokens; times, labels and vectors of a clip modulate them.

Positions are along T, H and W. Not here: rotary positions of the autoencoder (`proav/models/layers.py`), and
sequences of vectors, which tokens attend to (`context.py`). Follows "ProAV-DiT", Figure 2 (b), and DiT. The
axis-aware positions and the two times are our choice. Letters: B clips, K labels of a clip, L tokens of all
planes, W width of a given vector, d width.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from proav.config import Config
from proav.diffusion.conditions import Conditions
from proav.geometry import MODALITIES, PLANE_NAMES, PLANES_PER_MODALITY
from proav.models.layers import ClosedLinear, map_flops
from proav.text import NO_LABEL

NUM_MODALITIES = len(MODALITIES)
PLANE_AXES = {"axes": ("HW", "TW", "TH"), "plain": ("HW", "HW", "HW")}
"""Axes of the rows and columns of each plane, in the order of PLANE_NAMES within a modality.

T is always the first axis of WT and HT. plain: every plane is positioned like an image, as in DiT.
"""
AXES = "THW"

TIME_SCALE = 1000.0
"""Times in [0, 1] are multiplied by this before the sinusoids, since DiT uses them for times up to 1000."""
MAX_PERIOD = 10_000.0
"""The angular frequencies of the sinusoids fall from 1 to nearly 1 / MAX_PERIOD, as in DiT."""
NUM_FREQUENCIES = 128
"""Frequencies of the time embedding: 256 sines and cosines, as in DiT."""
MAP_PREFIX = "of_"
"""Prefix of a vector's name in the names of weights: nn.ModuleDict refuses some names, such as `keys`."""


def sinusoids(values: Tensor, num_frequencies: int) -> Tensor:
    """[..., 2F] = [cos(x w_k), sin(x w_k)], with w_k = MAX_PERIOD^(-k / F), k = 0 .. F-1.

    values [...]: any real numbers. The result is computed in float32 at least, since times of 1000 lose their
    fraction in bf16.
    """
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    exponents = torch.arange(num_frequencies, device=values.device, dtype=values.dtype) / num_frequencies
    angles = values[..., None] * torch.exp(-math.log(MAX_PERIOD) * exponents)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def axis_positions(
    side: int,
    width: int,
    *,
    spacing: tuple[float, float] = (1.0, 1.0),
    kind: Literal["axes", "plain"] = "axes",
) -> Tensor:
    """Positions of the tokens of one modality's planes, [3, side * side, width].

    Token (i, j) of the plane with axes (X, Y) gets e_X(c_i) + e_Y(c_j). Its centre is
    c_i = (i + 1/2) s - 1/2, with the spacing s of that axis, so that tokens of any size share coordinates.
    e_T, e_H and e_W are sinusoids in separate channels, a third of the width each. The rest, width mod 6,
    stays zero. So inner products compare each axis with itself. Equal times in WT and HT have equal time
    channels. Token (i, j) differs from token (j, i).

    side: rows and columns of tokens.
    width: features of a token.
    spacing: distance of neighbouring tokens along H and W, and along T. Larger tokens are farther apart.
    kind: of the axes, see PLANE_AXES.
    """
    share = 2 * (width // (2 * len(AXES)))
    in_space, in_time = (sinusoids((torch.arange(side) + 0.5) * apart - 0.5, share // 2) for apart in spacing)
    table = torch.zeros(PLANES_PER_MODALITY, side, side, width)
    for plane, (rows, columns) in enumerate(PLANE_AXES[kind]):
        for axis, dim in ((rows, 1), (columns, 0)):
            start = share * AXES.index(axis)
            along = in_time if axis == "T" else in_space
            table[plane, :, :, start : start + share] += along.unsqueeze(dim)
    return table.flatten(1, 2)


class TokenPositions(nn.Module):
    """x_bl + e_axes(l) + u_type(p mod 3) + u_modality(p div 3) + u_frame(p), for token l of plane p.

    The axis positions are fixed and the same for both modalities, so that sound and picture of one time share
    coordinates. Three learned tables distinguish the planes: by type (HW, WT, HT), by modality, and by place
    in the stack of six (Figure 2 (b)).
    """

    def __init__(
        self,
        sides: Sequence[int],
        width: int,
        *,
        spacing: tuple[float, float] = (1.0, 1.0),
        kind: Literal["axes", "plain"] = "axes",
    ) -> None:
        """sides: tokens along the side of each of the six planes.

        width: features of a token.
        spacing: distance of neighbouring tokens of the finest planes along H and W, and along T.
        kind: as in `axis_positions`.
        """
        super().__init__()
        self.counts = tuple(side**2 for side in sides)
        self.plane_type = nn.Parameter(torch.empty(PLANES_PER_MODALITY, width))
        self.modality = nn.Parameter(torch.empty(NUM_MODALITIES, width))
        self.frame = nn.Parameter(torch.empty(len(PLANE_NAMES), width))
        axes = []
        for plane, side in enumerate(sides):
            in_space, in_time = (max(sides) / side * apart for apart in spacing)
            of_planes = axis_positions(side, width, spacing=(in_space, in_time), kind=kind)
            axes.append(of_planes[plane % PLANES_PER_MODALITY])
        self.register_buffer("axes", torch.cat(axes), persistent=False)
        for table in (self.plane_type, self.modality, self.frame):
            nn.init.normal_(table, std=0.02)

    def forward(self, tokens_BLd: Tensor) -> Tensor:
        planes_Pd = self.frame + self.plane_type.repeat(NUM_MODALITIES, 1)
        planes_Pd = planes_Pd + self.modality.repeat_interleave(PLANES_PER_MODALITY, dim=0)
        of_tokens = [plane.expand(count, -1) for plane, count in zip(planes_Pd, self.counts, strict=True)]
        return tokens_BLd + self.axes + torch.cat(of_tokens)


class Conditioning(nn.Module):
    """c_m = f(s(t_m)) + g(s(t_other)) + u_m + e_labels + sum_n A_n x_n / |x_n|, a vector for each modality m.

    s is `sinusoids` of TIME_SCALE * t; f and g are Linear-SiLU-Linear. Each modality thus knows its own time
    and the other's. The maps differ, so a clean sound with a noisy picture gives other vectors than a noisy
    sound with a clean picture. u_m lets equal times modulate the modalities differently. e_labels is the mean
    of the label table's rows for the clip's labels. The table has num_labels + 1 rows; the last is the null
    label, which means that no label is given. x_n are the vectors of `stdit.vectors`, one a clip, and |x| is
    the root mean square. A_n is zero-initialized. It has no bias, so zeros add nothing: they stand for a clip
    without the vector. The form is DiT's. Two times, u_m, several
    labels and the vectors are our choice.
    """

    def __init__(self, config: Config, num_labels: int) -> None:
        super().__init__()
        _, width, _ = config.stdit.shape

        def mlp() -> nn.Sequential:
            return nn.Sequential(nn.Linear(2 * NUM_FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))

        self.own_time, self.other_time = mlp(), mlp()
        self.modality = nn.Parameter(torch.zeros(NUM_MODALITIES, width))
        self.label = nn.Embedding(num_labels + 1, width)
        single = {name: shape[0] for name, shape in config.stdit.vector_shapes.items() if len(shape) == 1}
        self.vectors = vector_maps(single, width)
        for layer in (*self.own_time, *self.other_time):
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        nn.init.normal_(self.label.weight, std=0.02)

    def forward(self, times_B2: Tensor, conditions: Conditions) -> Tensor:
        """[B, 2, d]. times in [0, 1], column 0 video, 1 audio; labels in 0 .. num_labels, then NO_LABEL."""
        waves_B2F = sinusoids(TIME_SCALE * times_B2, NUM_FREQUENCIES).to(self.own_time[0].weight.dtype)
        times_B2d = self.own_time(waves_B2F) + self.other_time(waves_B2F.flip(1))
        vectors_B2d = times_B2d + self.modality + self._mean_of_labels(conditions.labels_BK)[:, None]
        for key, to_width in self.vectors.items():
            values_BW = conditions.vectors.get(key.removeprefix(MAP_PREFIX))
            if values_BW is not None:
                vectors_B2d = vectors_B2d + to_width(unit_size(values_BW).to(to_width.weight.dtype))[:, None]
        return vectors_B2d

    def _mean_of_labels(self, labels_BK: Tensor) -> Tensor:
        has_BK1 = (labels_BK != NO_LABEL)[..., None]
        rows_BKd = self.label(labels_BK.clamp(min=0)) * has_BK1
        return rows_BKd.sum(1) / has_BK1.sum(1)

    def flops(self) -> int:
        """FLOPs for one clip. The tables cost nothing."""
        times = map_flops(self.own_time, NUM_MODALITIES) + map_flops(self.other_time, NUM_MODALITIES)
        return times + map_flops(self.vectors, 1)


def vector_maps(widths: Mapping[str, int], width: int) -> nn.ModuleDict:
    """A zero-initialized linear map to `width` for each {name: width of its vectors}.

    Without a bias it maps zeros to zeros.
    """
    return nn.ModuleDict(
        {f"{MAP_PREFIX}{name}": ClosedLinear(own, width, bias=False) for name, own in widths.items()}
    )


def unit_size(values: Tensor) -> Tensor:
    """Vectors [..., W] scaled to a root mean square of 1: encoders differ in scale. Zeros stay zeros."""
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    return F.rms_norm(values, values.shape[-1:], eps=1e-12)
