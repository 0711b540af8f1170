"""From a prefix of photographs to latents, and from faces back into photographs."""
