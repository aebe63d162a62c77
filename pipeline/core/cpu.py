"""CPU cores available to this process."""

import os
from collections.abc import Collection


def available_cores() -> Collection[int]:
    """Return the ids of the available CPU cores; TensorFlow uses as many threads."""
    if hasattr(os, "sched_getaffinity"):  # Linux, where containers and taskset can restrict them
        return os.sched_getaffinity(0)
    return range(os.cpu_count() or 1)
