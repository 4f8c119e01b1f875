"""The made world of `examples/world`: its laws, and how well clips keep them."""

from proav.metrics.world.world_scores import (
    COUNTED_BY,
    MEDIANS,
    WITH_SCALE,
    WORLD_SCORES,
    scale_texts,
    world_scores,
)

__all__ = ["COUNTED_BY", "MEDIANS", "WITH_SCALE", "WORLD_SCORES", "scale_texts", "world_scores"]
