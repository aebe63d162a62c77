"""Batching: choose batch sizes that keep memory bounded for large images."""

import math
from collections.abc import Sequence

# Keras's predict is fastest with a few hundred images per batch. Large images get smaller batches,
# because feature maps take many times the memory of their images.
MAX_BATCH = 512
MAX_VALUES = 2**22


def batch_size(
    shape: Sequence[int], max_values: int = MAX_VALUES, max_batch: int = MAX_BATCH
) -> int:
    """Return the number of images per batch, in [1, max_batch].

    Args:
        shape: Shape of one image.
        max_values: Largest number of pixel values in a batch. A larger image is a batch by itself.
        max_batch: Largest number of images in a batch.
    """
    return max(1, min(max_batch, max_values // math.prod(shape)))
