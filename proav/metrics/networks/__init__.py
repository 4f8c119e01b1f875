"""Networks whose features distances are taken in: what each takes, what it gives, where its weights come from, and what may be named after it.

A network is called with a batch of clips and gives float32 [B, W, D]: W feature vectors a clip. Video networks take uint8 [B, T, H, W, 3] at whatever
size, audio networks float32 [B, samples] in [-1, 1] at their `sample_rate`, networks of both take both; scaling is theirs. Weights are files that the user gives; nothing is
downloaded. A new network is a module here and a line in NETWORKS.
"""

from proav.metrics.networks.card import FeatureNetwork, NetworkCard
from proav.metrics.networks.load import NETWORKS, load_network, weights_file

__all__ = ["NETWORKS", "FeatureNetwork", "NetworkCard", "load_network", "weights_file"]
