"""Sequences of vectors that the tokens of ST-DiT attend to, such as the words of a text.

Not here: a single vector of a clip, which modulates all tokens (`embeddings.py`). Follows the cross-attention
of STDiT and PixArt, which has no gate. It does not change a clip without a sequence; this is our choice.
Letters: B clips, M vectors of all sequences, L tokens of all planes, d width, h heads, k head width.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from proav.config import Config
from proav.models.layers import ClosedLinear, hidden_map, map_flops
from proav.models.stdit.embeddings import MAP_PREFIX, unit_size, vector_maps


@dataclass(frozen=True)
class Context:
    """What tokens attend to. vectors_BMd: mapped vectors. told_BM: bool; false for vectors that are zeros,
    which are ignored."""

    vectors_BMd: Tensor
    told_BM: Tensor


class ContextMaps(nn.Module):
    """For each sequence of `stdit.vectors`, a linear map without a bias to the width of the tokens."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        _, width, _ = config.stdit.shape
        self.shapes = {name: shape for name, shape in config.stdit.vector_shapes.items() if len(shape) == 2}
        self.maps = vector_maps({name: own for name, (_, own) in self.shapes.items()}, width)
        for linear in self.maps.values():  # the attention's output map is zero: one zero factor is enough
            nn.init.xavier_uniform_(linear.weight)

    @property
    def length(self) -> int:
        """Number of vectors of a clip if all its sequences have their greatest length."""
        return sum(length for length, _ in self.shapes.values())

    def forward(self, vectors: Mapping[str, Tensor]) -> Context | None:
        """The mapped sequences, one after the other; None if `vectors` (of `Conditions`) has no sequence."""
        given = {name: vectors[name] for name in self.shapes if name in vectors}
        if not given:
            return None
        mapped = []
        for name, values_BLW in given.items():
            linear = self.maps[f"{MAP_PREFIX}{name}"]
            mapped.append(linear(unit_size(values_BLW).to(linear.weight.dtype)))
        return Context(
            torch.cat(mapped, 1), torch.cat([(values != 0).any(-1) for values in given.values()], 1)
        )

    def flops(self) -> int:
        """FLOPs for one clip."""
        return sum(
            map_flops(self.maps[f"{MAP_PREFIX}{name}"], length) for name, (length, _) in self.shapes.items()
        )


class CrossAttention(nn.Module):
    """softmax(Q K^T / sqrt(k)) V over the vectors of a clip and one more, whose key and value are zero.
    Because of that one, the result of a clip without vectors is exactly zero. At initialization the
    result of every clip is zero: the output map is zero-initialized and has no bias. Queries and keys are
    RMS-normalized per head.
    """

    def __init__(self, width: int, num_heads: int) -> None:
        """width: d. num_heads: h."""
        super().__init__()
        self.num_heads = num_heads
        self.query = hidden_map(nn.Linear(width, width))
        self.key_value = hidden_map(nn.Linear(width, 2 * width), parts=2)
        self.out = hidden_map(ClosedLinear(width, width, bias=False))

    def forward(self, tokens_BLd: Tensor, context: Context) -> Tensor:
        query_BLd = self.query(F.layer_norm(tokens_BLd, tokens_BLd.shape[-1:]))
        query_BhLk = rearrange(query_BLd, "b l (h k) -> b h l k", h=self.num_heads)
        vectors_BMd = F.pad(self.key_value(context.vectors_BMd), (0, 0, 0, 1))
        key_BhMk, value_BhMk = rearrange(vectors_BMd, "b m (two h k) -> two b h m k", two=2, h=self.num_heads)
        mask_B11M = F.pad(context.told_BM, (0, 1), value=True)[:, None, None]
        mixed_BhLk = F.scaled_dot_product_attention(
            unit_size(query_BhLk).to(value_BhMk), unit_size(key_BhMk).to(value_BhMk), value_BhMk,
            attn_mask=mask_B11M,
        )  # fmt: skip
        return self.out(rearrange(mixed_BhLk, "b h l k -> b l (h k)"))

    def flops(self, tokens: int, vectors: int) -> int:
        """FLOPs for one clip of `tokens` that attend to `vectors`."""
        maps = (
            map_flops(self.query, tokens) + map_flops(self.out, tokens) + map_flops(self.key_value, vectors)
        )
        return maps + 4 * tokens * (vectors + 1) * self.out.in_features
