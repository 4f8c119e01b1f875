"""ST-DiT: the spatio-temporal diffusion transformer that denoises the six planes of picture and sound.

Not here: noise and times (`proav/diffusion`), sampling (`proav/generation`), how planes are made
(`proav/models/mdsa`), the order of tokens (`tokens.py`). Follows "ProAV-DiT", Figure 2 (b), in the form of
STDiT and DiT (blocks) and PixArt (one shared modulation). Letters: B clips, D latent channels, E=D+1 channels
of a masked clip and its mask, P=6 planes, N plane side, L tokens of all planes, d width, h heads, k head
width.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from proav.config import Config
from proav.diffusion.conditions import Conditions
from proav.geometry import MODALITIES, LatentGeometry
from proav.models.layers import ClosedLinear, Float32Linear, hidden_map, map_flops, run_layer
from proav.models.stdit.context import Context, ContextMaps, CrossAttention
from proav.models.stdit.embeddings import Conditioning, TokenPositions
from proav.models.stdit.tokens import TokenLayout, everywhere

NORM_EPSILON = 1e-6


def modulate(tokens: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """LN(x) (1 + scale) + shift; the norm has no weights of its own."""
    return F.layer_norm(tokens, tokens.shape[-1:], eps=NORM_EPSILON) * (1 + scale) + shift


class RMSNorm(nn.Module):
    """w x / sqrt(mean(x^2) + epsilon) over the last axis, in the precision of x, with statistics in float32.

    torch's fused kernel needs x and the weight in one precision.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), NORM_EPSILON).to(x.dtype)


class SelfAttention(nn.Module):
    """softmax(rms(Q) rms(K)^T / sqrt(k)) V, then a linear map. `mix` decides which tokens attend to which.

    Queries and keys are RMS-normalized per head with learned weights. So logits stay bounded, and training in
    bf16 is stable (STDiT3).
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        mix: Callable[[Tensor, Tensor, Tensor], Tensor] = everywhere,
        *,
        closed: bool = False,
    ) -> None:
        """width: d.

        num_heads: h; each head has width k = d / h.
        mix: attention of queries, keys and values [B, L, h, k], such as a method of `TokenLayout`.
        closed: whether the last linear map is zero-initialized.
        """
        super().__init__()
        self.num_heads, self.mix = num_heads, mix
        self.qkv = hidden_map(nn.Linear(width, 3 * width), parts=3)
        self.query_norm = RMSNorm(width // num_heads)
        self.key_norm = RMSNorm(width // num_heads)
        self.out = hidden_map((ClosedLinear if closed else nn.Linear)(width, width))

    def forward(self, tokens_BLd: Tensor) -> Tensor:
        heads = rearrange(self.qkv(tokens_BLd), "b l (three h k) -> three b l h k", three=3, h=self.num_heads)
        query_BLhk, key_BLhk, value_BLhk = heads
        mixed_BLhk = self.mix(self.query_norm(query_BLhk), self.key_norm(key_BLhk), value_BLhk)
        return self.out(mixed_BLhk.flatten(2))

    def flops(self, tokens: int, pairs: int) -> int:
        """8 tokens d^2 + 4 pairs d, with `pairs` the number of pairs of a query and a key."""
        return map_flops(self, tokens) + 4 * pairs * self.out.in_features


class Block(nn.Module):
    """One layer of ST-DiT, modulated by (shift, scale, gate)_a and (shift, scale, gate)_m.

    Each is the modulation of the token's modality plus a row of this block's table:

        x <- x + gate_a * spatial(modulate(x, a))      tokens of one plane, each of the six by itself
        x <- x + temporal(modulate(x, a))              the six tokens at one place of the planes
        x <- x + cross(LN(x), context)                 only if the model takes sequences of vectors
        x <- x + gate_m * mlp(modulate(x, m))

    attention=full replaces the first two lines by one gated attention over all tokens. Every branch is
    zero-initialized through exactly one factor: the gate, or the output map of temporal and cross. So the
    block is the identity at first, and no branch's gradient is blocked twice.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        mlp_ratio: int,
        attention: str,
        layout: TokenLayout,
        context: int = 0,
    ) -> None:
        """width: d.

        num_heads: attention heads.
        mlp_ratio: hidden width of the MLP, divided by d.
        attention: divided | full.
        layout: of the tokens.
        context: largest number of vectors that tokens attend to; 0: the block has no cross-attention.
        """
        super().__init__()
        self.layout, self.context = layout, context
        self.table = nn.Parameter(torch.zeros(6, width))
        self.divided = attention == "divided"
        if self.divided:
            self.spatial = SelfAttention(width, num_heads, layout.within_planes)
            self.temporal = SelfAttention(width, num_heads, layout.across_planes, closed=True)
        else:
            self.joint = SelfAttention(width, num_heads)
        inner = mlp_ratio * width
        expand, contract = hidden_map(nn.Linear(width, inner)), hidden_map(nn.Linear(inner, width))
        self.mlp = nn.Sequential(expand, nn.GELU(approximate="tanh"), contract)
        self.cross = CrossAttention(width, num_heads) if context else None

    def forward(self, tokens_BLd: Tensor, modulation_B26d: Tensor, context: Context | None = None) -> Tensor:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = (modulation_B26d + self.table).unbind(2)
        x_BLd = tokens_BLd
        first = self.spatial if self.divided else self.joint
        x_BLd = x_BLd + self._gated(first(self._modulated(x_BLd, shift_a, scale_a)), gate_a)
        if self.divided:
            x_BLd = x_BLd + self.temporal(self._modulated(x_BLd, shift_a, scale_a))
        if context is not None:
            x_BLd = x_BLd + self.cross(x_BLd, context)
        return x_BLd + self._gated(self.mlp(self._modulated(x_BLd, shift_m, scale_m)), gate_m)

    def flops(self) -> int:
        """FLOPs for one clip: about 32 d^2 a token with divided attention, 24 d^2 with full attention."""
        tokens = self.layout.num_tokens
        if self.divided:
            attention = self.spatial.flops(tokens, self.layout.pairs_within_planes)
            attention += self.temporal.flops(tokens, self.layout.pairs_across_planes)
        else:
            attention = self.joint.flops(tokens, tokens**2)
        if self.cross is not None:
            attention += self.cross.flops(tokens, self.context)
        return attention + map_flops(self.mlp, tokens)

    def _modulated(self, tokens_BLd: Tensor, shift_B2d: Tensor, scale_B2d: Tensor) -> Tensor:
        return self.layout.by_modality(modulate, tokens_BLd, shift_B2d, scale_B2d)

    def _gated(self, update_BLd: Tensor, gate_B2d: Tensor) -> Tensor:
        return self.layout.by_modality(torch.mul, update_BLd, gate_B2d)


