"""Benchmarks, one per file; `python -m benchmarks` runs them."""
