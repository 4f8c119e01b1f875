"""The contract between a feature network and what measures with it."""

from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

from torch import Tensor


@dataclass(frozen=True)
class NetworkCard:
    """What is known of a network before it is loaded."""

    name: str
    kind: Literal["video", "audio", "both"]
    """What it takes: pictures, sound, or both, in that order."""
    dimension: int | None
    """Features of a vector, D; None: as many as the file of weights names classes."""
    metrics: tuple[str, ...]
    """Names under which distances in its features may be printed."""
    licence: str
    source: str
    """Where the weights come from, and how they become the file that is read here; empty: it needs none."""
    sample_rate: int | None = None
    """Of the sound that it takes, Hz."""
    min_frames: int = 1
    """Fewest frames of a clip that it takes."""
    min_seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class FeatureNetwork(Protocol):
    """A loaded network."""

    card: NetworkCard
    weights_sha256: str
    """Of the file of weights, with the package's version where the code is the user's; of a network without a file, a name for its numbers."""

    def __call__(self, *batch: Tensor) -> Tensor: ...