def decoder_blocks(config: Config) -> int:
    """How many of the last blocks get a flow map's next time instead of the current one (Lee et al., 2025);
    by default a third."""
    own = config.distill.decoder_blocks
    return config.stdit.shape[0] // 3 if own is None else own


class STDiT(nn.Module):
    """The denoiser: from noisy planes, two times and conditions to the prediction for every plane.

    The prediction is the flow's velocity, the noise, or a flow map's average velocity between two times. It
    is exactly zero at initialization. Size, patch and attention are set by config.stdit, planes by
    config.mdsa. num_labels >= 0; label number num_labels is the null label. If `activation_checkpointing` is
    set, each block's activations are recomputed in the backward pass. The model works under ZeRO-3: every
    parameter is used only in the forward of the module that owns it.
    """

    def __init__(self, config: Config, num_labels: int) -> None:
        super().__init__()
        depth, width, num_heads = config.stdit.shape
        self.encoder_blocks = depth - decoder_blocks(config)
        geometry = LatentGeometry.from_config(config)
        self.channels, self.patches = geometry.channels, geometry.token_patches
        self.layout = TokenLayout(geometry.token_sides)
        self.num_labels = num_labels
        self.activation_checkpointing = False
        planes = list(zip(self.channels, self.patches, strict=True))
        self.embed = nn.ModuleList(nn.Linear((2 * own + 1) * patch**2, width) for own, patch in planes)
        self.positions = TokenPositions(
            geometry.token_sides,
            width,
            spacing=config.stdit.position_spacing,
            kind=config.stdit.positions,
        )
        self.conditioning = Conditioning(config, num_labels)
        self.context = ContextMaps(config)
        self.modulation = ClosedLinear(width, 6 * width)
        self.blocks = nn.ModuleList(
            Block(
                width, num_heads, config.stdit.mlp_ratio, config.stdit.attention, self.layout,
                context=self.context.length,
            )
            for _ in range(depth)
        )  # fmt: skip
        self.final_modulation = ClosedLinear(width, 2 * width)
        self.final = nn.ModuleList(Float32Linear(width, own * patch**2) for own, patch in planes)
        self._initialize()

    @property
    def null_label(self) -> int:
        """The null label, for samples without a label. Guidance uses it, too."""
        return self.num_labels

    def _initialize(self) -> None:
        """Draws the first weights. The columns that read a masked clip and its mask are zero-initialized.

        Each plane has its own first and last maps, because the planes' channels have nothing in common.
        """
        for part in (self.embed, self.blocks):
            for module in part.modules():
                if isinstance(module, nn.Linear) and not isinstance(module, ClosedLinear):
                    nn.init.xavier_uniform_(module.weight)
                    nn.init.zeros_(module.bias)
        for module, own, patch in zip(self.embed, self.channels, self.patches, strict=True):
            nn.init.zeros_(module.weight[:, own * patch**2 :])
        for module in self.final:
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)

    def forward(
        self,
        noisy_BDPNN: Tensor,
        times_B2: Tensor,
        conditions: Conditions,
        next_times_B2: Tensor | None = None,
    ) -> Tensor:
        """The prediction [B, D, 6, N, N], in the dtype of `noisy_BDPNN`.

        Channels that a plane does not have are not read, and are zero in the result.

        noisy_BDPNN: [B, D, 6, N, N], normalized latents with noise; clean planes for a given modality.
        times_B2: [B, 2] in [0, 1]; column 0 is the video's, column 1 the audio's. 0 is clean, 1 is noise; a
            given modality has time 0.
        conditions: labels in 0 .. num_labels (the null label). If masked planes are None, or a name of
            `stdit.vectors` is missing, zeros are read.
        next_times_B2: for a flow map, the times to go to, at most times_B2. The last blocks and the final
            maps read these. None: the same as times_B2.
        """
        vectors_B2d = F.silu(self.conditioning(times_B2, conditions))
        modulation_B26d = self._modulation(vectors_B2d)
        next_B26d = modulation_B26d
        if next_times_B2 is not None:
            vectors_B2d = F.silu(self.conditioning(next_times_B2, conditions))
            next_B26d = self._modulation(vectors_B2d)
        tokens_BLd = self.positions(self._tokens(noisy_BDPNN, conditions.masked_BEPNN))
        context = self.context(conditions.vectors)
        for number, block in enumerate(self.blocks):
            of_block_B26d = modulation_B26d if number < self.encoder_blocks else next_B26d
            tokens_BLd = run_layer(
                block, tokens_BLd, of_block_B26d, context, recompute=self.activation_checkpointing
            )
        shift_B2d, scale_B2d = self.final_modulation(vectors_B2d).chunk(2, dim=-1)
        tokens_BLd = self.layout.by_modality(modulate, tokens_BLd, shift_B2d, scale_B2d)
        return self._stack(tokens_BLd, noisy_BDPNN.shape[1]).to(noisy_BDPNN.dtype)

    def _modulation(self, vectors_B2d: Tensor) -> Tensor:
        return rearrange(self.modulation(vectors_B2d), "b m (six d) -> b m six d", six=6)

    def flops(self) -> int:
        """FLOPs of one evaluation for one clip."""
        modulation = map_flops(self.modulation, len(MODALITIES)) + map_flops(
            self.final_modulation, len(MODALITIES)
        )
        ends = sum(
            map_flops(first, count) + map_flops(last, count)
            for first, last, count in zip(self.embed, self.final, self.layout.counts, strict=True)
        )
        blocks = sum(block.flops() for block in self.blocks)
        return self.conditioning.flops() + self.context.flops() + modulation + ends + blocks

    def _tokens(self, noisy_BDPNN: Tensor, masked_BEPNN: Tensor | None) -> Tensor:
        """[B, L, d]: for each plane its own channels, those of the masked clip, and the mask."""
        if masked_BEPNN is None:
            batch, channels, *rest = noisy_BDPNN.shape
            masked_BEPNN = noisy_BDPNN.new_zeros(batch, channels + 1, *rest)
        planes = zip(
            noisy_BDPNN.unbind(2), masked_BEPNN.unbind(2), self.channels, self.patches, self.embed,
            strict=True,
        )  # fmt: skip
        tokens = []
        for noisy_BDNN, masked_BENN, own, patch, embed in planes:
            told = torch.cat([noisy_BDNN[:, :own], masked_BENN[:, :own], masked_BENN[:, -1:]], dim=1)
            cut = rearrange(told, "b c (n i) (m j) -> b (n m) (c i j)", i=patch, j=patch)
            tokens.append(embed(cut.to(embed.weight.dtype)))
        return torch.cat(tokens, dim=1)

    def _stack(self, tokens_BLd: Tensor, stack_channels: int) -> Tensor:
        """[B, D, 6, N, N], float32: each plane's own channels, and zeros behind them."""
        planes = []
        parts = tokens_BLd.split(self.layout.counts, dim=1)
        for part, side, patch, final in zip(parts, self.layout.sides, self.patches, self.final, strict=True):
            axes = {"n": side, "i": patch, "j": patch}
            plane_BDNN = rearrange(final(part), "b (n m) (c i j) -> b c (n i) (m j)", **axes)
            planes.append(F.pad(plane_BDNN, (0, 0, 0, 0, 0, stack_channels - plane_BDNN.shape[1])))
        return torch.stack(planes, dim=2)
