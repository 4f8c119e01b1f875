"""Orthogonal decomposition: a volume of features becomes three planes, and planes become a volume again.

The volume is collapsed along height, width or time; planes are broadcast back. Not here: what happens between
planes (`fusion.py`). ProAV-DiT, Section 3 and Figure 2 (a); the collapse operator is that of the ancestor
PVDM. Letters: B clips, T frames, H W rows and columns, C channels, D latent channels, P=6 planes of N x N
cells, L tokens.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from proav.diffusion.modalities import spread_to_planes
from proav.geometry import MODALITIES, PLANE_NAMES, PLANES
from proav.models.layers import Attention, Norm, hidden_map, linear_resize_matrix, map_flops, run_layer
from proav.models.sampled import Sampled


class CollapseLayer(nn.Module):
    """One pre-norm transformer layer over the collapsed axis.

    Only the last num_queries tokens are computed; they still attend to all.
    """

    def __init__(self, width: int, num_heads: int, mlp_width: int) -> None:
        super().__init__()
        self.attention_norm, self.attention = Norm(width), Attention(width, num_heads, width // 8)
        self.mlp_norm = Norm(width)
        expand, contract = hidden_map(nn.Linear(width, mlp_width)), hidden_map(nn.Linear(mlp_width, width))
        self.mlp = nn.Sequential(expand, nn.GELU(), contract)

    def forward(self, x_BLC: Tensor, num_queries: int) -> Tensor:
        normed_BLC = self.attention_norm(x_BLC)
        x_BLC = x_BLC[:, -num_queries:] + self.attention(normed_BLC[:, -num_queries:], normed_BLC)
        return x_BLC + self.mlp(self.mlp_norm(x_BLC))

    def flops(self, num_queries: int, length: int, sequences: int) -> int:
        """FLOPs for so many sequences of `length` tokens."""
        attention = self.attention.flops(num_queries, length, sequences)
        return attention + map_flops(self.mlp, num_queries * sequences)


class AxisCollapse(nn.Module):
    """Pools the n tokens of an axis into one vector.

    A learned token is appended, read by `depth` transformer layers, and returned. PVDM appends the token too,
    but returns position 0, the first real token. To return the learned token is our choice: no cell is
    privileged. The last layer computes this token alone, since nothing else is returned.
    """

    def __init__(self, length: int, width: int, *, depth: int, num_heads: int, mlp_width: int) -> None:
        """length: n.

        width: C.
        depth: number of layers.
        num_heads: attention heads.
        mlp_width: hidden width of the MLP.
        """
        super().__init__()
        self.token = nn.Parameter(torch.randn(width) * 0.02)
        self.positions = nn.Parameter(torch.randn(length + 1, width) * 0.02)
        self.sampled = {"positions": Sampled((length, width), (0,), extra=1)}
        self.layers = nn.ModuleList(CollapseLayer(width, num_heads, mlp_width) for _ in range(depth))

    def forward(self, x_BLC: Tensor, *, recompute: bool = False) -> Tensor:
        """[B, n, C] -> [B, C]."""
        token = self.token.to(x_BLC.dtype).expand(len(x_BLC), 1, -1)
        x_BLC = torch.cat([x_BLC, token], dim=1) + self.positions.to(x_BLC.dtype)
        for layer in self.layers[:-1]:
            x_BLC = run_layer(layer, x_BLC, x_BLC.shape[1], recompute=recompute)
        return run_layer(self.layers[-1], x_BLC, 1, recompute=recompute)[:, 0]

    def flops(self, cells: int) -> int:
        """FLOPs for a volume of so many cells."""
        length = len(self.positions)
        sequences = cells // (length - 1)
        before = sum(layer.flops(length, length, sequences) for layer in self.layers[:-1])
        return before + self.layers[-1].flops(1, length, sequences)


class Projection(nn.Module):
    """The volume's three planes, each with its own collapse: HW from time, WT from height, HT from width."""

    def __init__(
        self,
        num_frames: int,
        rows: int,
        columns: int,
        width: int,
        *,
        depth: int,
        num_heads: int,
        mlp_width: int,
    ) -> None:
        """num_frames, rows, columns: of the volume.

        width, depth, num_heads, mlp_width: see `AxisCollapse`.
        """
        super().__init__()
        collapsed = {"HW": num_frames, "WT": rows, "HT": columns}
        self.collapse = nn.ModuleDict(
            {
                name: AxisCollapse(
                    collapsed[name], width, depth=depth, num_heads=num_heads, mlp_width=mlp_width
                )
                for name in PLANES
            }
        )

    def forward(self, volume_BTHWC: Tensor, *, recompute: bool = False) -> dict[str, Tensor]:
        """{"HW": [B, H, W, C], "WT": [B, T, W, C], "HT": [B, T, H, C]}."""
        b, t, h, _, _ = volume_BTHWC.shape
        hw = self.collapse["HW"](rearrange(volume_BTHWC, "b t h w c -> (b h w) t c"), recompute=recompute)
        wt = self.collapse["WT"](rearrange(volume_BTHWC, "b t h w c -> (b t w) h c"), recompute=recompute)
        ht = self.collapse["HT"](rearrange(volume_BTHWC, "b t h w c -> (b t h) w c"), recompute=recompute)
        return {
            "HW": rearrange(hw, "(b h w) c -> b h w c", b=b, h=h),
            "WT": rearrange(wt, "(b t w) c -> b t w c", b=b, t=t),
            "HT": rearrange(ht, "(b t h) c -> b t h c", b=b, t=t),
        }

    def flops(self, cells: int) -> int:
        return sum(collapse.flops(cells) for collapse in self.collapse.values())


