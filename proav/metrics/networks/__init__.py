"""Feature networks for the distances between sets of clips.

A network's card says what it takes and returns, where its weights come from, and which metrics may be
computed with it. A network is called with a batch of clips and returns float32 [B, W, D]: W feature vectors
per clip. Video networks take uint8 [B, T, H, W, 3] of any size. Audio networks take float32 [B, samples] in
[-1, 1] at their `sample_rate`. Networks of kind "both" take both. Networks scale their input themselves.
Weights are files that the user gives; nothing is downloaded. To add a network, add a module here and a line
in `load.py`.
"""

from proav.metrics.networks.card import FeatureNetwork, NetworkCard
from proav.metrics.networks.load import NETWORKS, load_network, weights_file

__all__ = ["NETWORKS", "FeatureNetwork", "NetworkCard", "load_network", "weights_file"]
