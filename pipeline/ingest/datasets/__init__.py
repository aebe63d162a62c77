"""Data sets: one file per kind, with `load(name, folder, test_share, test_seed) -> Dataset`."""