def broadcast_planes(planes: dict[str, Tensor]) -> Tensor:
    """volume[t, h, w] = HW[h, w] + WT[t, w] + HT[t, h]: each plane repeated along its missing axis.

    Returns [B, T, H, W, C].
    """
    return planes["HW"][:, None, :, :] + planes["WT"][:, :, None, :] + planes["HT"][:, :, :, None]


def stack_planes(planes: dict[str, Tensor], plane_size: int) -> Tensor:
    """The six planes [B, D_p, rows, columns] of both modalities as ST-DiT's stack [B, D, 6, N, N].

    They are in the order of `PLANE_NAMES`. If T < N, the time axis of WT and HT is interpolated linearly from
    T to N. D is the widest plane's number of channels; a plane with fewer has zeros behind its own.
    """
    assert set(planes) == set(PLANE_NAMES), f"expected the planes {PLANE_NAMES}, got {tuple(planes)}"
    channels = max(plane.shape[1] for plane in planes.values())
    resized = (_resize_rows(planes[name], plane_size, inverse=False) for name in PLANE_NAMES)
    return torch.stack([F.pad(plane, (0, 0, 0, 0, 0, channels - plane.shape[1])) for plane in resized], dim=2)


def unstack_planes(
    stack_BDPNN: Tensor, num_frames: int, channels: Sequence[int] | None = None
) -> dict[str, Tensor]:
    """The six planes of a stack: the exact inverse of `stack_planes`.

    channels: of each plane, in the order of `PLANE_NAMES`; None: all of the stack's. If T < N, the
    pseudo-inverse of the interpolation gives back the time axis. For generated stacks this is the
    least-squares answer.
    """
    own = channels or [stack_BDPNN.shape[1]] * len(PLANE_NAMES)
    planes = {
        name: plane[:, :count]
        for name, plane, count in zip(PLANE_NAMES, stack_BDPNN.unbind(dim=2), own, strict=True)
    }
    return {
        name: _resize_rows(plane, num_frames, inverse=True) if "T" in name else plane
        for name, plane in planes.items()
    }


def stack_mask(known_B2T: Tensor, plane_size: int) -> Tensor:
    """A mask of frames as a channel of the stack, [B, 1, 6, N, N], float32 in [0, 1].

    In WT and HT it lies along T, in HW it is the share of frames that are known. It is resized as planes are.

    known_B2T: bool; which frames are given, of the picture (row 0) and of the sound (row 1).
    plane_size: N.
    """
    known = known_B2T.float()
    batch, _, num_frames = known.shape
    planes = {}
    for row, modality in enumerate(MODALITIES):
        share_B111 = known[:, row].mean(1)[:, None, None, None]
        along_B1T1 = known[:, row, None, :, None]
        planes[f"{modality[0]}_HW"] = share_B111.expand(batch, 1, plane_size, plane_size)
        for name in ("WT", "HT"):
            planes[f"{modality[0]}_{name}"] = along_B1T1.expand(batch, 1, num_frames, plane_size)
    return stack_planes(planes, plane_size)


def masked_condition(masked_BDPNN: Tensor, known_B2T: Tensor) -> Tensor:
    """ST-DiT's condition channels [B, D+1, 6, N, N]: the planes of a masked clip, then its mask.

    The planes of a modality of which nothing is known are zeros. So a mask of nothing is no condition.

    masked_BDPNN: lone planes of the masked clip (`masks.fill_unknown`), normalized.
    known_B2T: its mask, bool.
    """
    known_B2T = known_B2T.to(masked_BDPNN.device)
    some_B1P11 = spread_to_planes(known_B2T.any(2))
    mask_B1PNN = stack_mask(known_B2T, masked_BDPNN.shape[-1]).to(masked_BDPNN.dtype)
    return torch.cat([masked_BDPNN.masked_fill(~some_B1P11, 0.0), mask_B1PNN], dim=1)


def _resize_rows(plane_BDRC: Tensor, rows: int, *, inverse: bool) -> Tensor:
    given = plane_BDRC.shape[2]
    if given == rows:
        return plane_BDRC
    assert (given > rows) == inverse, (
        f"planes grow on the way into the stack and shrink on the way out, not from {given} to {rows} rows"
    )
    matrix = (
        torch.linalg.pinv(linear_resize_matrix(rows, given)) if inverse else linear_resize_matrix(given, rows)
    )
    return torch.einsum("rg,bdgc->bdrc", matrix.to(plane_BDRC.device), plane_BDRC.double()).to(
        plane_BDRC.dtype
    )
