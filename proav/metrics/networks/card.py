"""The contract between a feature network and the code that measures with it.

The networks are the other files of this folder. Letters: B clips, W windows, D features.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

from torch import Tensor


@dataclass(frozen=True)
class NetworkCard:
    """What is known about a network before it is loaded."""

    name: str
    kind: Literal["video", "audio", "both"]
    """What it takes: pictures, sound, or both, pictures first."""
    dimension: int | None
    """Features of a vector, D; None: the number of classes that the weights file names."""
    metrics: tuple[str, ...]
    """Names of the distances that may be computed from its features."""
    licence: str
    source: str
    """Where the weights come from, and how they become the file that proav reads; empty: no file is needed.
    """
    sample_rate: int | None = None
    """Rate of the sound that it takes, Hz."""
    min_frames: int = 1
    """Fewest frames that a clip may have."""
    min_seconds: float = 0.0
    """Length of the shortest clip that it takes, in seconds."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class FeatureNetwork(Protocol):
    """A loaded network."""

    card: NetworkCard
    weights_sha256: str
    """SHA-256 of the weights file, and the package's version if the code is the user's.

    For a network without a file, this names its random numbers.
    """

    def __call__(self, *batch: Tensor) -> Tensor: ...
