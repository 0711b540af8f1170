"""Files of the published code, and published networks."""
