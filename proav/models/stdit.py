"""ST-DiT: the spatio-temporal diffusion transformer that denoises the six stacked planes of picture and
sound.

Not here: noise, times and sampling (`proav/diffusion`), the planes' making (`mdsa.py`). Follows "ProAV-DiT",
Figure 2 (b), in the form of STDiT and DiT (blocks) and PixArt (one shared modulation). Letters: B clips, D
latent channels, E=D+1 condition channels, P=6 planes, N plane side, p token patch, L=(N/p)^2 tokens of a
plane, d width, h heads, k head width.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from proav.config import Config
from proav.geometry import PLANES_PER_MODALITY, LatentGeometry
from proav.models.embeddings import Conditioning, TokenPositions
from proav.models.layers import ClosedLinear, attend, full_precision, hidden_map, run_layer

NORM_EPSILON = 1e-6


def modulate(tokens_BPLd: Tensor, shift_BP1d: Tensor, scale_BP1d: Tensor) -> Tensor:
    """LN(x) (1 + scale) + shift, the norm without weights of its own."""
    return F.layer_norm(tokens_BPLd, tokens_BPLd.shape[-1:], eps=NORM_EPSILON) * (1 + scale_BP1d) + shift_BP1d


class RMSNorm(nn.Module):
    """w x / sqrt(mean(x^2) + epsilon) over the last axis, in the precision of x (statistics in float32),
    which the fused kernel wants.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), NORM_EPSILON).to(x.dtype)


