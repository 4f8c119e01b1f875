"""ST-DiT's parameters, FLOPs and kept values. d width, P=6 planes, L tokens of a plane."""

from proav.config import Config
from proav.costs.parts import NUM_MODALITIES, Cost, Kept, hidden_cost, linear_cost, sum_of
from proav.geometry import PLANE_NAMES, PLANES_PER_MODALITY, LatentGeometry

TIME_WAVES = 256
"""Sines and cosines that ST-DiT embeds a time with."""


def stdit_cost(config: Config, num_labels: int = 0) -> Cost:
    """ST-DiT and one evaluation of it: about 32 d^2 FLOPs per token and layer if divided, 24 d^2 if full."""
    depth, width, heads = config.stdit.shape
    geometry = LatentGeometry.from_config(config)
    planes, per_plane, tokens = len(PLANE_NAMES), geometry.tokens_per_plane, geometry.num_tokens
    cells = geometry.token_patch**2
    hidden = config.stdit.mlp_ratio * width
    if config.stdit.attention == "divided":
        attention = _self_attention(width, heads, per_plane, planes) + _self_attention(
            width, heads, planes, per_plane
        )
    else:
        attention = _self_attention(width, heads, tokens, 1)
    block = sum_of(
        Cost(6 * width), attention, hidden_cost(width, hidden, tokens), hidden_cost(hidden, width, tokens)
    )
    time = linear_cost(TIME_WAVES, width, NUM_MODALITIES) + linear_cost(width, width, NUM_MODALITIES)
    tables = Cost(
        (PLANES_PER_MODALITY + NUM_MODALITIES + planes) * width
        + NUM_MODALITIES * width
        + (num_labels + 1) * width
    )
    return sum_of(
        _plane_linear((2 * geometry.stack_channels + 1) * cells, width, per_plane),
        tables,
        time.times(2),  # the own time's map and the other's
        linear_cost(width, 6 * width, NUM_MODALITIES),
        block.times(depth),
        linear_cost(width, 2 * width, NUM_MODALITIES),
        _plane_linear(width, geometry.stack_channels * cells, per_plane),
    )


def _plane_linear(inputs: int, outputs: int, tokens_per_plane: int) -> Cost:
    """A linear map a plane, with weights of its own."""
    return linear_cost(inputs, outputs, tokens_per_plane).times(len(PLANE_NAMES))


def _self_attention(width: int, num_heads: int, length: int, sequences: int) -> Cost:
    """Four maps of width^2, two norms of a head's width, 4 length^2 width per sequence for logits and mix."""
    rows = length * sequences
    norms = Cost(2 * (width // num_heads))
    maps = hidden_cost(width, 3 * width, rows) + hidden_cost(width, width, rows)
    return sum_of(maps, norms, Cost(0, 4 * sequences * length**2 * width))


def stdit_kept(config: Config) -> Kept:
    """Per token, layer and width: 8 a + 2 wide and 4 a + 3 + 2 r narrow values.

    a: attentions of a block (2 divided, 1 full), r: the MLP's ratio. The coefficients were fitted to what
    saved_tensors_hooks saw; the rest (embedding, modulation) is left out, a few percent.
    """
    depth, width, _ = config.stdit.shape
    attentions = 2 if config.stdit.attention == "divided" else 1
    unit = LatentGeometry.from_config(config).num_tokens * width
    layer = unit * (8 * attentions + 2), unit * (4 * attentions + 3 + 2 * config.stdit.mlp_ratio)
    return Kept(depth * layer[0], depth * layer[1], depth * unit, layer)
