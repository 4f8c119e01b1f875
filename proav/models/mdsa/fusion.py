"""MDSA's attention modules: MT-SelfAttn, SelfAttn, GCM-Attn and Bi-Block CrossAttn.

They follow ProAV-DiT, Section 3 and Figure 2 (a). Every module adds an update with a zero-initialized output
projection. So an untrained model is two independent autoencoders, and each module's gain can be measured.
What the paper leaves open is marked "our choice". Not here: the order of the modules (`autoencoder.py`).
Letters: B clips, T frames, R rows and S columns of a plane (R = T on WT and HT), C channels, K scales, G
groups, L tokens.
"""

import torch
from einops import rearrange, reduce
from torch import Tensor, nn

from proav.models.layers import Attention, Norm, axis_positions, grid_positions, linear_resize_matrix


class MultiScaleTemporalAttention(nn.Module):
    """MT-SelfAttn: self-attention over time in each column of a plane, at several temporal resolutions.

    plane + sum_k softmax_k(fusion)[k, c] * up_k(attention_k(pool_k(norm(plane)))),
    pool_k: mean of k neighbouring frames, up_k: linear interpolation. Our choice: scales are pooling factors;
    a learned softmax per channel, uniform at first, fuses them; rotary positions are frame times, so that all
    scales share a clock.
    """

    def __init__(self, width: int, num_heads: int, scales: tuple[int, ...], *, share_scales: bool) -> None:
        """width: C.

        num_heads: attention heads.
        scales: pooling factors.
        share_scales: whether all scales share one attention.
        """
        super().__init__()
        self.scales = scales
        self.norm = Norm(width)
        num_modules = 1 if share_scales else len(scales)
        self.attentions = nn.ModuleList(
            Attention(width, num_heads, width // num_heads, closed=True) for _ in range(num_modules)
        )
        self.fusion_KC = nn.Parameter(torch.zeros(len(scales), width))

    def forward(self, plane_BTSC: Tensor) -> Tensor:
        b, t, _, _ = plane_BTSC.shape
        columns_BTC = rearrange(self.norm(plane_BTSC), "b t s c -> (b s) t c")
        weights_KC = self.fusion_KC.float().softmax(dim=0)
        update_BTC = sum(
            weight_C * self._at_scale(columns_BTC, index).float() for index, weight_C in enumerate(weights_KC)
        )
        return plane_BTSC + rearrange(update_BTC.to(plane_BTSC.dtype), "(b s) t c -> b t s c", b=b)

    def _at_scale(self, columns_BTC: Tensor, index: int) -> Tensor:
        scale, num_frames = self.scales[index], columns_BTC.shape[1]
        attention = self.attentions[index % len(self.attentions)]
        pooled_BTC = reduce(columns_BTC, "b (t k) c -> b t c", "mean", k=scale)
        centres = axis_positions(num_frames // scale, columns_BTC.device) * scale + (scale - 1) / 2
        update_BTC = attention(pooled_BTC, positions_LA=centres)
        if scale == 1:
            return update_BTC
        upsample = linear_resize_matrix(num_frames // scale, num_frames, update_BTC.device).to(
            update_BTC.dtype
        )
        return torch.einsum("ut,btc->buc", upsample, update_BTC)

    def flops(self, frames: int, columns: int) -> int:
        """FLOPs for a plane of this shape: attention at each scale, and the interpolation of its result."""
        total = 0
        for index, scale in enumerate(self.scales):
            length, attention = frames // scale, self.attentions[index % len(self.attentions)]
            total += attention.flops(length, length, sequences=columns)
            total += 2 * frames * length * columns * self.fusion_KC.shape[1] if scale > 1 else 0
        return total


class SpatialAttention(nn.Module):
    """SelfAttn: plane + attention(norm(plane)) over all cells of the HW plane; axial rotary positions."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.norm = Norm(width)
        self.attention = Attention(width, num_heads, width // num_heads, closed=True)

    def forward(self, plane_BHWC: Tensor) -> Tensor:
        _, h, w, _ = plane_BHWC.shape
        update = self.attention(
            rearrange(self.norm(plane_BHWC), "b h w c -> b (h w) c"),
            positions_LA=grid_positions(h, w, plane_BHWC.device),
        )
        return plane_BHWC + rearrange(update, "b (h w) c -> b h w c", h=h)

    def flops(self, rows: int, columns: int) -> int:
        """FLOPs for a plane of this shape."""
        return self.attention.flops(rows * columns, rows * columns)


def add_where(plane_BRSC: Tensor, update_BRSC: Tensor, open_B: Tensor | None) -> Tensor:
    """plane + update for the clips whose exchange is on (None: all). The other clips pass bit for bit."""
    updated = plane_BRSC + update_BRSC.to(plane_BRSC.dtype)
    return (
        updated
        if open_B is None
        else torch.where(open_B.to(plane_BRSC.device)[:, None, None, None], updated, plane_BRSC)
    )


class CrossAttentionPair(nn.Module):
    """Attention from each modality's tokens to the other's. Each direction has its own projections.

    Both directions read the planes as they are before either is updated, so their order does not matter.
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.norm_video, self.norm_audio = Norm(width), Norm(width)
        self.to_video = Attention(width, num_heads, width // num_heads, closed=True)
        self.to_audio = Attention(width, num_heads, width // num_heads, closed=True)


class GroupCrossAttention(CrossAttentionPair):
    """GCM-Attn on a pair of WT or HT planes: cross-attention within each of G contiguous groups of frames.

    In a group all tokens of one modality attend to all of the other. Our choice: groups are spans of time.
    This keeps the exchange local in time and its cost proportional to 1 / G. Tokens are positioned by
    (frame, column), because both modalities share the clock of the frames.
    """

    def __init__(self, width: int, num_heads: int, num_groups: int) -> None:
        super().__init__(width, num_heads)
        self.num_groups = num_groups

    def forward(
        self,
        video_BTSC: Tensor,
        audio_BTSC: Tensor,
        to_video_B: Tensor | None = None,
        to_audio_B: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Two planes [B, T, S, C] -> the two, updated.

        video_BTSC, audio_BTSC: a WT or HT plane of each modality.
        to_video_B, to_audio_B: bool, the clips whose exchange to that modality is on; None: all.
        """
        _, t, s, _ = video_BTSC.shape
        video_BLC, audio_BLC = (
            self._group(self.norm_video(video_BTSC)),
            self._group(self.norm_audio(audio_BTSC)),
        )
        positions_LA = grid_positions(t // self.num_groups, s, video_BTSC.device)
        update_video = self._ungroup(self.to_video(video_BLC, audio_BLC, positions_LA=positions_LA), s)
        update_audio = self._ungroup(self.to_audio(audio_BLC, video_BLC, positions_LA=positions_LA), s)
        return add_where(video_BTSC, update_video, to_video_B), add_where(
            audio_BTSC, update_audio, to_audio_B
        )

    def flops(self, frames: int, columns: int) -> int:
        """FLOPs for a pair of planes of this shape, both directions."""
        tokens = frames // self.num_groups * columns
        return sum(
            attention.flops(tokens, tokens, sequences=self.num_groups)
            for attention in (self.to_video, self.to_audio)
        )

    def _group(self, plane_BTSC: Tensor) -> Tensor:
        return rearrange(plane_BTSC, "b (g t) s c -> (b g) (t s) c", g=self.num_groups)

    def _ungroup(self, tokens_BLC: Tensor, columns: int) -> Tensor:
        return rearrange(tokens_BLC, "(b g) (t s) c -> b (g t) s c", g=self.num_groups, s=columns)


class BiBlockCrossAttention(CrossAttentionPair):
    """Bi-Block CrossAttn on a pair of planes: block i of one modality attends to block i of the other.

    Both directions are computed. Our choice: blocks are block_size x block_size cells at equal places of both
    planes. This pairing is a convention, since sound's HW plane is frequency by time within a frame. So with
    global_tokens every block also sees the mean token of each other block of the other modality. Tokens are
    positioned by (row, column), a mean token by the centre of its block.
    """

    def __init__(self, width: int, num_heads: int, block_size: int, *, global_tokens: bool) -> None:
        """width: C.

        num_heads: attention heads.
        block_size: rows and columns of a block.
        global_tokens: whether mean tokens are added.
        """
        super().__init__(width, num_heads)
        self.block_size, self.global_tokens = block_size, global_tokens

    def forward(
        self,
        video_BRSC: Tensor,
        audio_BRSC: Tensor,
        to_video_B: Tensor | None = None,
        to_audio_B: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Two planes [B, R, S, C] -> the two, updated.

        video_BRSC, audio_BRSC: the same plane of each modality.
        to_video_B, to_audio_B: bool, the clips whose exchange to that modality is on; None: all.
        """
        update_video = self._update(video_BRSC, audio_BRSC, self.to_video, self.norm_video, self.norm_audio)
        update_audio = self._update(audio_BRSC, video_BRSC, self.to_audio, self.norm_audio, self.norm_video)
        return add_where(video_BRSC, update_video, to_video_B), add_where(
            audio_BRSC, update_audio, to_audio_B
        )

    def flops(self, rows: int, columns: int) -> int:
        """FLOPs for a pair of planes of this shape, both directions."""
        cells = self.block_size**2
        blocks = rows * columns // cells
        keys = cells + (blocks - 1 if self.global_tokens else 0)
        return sum(
            attention.flops(cells, keys, sequences=blocks) for attention in (self.to_video, self.to_audio)
        )

    def _update(
        self, plane_BRSC: Tensor, other_BRSC: Tensor, attention: Attention, norm: Norm, other_norm: Norm
    ) -> Tensor:
        """The update of one modality's plane from the other's, by that direction's attention and norms.

        norm, other_norm: of the plane that is updated, and of the other.
        """
        b, r, s, _ = plane_BRSC.shape
        size, blocks_down = self.block_size, r // self.block_size
        queries_BGLC, context_BGLC = self._tile(plane_BRSC), self._tile(other_BRSC)
        cells_GLA = self._tile(grid_positions(r, s, plane_BRSC.device).view(1, r, s, 2))[0]
        positions_GLA = cells_GLA
        if self.global_tokens:
            context_BGLC = torch.cat([context_BGLC, _means_of_others(context_BGLC)], dim=2)
            positions_GLA = torch.cat([cells_GLA, _means_of_others(cells_GLA[None])[0]], dim=1)
        update_BLC = attention(
            norm(queries_BGLC.flatten(0, 1)),
            other_norm(context_BGLC.flatten(0, 1)),
            positions_LA=cells_GLA.repeat(b, 1, 1),
            context_positions_MA=positions_GLA.repeat(b, 1, 1),
        )
        return rearrange(update_BLC, "(b i j) (p q) c -> b (i p) (j q) c", b=b, i=blocks_down, p=size)

    def _tile(self, plane_BRSC: Tensor) -> Tensor:
        """[B, R, S, C] -> [B, G, L, C]: G blocks of L cells, row by row."""
        return rearrange(
            plane_BRSC, "b (i p) (j q) c -> b (i j) (p q) c", p=self.block_size, q=self.block_size
        )


def _means_of_others(blocks_BGLC: Tensor) -> Tensor:
    """[B, G, L, C] -> [B, G, G - 1, C]: for each block, the mean tokens of all other blocks."""
    num_blocks = blocks_BGLC.shape[1]
    others = (torch.arange(num_blocks)[:, None] + torch.arange(1, num_blocks)) % num_blocks
    return blocks_BGLC.mean(dim=2)[:, others.to(blocks_BGLC.device)]
