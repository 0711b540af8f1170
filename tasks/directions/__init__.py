"""From seeds to a relevance table, and from prompts to style directions."""
