"""What the models keep of a clip for the backward pass: the memory of activations, estimated.

The estimates are formulas of a configuration, fitted to the values that torch's saved_tensors_hooks counted.
Not here: FLOPs, which each module says of itself (`flops`), and the other parts of memory (`proav/costs.py`).
Letters: C width of MDSA, d width of ST-DiT.
"""

import math
from dataclasses import dataclass

from proav.config import Config
from proav.geometry import MODALITIES, PLANE_NAMES, LatentGeometry, stream_geometries


@dataclass(frozen=True)
class Kept:
    """Values of one clip that autograd keeps for the backward pass."""

    wide: int
    """Values in fp32, whatever the precision."""
    narrow: int
    """Values in the chosen precision."""
    layer_inputs: int
    """Values of the layers' inputs, in fp32. Recomputation keeps these instead of `wide` and `narrow`."""
    largest_layer: tuple[int, int]
    """(wide, narrow) of the one layer that recomputation rebuilds at a time."""

    def num_bytes(self, precision: str, *, recompute: bool) -> int:
        wide, narrow = self.largest_layer if recompute else (self.wide, self.narrow)
        return 4 * (wide + recompute * self.layer_inputs) + (4 if precision == "fp32" else 2) * narrow


def mdsa_kept(config: Config) -> Kept:
    """What MDSA keeps for the backward pass. Each of the two streams has these parts:

        a space-time block    3 C wide, 4 C + 12 I + 4 r C narrow values per cell of the volume
                              (I heads x head width, r the MLP's ratio),
        a collapse layer      2 C wide, 2 C + 4 I' + 2 M' narrow values per token
                              (I' its heads x head width, M' its MLP's width),
                              three at a time, each over n + 1 tokens,
        a refiner's block     5 narrow values per place and channel, 3 for sound,
        the linear path       two wide images.

    The numbers were fitted as in `stdit_kept`. Planes, discriminators and LPIPS are left out.
    """
    mdsa, frames = config.mdsa, config.clip.num_frames
    width, inner, cells = mdsa.width, mdsa.num_heads * mdsa.head_width, frames * mdsa.plane_size**2
    block = 3 * width * cells, (4 * width + 12 * inner + 4 * mdsa.mlp_ratio * width) * cells
    collapse_cells = sum(
        cells * (length + 1) // length for length in (frames, mdsa.plane_size, mdsa.plane_size)
    )
    collapse_inner = mdsa.collapse_heads * (width // 8)
    collapse = (
        2 * width * collapse_cells,
        (2 * width + 4 * collapse_inner + 2 * mdsa.collapse_mlp_width) * collapse_cells,
    )
    depth, streams = mdsa.encoder_depth + mdsa.decoder_depth, len(MODALITIES)
    wide, narrow = (streams * (depth * block[i] + mdsa.collapse_depth * collapse[i]) for i in (0, 1))
    layer_inputs = streams * width * (depth * cells + mdsa.collapse_depth * collapse_cells)
    for modality, stream in stream_geometries(config).items():
        if mdsa.linear_planes.enabled:
            wide += 2 * math.prod(stream.input_shape)
        if mdsa.refiner.enabled:
            levels = [channels * places for channels, places in _refiner_levels(config, modality)]
            values = 2 * sum(levels) - levels[-1]
            narrow += (5 if modality == "video" else 3) * values
            layer_inputs += values
    return Kept(wide, narrow, layer_inputs, max(block, collapse, key=sum))


def _refiner_levels(config: Config, modality: str) -> list[tuple[int, int]]:
    """(channels, places of a clip) at each resolution of a refiner."""
    settings, (_, frames, rows, columns) = (
        config.mdsa.refiner,
        stream_geometries(config)[modality].input_shape,
    )
    places = frames * rows * columns // settings.patch**2
    return [(settings.width * 2**level, places // 4**level) for level in range(settings.levels)]


def stdit_kept(config: Config) -> Kept:
    """What ST-DiT keeps for the backward pass.

    Per token, layer and unit of width there are 8 a + 2 wide and 4 a + 3 + 2 r narrow values. a: attentions
    of a block (2 divided, 1 full). r: the MLP's ratio. The coefficients were fitted to counts by torch's
    saved_tensors_hooks. Embedding and modulation, a few percent, are left out. Attention across planes
    repeats a larger token for each place of the finest plane that it covers. Each repeat keeps four more
    narrow values. Attention to sequences of vectors keeps 2 wide and 4 narrow values per token, and 2 and 1
    per vector.
    """
    depth, width, _ = config.stdit.shape
    divided = config.stdit.attention == "divided"
    attentions, geometry = 2 if divided else 1, LatentGeometry.from_config(config)
    unit = geometry.num_tokens * width
    repeated = len(PLANE_NAMES) * max(geometry.token_sides) ** 2 * width - unit if divided else 0
    wide, narrow = 8 * attentions + 2, 4 * attentions + 3 + 2 * config.stdit.mlp_ratio
    layer = unit * wide, unit * narrow + 4 * repeated
    if vectors := width * sum(shape[0] for shape in config.stdit.vector_shapes.values() if len(shape) == 2):
        layer = layer[0] + 2 * (unit + vectors), layer[1] + 4 * unit + vectors
    return Kept(depth * layer[0], depth * layer[1], depth * unit, layer)
