"""Splitting: stratified random splits and samples."""

import numpy as np
import pytest

from pipeline.core.errors import PipelineError
from pipeline.core.splitting import stratified_sample, stratified_split


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


# class 1 has every fourth of rows 2 to 41
LABELS = np.array([0, 0, *[1, 0, 0, 0] * 10])
ROWS = np.arange(2, 42)


def test_a_sample_keeps_the_class_proportions():
    for size in (8, 0.2):
        sample = stratified_sample(ROWS, LABELS, size, seed=0)
        assert np.bincount(LABELS[sample]).tolist() == [6, 2]
        assert set(sample) <= set(ROWS)
    assert stratified_sample(ROWS, LABELS, None, 0) is ROWS
    assert stratified_sample(ROWS, LABELS, 1.0, 0).tolist() == ROWS.tolist()


def test_with_one_seed_a_smaller_sample_is_part_of_a_larger_one():
    sizes: list[int | float] = [3, 0.1, 7, 0.5, 39]
    samples = [set(stratified_sample(ROWS, LABELS, size, seed=1)) for size in sizes]
    assert [len(sample) for sample in samples] == [3, 4, 7, 20, 39]
    assert samples[0] < samples[1] < samples[2] < samples[3] < samples[4]
    assert samples[3] != set(stratified_sample(ROWS, LABELS, 0.5, seed=2))


@pytest.mark.parametrize(("size", "received"), [
    (41, r"Got 41 \(41 images\)"), (1, r"Got 1 \(1 image\)"), (0.01, r"Got 0\.01 \(0 images\)"),
])  # fmt: skip
def test_a_sample_that_is_too_large_or_misses_a_class_is_refused(size, received):
    expected = r"^train\.train_size must be at most all 40 training images, and .* 2 classes\. "
    with pytest.raises(PipelineError, match=expected + received):
        stratified_sample(ROWS, LABELS, size, 0)
