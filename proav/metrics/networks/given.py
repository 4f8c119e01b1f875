"""Networks whose weights and code the user brings: AudioCLIP, ImageBind, Synchformer, a classifier.

MM-Diffusion's FAD is defined on AudioCLIP. The code is an installed package that declares an entry point in
its pyproject.toml:

    [project.entry-points."proav.feature_networks"]
    audioclip = "my_package:build"

`build(tensors, device)` returns a callable that maps a batch of clips, as described by the card below, to
float32 [B, W, dimension]. A network of kind "both" is called with pictures and sound. `tensors` are all
tensors of DIR/audioclip.safetensors. So a file can never run code; only installed packages do. Graphs from a
file are not read, because the loaders of torch.export and of TorchScript unpickle.

The file of a classifier names its labels in its metadata, in the order of its logits:
`save_file(tensors, path, metadata={"classes": json.dumps(labels)})`. Features are cached under the weights'
checksum and the package's version: increase the version when the numbers change.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import EntryPoint, entry_points

import torch
from torch import Tensor

from proav.errors import UserError
from proav.foreign_weights import file_hash
from proav.metrics.networks.card import NetworkCard
from proav.metrics.networks.weights import read_tensors

GROUP = "proav.feature_networks"
"""Group of the entry points. Each has the name of the network's card."""
MOST_SAID = 300
"""Most characters of a package's own error in a message: PyTorch lists every tensor that is missing."""
_HOW = "an installed package with an entry point of this name reads them: see proav/metrics/networks/given.py"
CARDS = (
    NetworkCard(
        "audioclip",
        "audio",
        1024,
        ("FAD",),
        "MIT",
        f"AudioCLIP's released weights as safetensors; {_HOW}",
        sample_rate=44_100,
    ),
    NetworkCard(
        "imagebind-video",
        "video",
        1024,
        ("AV-IB",),
        "CC-BY-NC-SA-4.0",
        f"ImageBind's released weights as safetensors; {_HOW}",
    ),
    NetworkCard(
        "imagebind-audio",
        "audio",
        1024,
        ("AV-IB",),
        "CC-BY-NC-SA-4.0",
        f"ImageBind's released weights as safetensors; {_HOW}",
        sample_rate=16_000,
    ),
    NetworkCard(
        "synchformer",
        "both",
        21,
        ("DeSync",),
        "MIT",
        f"Synchformer's released weights as safetensors; {_HOW}",
        sample_rate=16_000,
        min_seconds=4.8,
    ),
    NetworkCard(
        "classifier",
        "video",
        None,
        ("label_accuracy",),
        "yours",
        f"a classifier of your labels as safetensors; {_HOW}",
    ),
)


class GivenNetwork:
    """A package's network with a check of its results against its card.

    A call raises UserError that names the package, unless the result is finite float32 [B, W, dimension].

    card: of the network, with its dimension.
    embed: the callable that the package built.
    weights_sha256: see `FeatureNetwork`.
    package: name and version, for messages.
    """

    def __init__(
        self, card: NetworkCard, embed: Callable[..., Tensor], *, weights_sha256: str, package: str
    ) -> None:
        self.card, self.weights_sha256, self._embed, self._package = card, weights_sha256, embed, package

    @torch.inference_mode()
    def __call__(self, *batch: Tensor) -> Tensor:
        features, count = self._embed(*batch), len(batch[0])
        expected = f"expected float32 [{count}, windows, {self.card.dimension}]"
        if not isinstance(features, Tensor):
            raise UserError(f"{self.card.name} of {self._package} gave {type(features).__name__}; {expected}")
        dtype, shape = str(features.dtype).removeprefix("torch."), list(features.shape)
        if (
            features.dtype != torch.float32
            or features.ndim != 3
            or [shape[0], shape[2]] != [count, self.card.dimension]
            or not shape[1]
        ):
            raise UserError(f"{self.card.name} of {self._package} gave {dtype} {shape}; {expected}")
        if not torch.isfinite(features).all():
            raise UserError(
                f"{self.card.name} of {self._package} gave features that are not finite; {expected}"
            )
        return features


def load(card: NetworkCard, path: str, device: str = "cpu") -> GivenNetwork:
    """The installed package's network with the weights of that file.

    Raises UserError if no package or more than one has code for the network, if the code cannot be imported,
    or if the file has another format or other tensors.
    """
    entry = _find_entry(card)
    package = f"{entry.dist.name} {entry.dist.version}"
    tensors, _ = read_tensors(path, card=card)
    if card.dimension is None:
        card = replace(card, dimension=len(class_names(card, path)))
    try:
        build = entry.load()
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"{package} declares {entry.value} for the network {card.name}, "
            f"but it cannot be imported: {error}"
        ) from error
    try:
        embed = build(tensors, device)
    except (KeyError, RuntimeError, ValueError) as error:
        said = " ".join(str(error).split())[:MOST_SAID]
        raise UserError(
            f"{package} cannot build the network {card.name} from {path}: {type(error).__name__}: {said}; "
            f"expected the tensors that {entry.value} reads: write evaluate.weights=DIR with "
            f"{card.name}.safetensors of those"
        ) from error
    return GivenNetwork(card, embed, weights_sha256=f"{file_hash(path)}, {package}", package=package)


def class_names(card: NetworkCard, path: str) -> tuple[str, ...]:
    """The labels of a classifier, in the order of its logits. Raises UserError if its file has none."""
    try:
        names = json.loads(read_tensors(path, card=card)[1]["classes"])
    except (KeyError, ValueError):
        names = None
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise UserError(
            f"{path} names no classes; expected metadata classes, a JSON list of labels in the order of the "
            f"logits: see {__name__}"
        )
    return tuple(names)


def _find_entry(card: NetworkCard) -> EntryPoint:
    found = sorted(entry_points(group=GROUP, name=card.name), key=lambda entry: entry.dist.name)
    if not found:
        raise UserError(
            f"no installed package has code for the network {card.name}; "
            f'expected an entry point {card.name} = "MODULE:FUNCTION" in the group '
            f"{GROUP}: proav/metrics/networks/given.py says what it must do"
        )
    if len(found) > 1:
        names = [entry.dist.name for entry in found]
        raise UserError(
            f"several packages have code for the network {card.name}: {', '.join(names)}; "
            f"keep one: pip uninstall {names[-1]}"
        )
    return found[0]
