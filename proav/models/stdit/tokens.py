"""The six planes as one sequence of tokens: the place of each token, and which tokens attend to which.

Planes with fewer channels may have larger tokens (`LatentGeometry.token_patches`): a small token of few
channels would hold only a few numbers. Not here: the maps from planes to tokens (`transformer.py`), positions
(`embeddings.py`). Letters: B clips, P=6 planes, L tokens of all planes, l tokens of a plane, d width, h
heads, k head width.
"""

from collections.abc import Callable, Sequence
from itertools import groupby

import torch
from einops import rearrange, reduce, repeat
from torch import Tensor

from proav.geometry import MODALITIES, PLANES_PER_MODALITY
from proav.models.layers import attend


class TokenLayout:
    """The order of the tokens: plane after plane, and the tokens of a plane row by row.

    sides: tokens along the side of each plane; each divides the largest.
    """

    def __init__(self, sides: Sequence[int]) -> None:
        self.sides, self.finest = tuple(sides), max(sides)
        assert all(self.finest % side == 0 for side in sides), f"sides {sides} do not divide the largest"
        self.counts = tuple(side**2 for side in sides)
        by_modality = (self.counts[i : i + PLANES_PER_MODALITY] for i in (0, PLANES_PER_MODALITY))
        self.of_modalities = tuple(map(sum, by_modality))
        self.runs = [(side, len(list(planes))) for side, planes in groupby(self.sides)]
        """(side, number of planes) for consecutive planes of one size."""
        self.of_runs = [planes * side**2 for side, planes in self.runs]

    @property
    def num_tokens(self) -> int:
        """L."""
        return sum(self.counts)

    @property
    def pairs_within_planes(self) -> int:
        """Pairs of tokens that attend to each other in `within_planes`."""
        return sum(count**2 for count in self.counts)

    @property
    def pairs_across_planes(self) -> int:
        """Pairs of tokens that attend to each other in `across_planes`."""
        return self.finest**2 * len(self.sides) ** 2

    def by_modality(self, function: Callable[..., Tensor], tokens_BLd: Tensor, *values_B2d: Tensor) -> Tensor:
        """function(tokens, *values), with the values of each token's own modality; [B, L, d]."""
        if len(set(self.of_modalities)) == 1:  # one call, no copies
            halves_B2Ld = tokens_BLd.unflatten(1, (len(MODALITIES), -1))
            return function(halves_B2Ld, *(values[:, :, None] for values in values_B2d)).flatten(1, 2)
        parts = tokens_BLd.split(self.of_modalities, dim=1)
        return torch.cat(
            [function(part, *(values[:, i, None] for values in values_B2d)) for i, part in enumerate(parts)],
            dim=1,
        )

    def within_planes(self, query_BLhk: Tensor, key_BLhk: Tensor, value_BLhk: Tensor) -> Tensor:
        """Attention within each of the six planes; [B, L, h, k]."""
        parts = []
        runs = (heads.split(self.of_runs, dim=1) for heads in (query_BLhk, key_BLhk, value_BLhk))
        for (_, planes), *run in zip(self.runs, *runs, strict=True):
            apart = (rearrange(heads, "b (p l) h k -> (b p) h l k", p=planes) for heads in run)
            parts.append(rearrange(attend(*apart), "(b p) h l k -> b (p l) h k", p=planes))
        return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]

    def across_planes(self, query_BLhk: Tensor, key_BLhk: Tensor, value_BLhk: Tensor) -> Tensor:
        """Attention of the six tokens at each place of the finest planes; [B, L, h, k].

        A larger token takes part at every place that it covers. Its result is the mean over these places.
        """
        at_places = (self._to_places(heads) for heads in (query_BLhk, key_BLhk, value_BLhk))
        apart = (rearrange(heads, "b p l h k -> (b l) h p k") for heads in at_places)
        mixed = rearrange(attend(*apart), "(b l) h p k -> b p l h k", l=self.finest**2)
        return self._from_places(mixed)

    def _to_places(self, heads_BLhk: Tensor) -> Tensor:
        """[B, 6, places, h, k]."""
        parts = []
        for (side, planes), run in zip(self.runs, heads_BLhk.split(self.of_runs, dim=1), strict=True):
            axes = {"p": planes, "n": side, "i": self.finest // side, "j": self.finest // side}
            parts.append(repeat(run, "b (p n m) h k -> b p (n i m j) h k", **axes))
        return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]

    def _from_places(self, heads_BPlhk: Tensor) -> Tensor:
        parts = []
        runs = heads_BPlhk.split([planes for _, planes in self.runs], dim=1)
        for (side, _), run in zip(self.runs, runs, strict=True):
            axes = {"n": side, "m": side, "i": self.finest // side}
            parts.append(reduce(run, "b p (n i m j) h k -> b (p n m) h k", "mean", **axes))
        return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]


def everywhere(query_BLhk: Tensor, key_BLhk: Tensor, value_BLhk: Tensor) -> Tensor:
    """Attention of all tokens; [B, L, h, k]."""
    mixed = attend(*(rearrange(heads, "b l h k -> b h l k") for heads in (query_BLhk, key_BLhk, value_BLhk)))
    return rearrange(mixed, "b h l k -> b l h k")
