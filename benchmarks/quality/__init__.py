"""Quality of edits in the embedded world, against the truth; see ``benchmarks.quality.__main__``."""
