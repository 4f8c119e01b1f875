"""Parts of the cost estimates: `Cost`, `Kept`, and the costs of linear maps, norms and attention.

Not here: the networks' costs (`mdsa/mdsa_costs.py`, `stdit/stdit_costs.py`).
"""

from dataclasses import dataclass

from proav.geometry import MODALITIES

NUM_MODALITIES = len(MODALITIES)


@dataclass(frozen=True)
class Cost:
    """Parameters of a part, and FLOPs of using it on one clip.

    a + b is the cost of both parts together. times(n) is n such parts, each with its own weights.
    """

    parameters: int = 0
    flops: int = 0
    hidden: int = 0
    """Parameters in hidden matrices, which Muon trains if it is chosen."""

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.parameters + other.parameters, self.flops + other.flops, self.hidden + other.hidden)

    def times(self, count: int) -> "Cost":
        return Cost(count * self.parameters, count * self.flops, count * self.hidden)


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


def linear_cost(inputs: int, outputs: int, rows: int, *, bias: bool = True) -> Cost:
    """Parameters inputs * outputs (+ outputs), FLOPs 2 rows inputs outputs.

    inputs, outputs: features of a vector before and after.
    rows: vectors of a clip that the layer maps.
    bias: whether it adds one.
    """
    return Cost(inputs * outputs + bias * outputs, 2 * rows * inputs * outputs)


def hidden_cost(inputs: int, outputs: int, rows: int, *, bias: bool = True) -> Cost:
    """Cost of a linear map whose matrix counts as hidden. The arguments are those of `linear_cost`."""
    return linear_cost(inputs, outputs, rows, bias=bias) + Cost(hidden=inputs * outputs)


def sum_of(*parts: Cost) -> Cost:
    return sum(parts, Cost())


def norm_cost(width: int) -> Cost:
    return Cost(2 * width)


def attention_cost(width: int, inner: int, queries: int, keys: int, sequences: int = 1) -> Cost:
    """Cost of the maps to queries, keys and values (no bias), of the map back, and of attention itself.

    Attention itself takes 4 * queries * keys * inner FLOPs for each sequence.

    width: features of a token.
    inner: heads x head width.
    queries, keys: tokens of a sequence that attend, and that are attended to.
    sequences: number of sequences in a clip.
    """
    to_queries = hidden_cost(width, inner, queries * sequences, bias=False)
    to_keys_and_values = hidden_cost(width, 2 * inner, keys * sequences, bias=False)
    back = hidden_cost(inner, width, queries * sequences)
    return sum_of(to_queries, to_keys_and_values, back, Cost(0, 4 * sequences * queries * keys * inner))
