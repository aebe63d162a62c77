"""Batching: large images come in small batches."""

import pytest

from pipeline.core.batching import batch_size


@pytest.mark.parametrize(
    ("shape", "expected"),
    # 2**22 numbers / (64 * 64 * 4) = 256; / 2**22 = 1; an image with more than that
    [((8, 8, 1), 512), ((64, 64, 4), 256), ((2048, 2048, 1), 1), ((4096, 4096, 3), 1)],
)
def test_a_batch_holds_few_images_where_they_are_large(shape, expected):
    assert batch_size(shape) == expected


def test_a_bound_of_another_size():
    assert batch_size((2, 2, 1), values=12) == 3
    assert batch_size((2, 2, 1), values=12, most=2) == 2
