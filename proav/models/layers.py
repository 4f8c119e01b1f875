"""The parts that all networks here share: norms, rotary positions, attention, the space-time transformer.

Not here: anything that knows planes or modalities (`mdsa/planes.py`, `mdsa/fusion.py`). The backbone is that
of the ancestor PVDM (Yu et al., 2023): a TimeSformer with rotary positions. Letters: B clips, T frames, H W
rows and columns, L tokens, D width, N heads, K head width.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

ROTARY_BASE = 100.0
"""Wavelengths run from 2 pi to 200 pi cells; our grids have 8 to 32 cells a side.

RoPE-ViT (Heo et al., 2024) found this base best on such grids.
"""

MAX_ATTENTION_BATCH = 65535
"""CUDA's fused attention kernels index sequences by a grid axis that holds no more."""


MAPS = (nn.Linear, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d)
"""Layers whose weights `map_flops` counts."""


class Norm(nn.LayerNorm):
    """Layer norm over the last axis, with statistics in float32. The result has the input's precision."""

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(
            x.float(), self.normalized_shape, self.weight.float(), self.bias.float(), self.eps
        ).to(x.dtype)


AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device_type: str, precision: str) -> AbstractContextManager:
    """Autocast of a model's operations. precision: fp32, which casts nothing, bf16 or fp16."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device_type, dtype=AUTOCAST_DTYPES[precision])


def full_precision(device: torch.device) -> AbstractContextManager:
    """Switches autocast off inside. Devices without autocast, such as meta, have nothing to switch off."""
    return (
        torch.autocast(device.type, enabled=False)
        if torch.amp.is_autocast_available(device.type)
        else nullcontext()
    )


class Float32Linear(nn.Linear):
    """A linear layer that computes in float32 even under autocast or with bf16 weights.

    It is for values that leave the network.
    """

    def forward(self, x: Tensor) -> Tensor:
        with full_precision(x.device):
            return F.linear(x.float(), self.weight.float(), None if self.bias is None else self.bias.float())


class ClosedLinear(nn.Linear):
    """A zero-initialized linear layer: the output gate of a residual update.

    Although it begins at zero, it learns as fast as any other weight.
    """

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


def hidden_map(linear: nn.Linear, parts: int = 1) -> nn.Linear:
    """Marks a linear map of a transformer block: its weight is a hidden matrix, which Muon may train.

    parts: number of matrices stacked along the outputs of the weight, such as queries, keys and values.
    """
    linear.hidden_parts = parts
    return linear


def hidden_matrices(module: nn.Module) -> dict[str, int]:
    """{name of a weight: number of matrices stacked in it} for what `hidden_map` has marked in `module`.

    The blocks of linear planes mark themselves (`mdsa/blocks.py`).
    """
    maps = ((name, part) for name, part in module.named_modules() if hasattr(part, "hidden_parts"))
    return {f"{name}.weight": linear.hidden_parts for name, linear in maps}


def map_flops(module: nn.Module, rows: int) -> int:
    """2 rows W, with W the number of weights of all linear maps and convolutions in `module`, biases aside.

    rows: vectors of a clip that they map; for a convolution its places, on the side that has fewer of them.
    """
    maps = (part for part in module.modules() if isinstance(part, MAPS))
    return 2 * rows * sum(part.weight.numel() for part in maps)


def linear_resize_matrix(num_from: int, num_to: int, device: torch.device | None = None) -> Tensor:
    """The float64 matrix [num_to, num_from] of linear interpolation between centres of equal cells.

    R[i, j] = max(0, 1 - |p_i - j|),  p_i = (i + 1/2) num_from / num_to - 1/2, clamped to [0, num_from - 1].
    Beyond the outer centres the edge value is held. Rows sum to 1. The rank is num_from if
    num_to >= num_from. As a matrix product the gradient is deterministic on every device.
    """
    centres = (torch.arange(num_to, dtype=torch.float64, device=device) + 0.5) * num_from / num_to - 0.5
    cells = torch.arange(num_from, dtype=torch.float64, device=device)
    return (1 - (centres.clamp(0, num_from - 1)[:, None] - cells).abs()).clamp(min=0)


def rotary_angles(positions_LA: Tensor, head_width: int) -> Tensor:
    """Angles [L, K'/2] that turn pairs of channels by token position.

    The A axes share the channels equally: angle = position * ROTARY_BASE^(-i / n), i = 0 .. n-1, with
    n = head_width // (2 A) pairs per axis. If 2 A does not divide head_width, K' < head_width and the
    remaining channels are not turned. positions_LA: float, in cells, [L, A] or [B, L, A].
    """
    axes = positions_LA.shape[-1]
    pairs = head_width // (2 * axes)
    frequencies = ROTARY_BASE ** -(
        torch.arange(pairs, dtype=torch.float32, device=positions_LA.device) / max(pairs, 1)
    )
    return (positions_LA[..., None] * frequencies).flatten(-2)


def axis_positions(length: int, device: torch.device) -> Tensor:
    """Positions [L, 1] of the cells of one axis."""
    return torch.arange(length, dtype=torch.float32, device=device)[:, None]


def grid_positions(rows: int, columns: int, device: torch.device) -> Tensor:
    """Positions [rows * columns, 2] of the cells of a grid, row by row."""
    return torch.cartesian_prod(
        *(torch.arange(side, dtype=torch.float32, device=device) for side in (rows, columns))
    )


def rotate(x_BNLK: Tensor, angles_LK2: Tensor) -> Tensor:
    """Turns channel pairs (i, i + K'/2) of each token by its angles, in float32.

    Channels beyond K' pass unchanged. Inner products of turned vectors depend on differences of positions
    only (RoFormer, Su et al., 2021). angles_LK2: [L, K'/2], or [B, L, K'/2] if sequences differ in positions.
    """
    half = angles_LK2.shape[-1]
    first, second, rest = x_BNLK.float().split([half, half, x_BNLK.shape[-1] - 2 * half], dim=-1)
    cos, sin = (
        angles_LK2.cos().unsqueeze(-3),
        angles_LK2.sin().unsqueeze(-3),
    )  # one set of angles for all heads
    return torch.cat([first * cos - second * sin, first * sin + second * cos, rest], dim=-1).to(x_BNLK.dtype)


def attend(q_BNLK: Tensor, k_BNMK: Tensor, v_BNMK: Tensor) -> Tensor:
    """softmax(q k' / sqrt(K)) v, without a stored L x M matrix.

    Batches that are too large for the fused kernels are split.
    """
    if len(q_BNLK) <= MAX_ATTENTION_BATCH:
        return F.scaled_dot_product_attention(q_BNLK, k_BNMK, v_BNMK)
    parts = zip(*(tensor.split(MAX_ATTENTION_BATCH) for tensor in (q_BNLK, k_BNMK, v_BNMK)))
    return torch.cat([F.scaled_dot_product_attention(q, k, v) for q, k, v in parts])


class Attention(nn.Module):
    """Multi-head attention of tokens over themselves, or over a context."""

    def __init__(self, width: int, num_heads: int, head_width: int, *, closed: bool = False) -> None:
        """width: features of a token, D.

        num_heads: N.
        head_width: features of a head, K.
        closed: whether the output projection is zero-initialized.
        """
        super().__init__()
        self.num_heads, self.head_width = num_heads, head_width
        self.to_query = hidden_map(nn.Linear(width, num_heads * head_width, bias=False))
        self.to_key_value = hidden_map(nn.Linear(width, 2 * num_heads * head_width, bias=False), parts=2)
        self.to_output = hidden_map((ClosedLinear if closed else nn.Linear)(num_heads * head_width, width))

    def forward(
        self,
        x_BLD: Tensor,
        context_BMD: Tensor | None = None,
        *,
        positions_LA: Tensor | None = None,
        context_positions_MA: Tensor | None = None,
    ) -> Tensor:
        """[B, L, D] -> [B, L, D].

        x_BLD: tokens that attend.
        context_BMD: tokens that are attended to; None: x_BLD.
        positions_LA: in cells; they turn queries and keys. None: order plays no part.
        context_positions_MA: of the context; None: positions_LA.
        """
        context_BMD = x_BLD if context_BMD is None else context_BMD
        q_BNLK = rearrange(self.to_query(x_BLD), "b l (n k) -> b n l k", n=self.num_heads)
        k_BNMK, v_BNMK = rearrange(
            self.to_key_value(context_BMD), "b m (two n k) -> two b n m k", two=2, n=self.num_heads
        )
        if positions_LA is not None:
            context_positions_MA = positions_LA if context_positions_MA is None else context_positions_MA
            q_BNLK = rotate(q_BNLK, rotary_angles(positions_LA, self.head_width))
            k_BNMK = rotate(k_BNMK, rotary_angles(context_positions_MA, self.head_width))
        return self.to_output(rearrange(attend(q_BNLK, k_BNMK, v_BNMK), "b n l k -> b l (n k)"))

    def flops(self, queries: int, keys: int, sequences: int = 1) -> int:
        """FLOPs of the four maps, and 4 queries keys N K for each sequence.

        queries, keys: tokens of a sequence that attend, and that are attended to.
        sequences: of a clip.
        """
        own = map_flops(self.to_query, queries * sequences) + map_flops(self.to_output, queries * sequences)
        scores = 4 * sequences * queries * keys * self.num_heads * self.head_width
        return own + map_flops(self.to_key_value, keys * sequences) + scores


class GatedMLP(nn.Module):
    """GEGLU (Shazeer, 2020): W2 ((W1 x) * gelu(Wg x)), with hidden width ratio * width."""

    def __init__(self, width: int, ratio: int) -> None:
        super().__init__()
        self.expand = hidden_map(nn.Linear(width, 2 * ratio * width), parts=2)
        self.contract = hidden_map(nn.Linear(ratio * width, width))

    def forward(self, x: Tensor) -> Tensor:
        hidden, gate = self.expand(x).chunk(2, dim=-1)
        return self.contract(hidden * F.gelu(gate))


class SpaceTimeBlock(nn.Module):
    """TimeSformer's divided attention, then a gated MLP; each is pre-norm and residual.

    Attention is over time at each cell, then over the grid in each frame.
    """

    def __init__(self, width: int, num_heads: int, head_width: int, mlp_ratio: int) -> None:
        """width: D. num_heads: N. head_width: K. mlp_ratio: hidden width of the MLP, divided by D."""
        super().__init__()
        self.time_norm, self.time_attention = Norm(width), Attention(width, num_heads, head_width)
        self.space_norm, self.space_attention = Norm(width), Attention(width, num_heads, head_width)
        self.mlp_norm, self.mlp = Norm(width), GatedMLP(width, mlp_ratio)

    def forward(self, x_BTHWD: Tensor) -> Tensor:
        b, t, h, w, _ = x_BTHWD.shape
        columns = rearrange(self.time_norm(x_BTHWD), "b t h w d -> (b h w) t d")
        update = self.time_attention(columns, positions_LA=axis_positions(t, columns.device))
        x_BTHWD = x_BTHWD + rearrange(update, "(b h w) t d -> b t h w d", b=b, h=h)
        frames = rearrange(self.space_norm(x_BTHWD), "b t h w d -> (b t) (h w) d")
        update = self.space_attention(frames, positions_LA=grid_positions(h, w, frames.device))
        x_BTHWD = x_BTHWD + rearrange(update, "(b t) (h w) d -> b t h w d", b=b, h=h)
        return x_BTHWD + self.mlp(self.mlp_norm(x_BTHWD))

    def flops(self, frames: int, cells: int) -> int:
        """FLOPs for a clip of so many frames of so many cells."""
        time = self.time_attention.flops(frames, frames, sequences=cells)
        space = self.space_attention.flops(cells, cells, sequences=frames)
        return time + space + map_flops(self.mlp, frames * cells)


def run_layer(layer: nn.Module, *inputs, recompute: bool) -> Tensor:
    """layer(*inputs).

    recompute: keep only the inputs for the backward pass. This takes less memory and one more forward pass,
    and gives equal gradients.
    """
    if recompute and torch.is_grad_enabled():
        return checkpoint(
            layer, *inputs, use_reentrant=False, preserve_rng_state=False
        )  # no layer of ours draws random numbers
    return layer(*inputs)


class SpaceTimeTransformer(nn.Module):
    """`depth` space-time blocks on a volume of features [B, T, H, W, D]."""

    def __init__(self, depth: int, width: int, num_heads: int, head_width: int, mlp_ratio: int) -> None:
        """depth: number of blocks. The others: see `SpaceTimeBlock`."""
        super().__init__()
        self.blocks = nn.ModuleList(
            SpaceTimeBlock(width, num_heads, head_width, mlp_ratio) for _ in range(depth)
        )

    def forward(self, x_BTHWD: Tensor, *, recompute: bool = False) -> Tensor:
        for block in self.blocks:
            x_BTHWD = run_layer(block, x_BTHWD, recompute=recompute)
        return x_BTHWD

    def flops(self, frames: int, cells: int) -> int:
        return sum(block.flops(frames, cells) for block in self.blocks)
