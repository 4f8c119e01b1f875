"""Stored latents: MDSA over every shard once, and the statistics that normalize them."""
