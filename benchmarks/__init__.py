"""Benchmarks: ratios measured in one run, each result checked as well."""
