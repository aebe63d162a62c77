"""Splitting: stratified random splits and samples."""

import numpy as np
import pytest

from pipeline.core.errors import PipelineError
from pipeline.core.splitting import (
    Grouping,
    stratified_folds,
    stratified_sample,
    stratified_split,
)


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


def test_groups_stay_in_one_part_and_classes_keep_about_their_share():
    groups = np.repeat(np.arange(20), 5)
    labels = np.arange(100) % 5 // 3  # 3 images of class 0 and 2 of class 1 in each group
    train, validation = stratified_split(labels, ["a", "b"], 0.2, 0, "x", "y", groups)
    assert np.bincount(labels[validation]).tolist() == [12, 8]
    assert not set(groups[train]) & set(groups[validation])
    assert sorted([*train, *validation]) == list(range(100))
    other = stratified_split(labels, ["a", "b"], 0.2, 1, "x", "y", groups)[1]
    assert validation.tolist() != other.tolist()


@pytest.mark.parametrize(("share", "expected"), [(0.75, 30), (0.4, 16), (0.01, 4), (0.99, 36)])
def test_the_share_is_as_near_as_whole_groups_in_ten_folds_allow(share, expected):
    labels, groups = np.zeros(40, int), np.arange(40) // 2
    second = stratified_split(labels, ["a"], share, 0, "x", "y", groups)[1]
    assert len(second) == expected


@pytest.mark.parametrize(("labels", "groups", "message"), [
    ([0, 0, 1, 1, 1], "aabbc", r"^x: images of a class must be of 2 .*\. Got only a of cat\. y$"),
    ([0, 1, 0, 1], "aabb", r"^x: 2 groups are too few for 3 folds\. y$"),
    ([0, 1, 0, 1], None, r"^x: too few images of cat \(2 of 4\) for 3 folds\. y$"),
    ([0, 0, 0, 1], None, r"^x: too few images of dog \(1 of 4\) for 3 folds\. y$"),
])  # fmt: skip
def test_folds_with_too_few_images_or_groups_are_refused(labels, groups, message):
    group_array = None if groups is None else np.array([*groups])
    with pytest.raises(PipelineError, match=message):
        stratified_folds(np.array(labels), ["cat", "dog"], 3, 0, "x", "y", group_array)


def test_groups_come_from_a_column_or_from_ids():
    ids = ["cat/p1_0.jpg", "cat/p1_1.jpg", "dog/p2_0.jpg"]
    metadata = [{"patient": "a"}, {"patient": "b"}, {"patient": "a"}]
    for grouping, expected in (
        (Grouping("patient", None), ["a", "b", "a"]),
        (Grouping(None, "([^/]+)_"), ["p1", "p1", "p2"]),
    ):
        groups = grouping.groups("x", ids, metadata)
        assert groups is not None
        assert groups.tolist() == expected
    assert Grouping(None, None).groups("x", ids, metadata) is None


@pytest.mark.parametrize(("grouping", "message"), [
    (Grouping("video", None), r"split\.group must be a column of metadata\.csv\. Got video; "
     r"columns: patient, eye\. Change it"),
    (Grouping("eye", None), r"^x: every image must have a group\. Got 1 image without: b\. Fill"),
    (Grouping(None, "(z)"), r"Got 2 images without: a, b\. Change split\.group_pattern, \(z\)"),
    (Grouping("patient", None), r"^x: images must be of 2 or more groups\. Got only 7\. Fill in"),
])  # fmt: skip
def test_images_without_groups_are_refused(grouping, message):
    metadata = [{"patient": "7", "eye": "left"}, {"patient": "7", "eye": ""}]
    with pytest.raises(PipelineError, match=message):
        grouping.groups("x", ["a", "b"], metadata)


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
