"""ST-DiT: the transformer, its tokens, and its embeddings."""

from proav.models.stdit.transformer import STDiT

__all__ = ["STDiT"]
