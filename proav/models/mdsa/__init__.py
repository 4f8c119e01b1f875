"""MDSA: two streams, their planes, the attention between them, and the linear half of the projection."""

from proav.models.mdsa.autoencoder import MDSA, Exchange

__all__ = ["MDSA", "Exchange"]
