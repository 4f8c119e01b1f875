"""ST-DiT's parameters, FLOPs and kept values.

Not here: the autoencoder (`proav/models/mdsa/mdsa_costs.py`). Letters: d width, P=6 planes, L tokens of all
planes.
"""

from collections.abc import Sequence

from proav.config import Config
from proav.geometry import PLANE_NAMES, PLANES_PER_MODALITY, LatentGeometry
from proav.models.cost_parts import NUM_MODALITIES, Cost, Kept, hidden_cost, linear_cost, sum_of

TIME_WAVES = 256
"""Number of sines and cosines in ST-DiT's time embedding."""


def stdit_cost(config: Config, num_labels: int = 0) -> Cost:
    """ST-DiT's parameters, and the FLOPs of one evaluation.

    A token costs about 32 d^2 FLOPs a layer with divided attention, 24 d^2 with full attention. num_labels:
    rows of the label table, without the null label.
    """
    depth, width, heads = config.stdit.shape
    geometry = LatentGeometry.from_config(config)
    sides, tokens = geometry.token_sides, geometry.num_tokens
    planes = list(zip(geometry.channels, geometry.token_patches, sides, strict=True))
    hidden = config.stdit.mlp_ratio * width
    if config.stdit.attention == "divided":
        within = [(side**2, 1) for side in sides]
        across = [(len(PLANE_NAMES), max(sides) ** 2)]
        attention = _self_attention(width, heads, tokens, within) + _self_attention(
            width, heads, tokens, across
        )
    else:
        attention = _self_attention(width, heads, tokens, [(tokens, 1)])
    block = sum_of(
        Cost(6 * width), attention, hidden_cost(width, hidden, tokens), hidden_cost(hidden, width, tokens)
    )
    time = linear_cost(TIME_WAVES, width, NUM_MODALITIES) + linear_cost(width, width, NUM_MODALITIES)
    tables = Cost(
        (PLANES_PER_MODALITY + NUM_MODALITIES + len(PLANE_NAMES)) * width
        + NUM_MODALITIES * width
        + (num_labels + 1) * width
    )
    return sum_of(
        *(linear_cost((2 * own + 1) * patch**2, width, side**2) for own, patch, side in planes),
        tables,
        time.times(2),  # the own time's map and the other's
        linear_cost(width, 6 * width, NUM_MODALITIES),
        block.times(depth),
        linear_cost(width, 2 * width, NUM_MODALITIES),
        *(linear_cost(width, own * patch**2, side**2) for own, patch, side in planes),
    )


def _self_attention(width: int, num_heads: int, tokens: int, sequences: Sequence[tuple[int, int]]) -> Cost:
    """Four maps of width^2, two norms of a head's width, and 4 length^2 width FLOPs a sequence.

    width: features of a token.
    num_heads: attention heads.
    tokens: tokens of a clip.
    sequences: (length, how many) of the sequences that attend within themselves.
    """
    norms = Cost(2 * (width // num_heads))
    maps = hidden_cost(width, 3 * width, tokens) + hidden_cost(width, width, tokens)
    return sum_of(maps, norms, Cost(0, sum(4 * many * length**2 * width for length, many in sequences)))


def stdit_kept(config: Config) -> Kept:
    """Per token, layer and width: 8 a + 2 wide and 4 a + 3 + 2 r narrow values.

    a: attentions of a block (2 divided, 1 full). r: the MLP's ratio. The coefficients were fitted to what
    saved_tensors_hooks saw. Embedding and modulation are left out, a few percent. Attention across the planes
    repeats larger tokens at each place of the finest plane: every repeat keeps four more narrow values.
    """
    depth, width, _ = config.stdit.shape
    divided = config.stdit.attention == "divided"
    attentions, geometry = 2 if divided else 1, LatentGeometry.from_config(config)
    unit = geometry.num_tokens * width
    repeated = len(PLANE_NAMES) * max(geometry.token_sides) ** 2 * width - unit if divided else 0
    wide, narrow = 8 * attentions + 2, 4 * attentions + 3 + 2 * config.stdit.mlp_ratio
    layer = unit * wide, unit * narrow + 4 * repeated
    return Kept(depth * layer[0], depth * layer[1], depth * unit, layer)
