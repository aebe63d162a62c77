"""Splitting: stratified random splits."""

import numpy as np
import pytest

from pipeline.core.errors import PipelineError
from pipeline.core.splitting import stratified_split


def divide(labels, classes, share, seed=0):
    return stratified_split(labels, classes, share, seed, "digits", "Add some")


def test_classes_keep_their_share():
    labels = np.array([0] * 50 + [1] * 30 + [2] * 20)
    train, validation = divide(labels, ["a", "b", "c"], 0.2)
    assert np.bincount(labels[validation]).tolist() == [10, 6, 4]
    assert np.bincount(labels[train]).tolist() == [40, 24, 16]


def test_every_row_is_in_exactly_one_part_in_order():
    train, validation = divide(np.arange(40) % 4, list("abcd"), 0.25)
    assert sorted([*train, *validation]) == list(range(40))
    assert (np.diff(train) > 0).all()
    assert (np.diff(validation) > 0).all()


def test_the_seed_selects_the_rows():
    labels = np.arange(40) % 4
    first, again, other = (
        divide(labels, list("abcd"), 0.25, seed)[1].tolist() for seed in (0, 0, 1)
    )
    assert first == again != other


@pytest.mark.parametrize(("labels", "share", "message"), [
    ([0, 0, 0, 1], 0.5, r"^digits: too few images of dog \(1 of 4\) to hold out 50 %\. Add some$"),
    ([0, 0, 0, 1, 1, 1], 0.1, r"^digits: too few images of cat \(3 of 6\) to hold out 10 %\. Add"),
])  # fmt: skip
def test_too_few_images_are_refused(labels, share, message):
    with pytest.raises(PipelineError, match=message):
        divide(np.array(labels), ["cat", "dog"], share)