class SelfAttention(nn.Module):
    """softmax(rms(Q) rms(K)^T / sqrt(k)) V over the second axis, heads of width k, then a linear map;
    `closed` starts that map at zero.

    Queries and keys are RMS-normalized per head with learned weights: logits stay bounded, which keeps bf16
    training stable (STDiT3).
    """

    def __init__(self, width: int, num_heads: int, *, closed: bool = False) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = hidden_map(nn.Linear(width, 3 * width), parts=3)
        self.query_norm = RMSNorm(width // num_heads)
        self.key_norm = RMSNorm(width // num_heads)
        self.out = hidden_map((ClosedLinear if closed else nn.Linear)(width, width))

    def forward(self, tokens_BLd: Tensor) -> Tensor:
        query, key, value = rearrange(
            self.qkv(tokens_BLd), "b l (three h k) -> three b h l k", three=3, h=self.num_heads
        )
        return self.out(
            rearrange(attend(self.query_norm(query), self.key_norm(key), value), "b h l k -> b l (h k)")
        )


class PlaneLinear(nn.Module):
    """A linear map of the tokens of each plane with weights of its own: the planes' channels have nothing in
    common. [B, 6, L, i] -> [B, 6, L, o].

    `closed` starts it at zero; `exact` computes it in float32, for values that leave the network.
    """

    def __init__(
        self, planes: int, inputs: int, outputs: int, *, closed: bool = False, exact: bool = False
    ) -> None:
        super().__init__()
        self.exact = exact
        self.weight = nn.Parameter(torch.zeros(planes, inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(planes, outputs))
        for weight_io in self.weight if not closed else ():
            nn.init.xavier_uniform_(weight_io)

    def forward(self, tokens_BPLi: Tensor) -> Tensor:
        if self.exact:
            with full_precision(tokens_BPLi.device):
                return self._map(tokens_BPLi.float(), self.weight.float(), self.bias.float())
        return self._map(tokens_BPLi, self.weight, self.bias)

    @staticmethod
    def _map(tokens_BPLi: Tensor, weight_Pio: Tensor, bias_Po: Tensor) -> Tensor:
        return torch.einsum("bpli,pio->bplo", tokens_BPLi, weight_Pio) + bias_Po[:, None]


class Block(nn.Module):
    """One layer of ST-DiT. With (shift, scale, gate)_a, (shift, scale, gate)_m = modulation of the token's
    modality + this block's table:

        x <- x + gate_a * spatial(modulate(x, a))      tokens of one plane, all six planes apart
        x <- x + temporal(modulate(x, a))              the six tokens at one place of the planes
        x <- x + gate_m * mlp(modulate(x, m))

    attention=full replaces the first two lines by one attention over all tokens, gated. Every branch starts
    at zero through exactly one zero factor (the gates; the temporal output map), so that the block is the
    identity at first and no branch's gradient is blocked twice.
    """

    def __init__(self, width: int, num_heads: int, mlp_ratio: int, attention: str) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(6, width))
        self.divided = attention == "divided"
        if self.divided:
            self.spatial = SelfAttention(width, num_heads)
            self.temporal = SelfAttention(width, num_heads, closed=True)
        else:
            self.joint = SelfAttention(width, num_heads)
        inner = mlp_ratio * width
        expand, contract = hidden_map(nn.Linear(width, inner)), hidden_map(nn.Linear(inner, width))
        self.mlp = nn.Sequential(expand, nn.GELU(approximate="tanh"), contract)

    def forward(self, tokens_BPLd: Tensor, modulation_B26d: Tensor) -> Tensor:
        modulation_BP6d = (modulation_B26d + self.table).repeat_interleave(PLANES_PER_MODALITY, dim=1)
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = modulation_BP6d[..., None, :].unbind(2)
        x = tokens_BPLd
        if self.divided:
            x = x + gate_a * self.attend_within_planes(modulate(x, shift_a, scale_a))
            x = x + self.attend_across_planes(modulate(x, shift_a, scale_a))
        else:
            x = x + gate_a * self.attend_everywhere(modulate(x, shift_a, scale_a))
        return x + gate_m * self.mlp(modulate(x, shift_m, scale_m))

    def attend_within_planes(self, tokens_BPLd: Tensor) -> Tensor:
        return rearrange(
            self.spatial(rearrange(tokens_BPLd, "b p l d -> (b p) l d")),
            "(b p) l d -> b p l d",
            p=tokens_BPLd.shape[1],
        )

    def attend_across_planes(self, tokens_BPLd: Tensor) -> Tensor:
        return rearrange(
            self.temporal(rearrange(tokens_BPLd, "b p l d -> (b l) p d")),
            "(b l) p d -> b p l d",
            l=tokens_BPLd.shape[2],
        )

    def attend_everywhere(self, tokens_BPLd: Tensor) -> Tensor:
        return rearrange(
            self.joint(rearrange(tokens_BPLd, "b p l d -> b (p l) d")),
            "b (p l) d -> b p l d",
            p=tokens_BPLd.shape[1],
        )


class STDiT(nn.Module):
    """The denoiser: the flow's velocity or the noise of every plane, from noisy planes, two times, a label
    and a condition.

    STDiT(config, num_labels): size, patch and attention by config.stdit, planes by config.mdsa. num_labels >=
    0; label number num_labels is the null label. The prediction is exactly zero at initialization.
    `activation_checkpointing`: recompute each block's activations in the backward pass. Safe under ZeRO-3:
    every parameter is used only in the forward of the module that owns it.
    """

    def __init__(self, config: Config, num_labels: int) -> None:
        super().__init__()
        depth, width, num_heads = config.stdit.shape
        geometry = LatentGeometry.from_config(config)
        self.patch_size = geometry.token_patch
        self.latent_channels = geometry.stack_channels
        self.num_labels = num_labels
        self.activation_checkpointing = False
        patch_cells = self.patch_size**2
        own_PD = torch.tensor(geometry.channel_mask)
        self.register_buffer("own_DP11", own_PD.T[..., None, None], persistent=False)
        self.embed = PlaneLinear(len(own_PD), (2 * self.latent_channels + 1) * patch_cells, width)
        self.positions = TokenPositions(geometry.plane_size // self.patch_size, width)
        self.conditioning = Conditioning(width, num_labels)
        self.modulation = ClosedLinear(width, 6 * width)
        self.blocks = nn.ModuleList(
            Block(width, num_heads, config.stdit.mlp_ratio, config.stdit.attention) for _ in range(depth)
        )
        self.final_modulation = ClosedLinear(width, 2 * width)
        self.final = PlaneLinear(
            len(own_PD), width, self.latent_channels * patch_cells, closed=True, exact=True
        )
        self._initialize()

    @property
    def null_label(self) -> int:
        """The label that says nothing: what unconditional samples, and guidance, evaluate."""
        return self.num_labels

    def _initialize(self) -> None:
        for module in (m for block in self.blocks for m in block.modules() if isinstance(m, nn.Linear)):
            if not isinstance(module, ClosedLinear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(
        self, noisy_BDPNN: Tensor, times_B2: Tensor, labels_B: Tensor, condition_BEPNN: Tensor | None = None
    ) -> Tensor:
        """The prediction [B, D, 6, N, N], in the dtype of `noisy_BDPNN`; of channels that a plane does not
        have none is read, and zero told.

        noisy_BDPNN [B, D, 6, N, N]: normalized latents with noise; a given modality's clean planes where its
        time is 0. times_B2 [B, 2] in [0, 1]: column 0 the video's, column 1 the audio's; 0 is clean, 1 is
        noise. labels_B [B] int64 in 0 .. num_labels (the null label). condition_BEPNN [B, D+1, 6, N, N]:
        planes of a masked clip and the mask; None is the same as zeros.
        """
        if condition_BEPNN is None:
            batch, channels, *rest = noisy_BDPNN.shape
            condition_BEPNN = noisy_BDPNN.new_zeros(batch, channels + 1, *rest)
        planes = torch.cat([noisy_BDPNN * self.own_DP11, condition_BEPNN], dim=1).to(self.embed.weight.dtype)
        size = self.patch_size
        tokens_BPLd = self.positions(
            self.embed(rearrange(planes, "b c p (n i) (m j) -> b p (n m) (c i j)", i=size, j=size))
        )
        vectors_B2d = F.silu(self.conditioning(times_B2, labels_B))
        modulation_B26d = rearrange(self.modulation(vectors_B2d), "b m (six d) -> b m six d", six=6)
        for block in self.blocks:
            tokens_BPLd = run_layer(
                block, tokens_BPLd, modulation_B26d, recompute=self.activation_checkpointing
            )
        shift_BP1d, scale_BP1d = (
            self.final_modulation(vectors_B2d)
            .repeat_interleave(PLANES_PER_MODALITY, dim=1)[:, :, None]
            .chunk(2, dim=-1)
        )
        prediction = self.final(modulate(tokens_BPLd, shift_BP1d, scale_BP1d))
        side = noisy_BDPNN.shape[-1] // size
        stack_BDPNN = rearrange(prediction, "b p (n m) (c i j) -> b c p (n i) (m j)", n=side, i=size, j=size)
        return (stack_BDPNN * self.own_DP11).to(noisy_BDPNN.dtype)
