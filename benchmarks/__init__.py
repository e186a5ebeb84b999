"""Benchmarks: every number in README and docs comes from the JSON that one of these prints."""
