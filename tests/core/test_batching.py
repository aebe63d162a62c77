"""Batching: batch sizes for small and large images."""

import pytest

from pipeline.core.batching import batch_size


@pytest.mark.parametrize(
    ("shape", "expected"),
    # 2**22 / (64 * 64 * 4) = 256 images; 2**22 / 2**22 = 1; a larger image is a batch by itself
    [((8, 8, 1), 512), ((64, 64, 4), 256), ((2048, 2048, 1), 1), ((4096, 4096, 3), 1)],
)
def test_a_batch_contains_fewer_large_images(shape, expected):
    assert batch_size(shape) == expected


def test_values_and_images_per_batch_can_be_limited():
    assert batch_size((2, 2, 1), max_values=12) == 3
    assert batch_size((2, 2, 1), max_values=12, max_batch=2) == 2
