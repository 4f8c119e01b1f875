"""Finds networks by name, and their weights in the user's folder.

The networks are the modules beside this one.
"""

import difflib
from pathlib import Path

from proav.errors import UserError
from proav.metrics.networks import given, i3d, surrogate, yamnet
from proav.metrics.networks.card import FeatureNetwork, NetworkCard
from proav.storage import is_remote

MODULES = {module.CARD.name: module for module in (i3d, yamnet)}
"""Networks with published weights. Each module has CARD, load and convert_weights."""
NETWORKS: dict[str, NetworkCard] = {
    **{name: module.CARD for name, module in MODULES.items()},
    **{card.name: card for card in (*given.CARDS, *surrogate.CARDS)},
}


def weights_file(name: str, folder: str | None) -> str | None:
    """<folder>/<name>.safetensors if there is such a file, else None. Some networks need no weights.

    folder: evaluate.weights; None: not given. Raises UserError if it is no local folder.
    """
    if not folder:
        return None
    if is_remote(folder):
        raise UserError(
            f"evaluate.weights={folder} is remote; expected a local folder: copy it to this machine, and "
            "write evaluate.weights=COPY"
        )
    if not Path(folder).is_dir():
        raise UserError(
            f"evaluate.weights={folder}: there is no such folder; expected the folder with the weights, such "
            f"as {name}.safetensors"
        )
    path = Path(folder, f"{name}.safetensors")
    return str(path) if path.is_file() else None


def load_network(name: str, weights: str | None = None, device: str = "cpu") -> FeatureNetwork:
    """The network with the weights of that file.

    Raises UserError for an unknown name, for missing weights, and for a file that holds something else.
    """
    if name not in NETWORKS:
        near = difflib.get_close_matches(name, NETWORKS, n=1)
        raise UserError(
            f"no feature network {name}; expected one of: {', '.join(NETWORKS)}"
            + (f"; did you mean {near[0]}?" if near else "")
        )
    card = NETWORKS[name]
    if card in surrogate.CARDS:
        return surrogate.load(name, device)
    if weights is None:
        raise UserError(
            f"the network {name} needs its weights, evaluate.weights=DIR with {name}.safetensors; "
            f"to make it: {card.source}"
        )
    return MODULES[name].load(weights, device) if name in MODULES else given.load(card, weights, device)
