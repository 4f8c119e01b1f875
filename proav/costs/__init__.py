"""What a configuration costs, in closed form: parameters, FLOPs per clip, memory per worker.

No network is built. Not here: measured times (`bench/`). A multiply-add counts as two FLOPs. Only matrix
products, convolutions and attention are counted, as torch's FlopCounterMode and most papers do; norms,
activations, Griffin-Lim and the mux are left out. The DiT family prints multiply-adds: double its numbers.
"""

from proav.costs.mdsa import discriminators_cost, mdsa_costs, mdsa_kept
from proav.costs.parts import Cost, Kept
from proav.costs.run import Costs, Memory, costs, format_costs, memory_estimate
from proav.costs.stdit import stdit_cost, stdit_kept

__all__ = [
    "Cost", "Costs", "Kept", "Memory", "costs", "discriminators_cost", "format_costs", "mdsa_costs",
    "mdsa_kept", "memory_estimate", "stdit_cost", "stdit_kept",
]  # fmt: skip
