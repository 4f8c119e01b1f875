"""Feature networks, in whose features distances are taken.

A network's card says what it takes and gives, where its weights come from, and which metrics may be named
after it. A network is called with a batch of clips and gives float32 [B, W, D]: W feature vectors a clip.
Video networks take uint8 [B, T, H, W, 3] of any size. Audio networks take float32 [B, samples] in
[-1, 1] at their `sample_rate`. Networks of both take both. They scale their input themselves. Weights are
files that the user gives; nothing is downloaded. To add a network, add a module here and a line in
`load.py`.
"""

from proav.metrics.networks.card import FeatureNetwork, NetworkCard
from proav.metrics.networks.load import NETWORKS, load_network, weights_file

__all__ = ["NETWORKS", "FeatureNetwork", "NetworkCard", "load_network", "weights_file"]
