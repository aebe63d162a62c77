"""Batching: how many images at once, so that memory stays bounded where images are large."""

import math
from collections.abc import Sequence

# Keras's predict is fastest from a few hundred images per batch. Large images get smaller batches,
# since feature maps take many times their memory.
MOST = 512
VALUES = 2**22


def batch_size(shape: Sequence[int], values: int = VALUES, most: int = MOST) -> int:
    """Return how many images of a shape hold at most `values` numbers together, in [1, most]."""
    return max(1, min(most, values // math.prod(shape)))
