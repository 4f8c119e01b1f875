"""From source videos to batches: `sources` finds them, `preprocess` (Ray Data) writes shards of segments, `shards` reads them, `feed` draws windows.

Everything but `preprocess` and `latents` works without Ray.
"""
