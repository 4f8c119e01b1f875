"""From source videos to batches.

`sources` finds the videos. `prepare` decodes them and writes shards of segments. `store` reads the shards.
`feeds` draws windows from them. Only `prepare/preprocess.py` and `feeds/remote_feed.py` need Ray.
Stored latents are made in `proav/latents`.
"""
