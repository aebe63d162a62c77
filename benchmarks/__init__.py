"""One file, one benchmark; `python -m benchmarks` runs them."""
