"""Weight files of feature networks: safetensors whose metadata names the network and the format."""

import contextlib
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from proav.errors import UserError
from proav.metrics.networks.card import NetworkCard


def read_tensors(path: str, *, card: NetworkCard) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors, metadata) of a safetensors file.

    For any other file, raises UserError that says how to make it.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a safetensors file ({error}); to make it: {card.source}") from None


def load_state(network: nn.Module, path: str, *, form: str, card: NetworkCard) -> None:
    """Loads a file that `save_state` wrote. For any other file, raises UserError that says how to make it.

    network: takes the weights.
    path: of the file.
    form: the format that its metadata must name.
    card: of the network, for the message.
    """
    tensors, metadata = read_tensors(path, card=card)
    expected = {key: value.shape for key, value in network.state_dict().items()}
    if metadata.get("format") != form or {key: value.shape for key, value in tensors.items()} != expected:
        raise UserError(f"{path} does not hold the weights of {card.name}; to make it: {card.source}")
    network.load_state_dict(tensors)


def save_state(
    tensors: dict[str, Tensor], destination: str | Path, *, form: str, card: NetworkCard, source_sha256: str
) -> None:
    """Writes the whole file or nothing, with its origin as metadata. Makes its folder.

    tensors: by name.
    destination: path of the file.
    form: name of the format, which `load_state` checks.
    card: of the network.
    source_sha256: checksum of the published file that the tensors come from.

    Raises UserError if it cannot be written.
    """
    temporary = Path(f"{destination}.part")
    metadata = {
        "format": form,
        "network": card.name,
        "source_sha256": source_sha256,
        "licence": card.licence,
    }
    try:
        temporary.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, temporary, metadata=metadata)
        temporary.replace(destination)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"cannot write {destination}: {error}; free some space, or name another DST.safetensors"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
