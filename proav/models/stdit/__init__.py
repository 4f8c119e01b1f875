"""ST-DiT: the transformer, its tokens, and what it adds to them."""

from proav.models.stdit.transformer import STDiT

__all__ = ["STDiT"]
