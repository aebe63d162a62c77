"""Cpu: those of the processor that this process may use."""

import os
from collections.abc import Collection


def available_cores() -> Collection[int]:
    """Return their numbers; TensorFlow computes in as many threads."""
    if hasattr(os, "sched_getaffinity"):  # Linux, where a container or taskset may give fewer
        return os.sched_getaffinity(0)
    return range(os.cpu_count() or 1)
