"""The three methods, and the shards of latents that they are applied to."""
