"""Stored latents: MDSA encodes every shard once, and statistics normalize the result."""
