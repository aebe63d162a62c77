"""Data sets: one file per kind, with a function `load` that returns a `Dataset`."""
