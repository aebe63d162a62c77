"""Answers: a bit for each test image, and what tells test images apart."""

import json

import numpy as np
import pytest

from pipeline.stats.correctness import pack, same_images, unpack

ACTUAL = np.array(["cat", "dog", "cat"])


def test_an_image_is_a_bit():
    # 1 0 1, filled up to 1010 0000: the byte 0xa0, in base64 oA==
    packed = pack(np.array([True, False, True]), ACTUAL)
    assert (packed["images"], packed["right"]) == (3, "oA==")
    assert unpack(packed).tolist() == [True, False, True]


@pytest.mark.parametrize("count", [1, 7, 8, 9, 360])
def test_answers_come_back_as_they_were(count):
    correct = np.random.default_rng(0).random(count) < 0.5
    found = unpack(json.loads(json.dumps(pack(correct, np.full(count, "a")))))
    assert found.dtype == bool
    np.testing.assert_array_equal(found, correct)


def test_ten_thousand_images_take_less_than_two_kilobytes():
    packed = pack(np.full(10_000, True), np.full(10_000, "a"))
    # 1,250 bytes, four letters for three of them
    assert len(packed["right"]) == 1668
    assert len(json.dumps(packed)) < 2000


def test_images_are_the_same_whatever_the_answers():
    assert same_images(pack(np.full(3, True), ACTUAL), pack(np.full(3, False), ACTUAL))


@pytest.mark.parametrize("others", [
    ["dog", "cat", "cat"],
    ["cat", "dog"],
    ["cat", "dog", "cat", "cat"],
    ["catdog", "cat"],
    ["cat", "dög", "cat"],
])  # fmt: skip
def test_other_images_are_told_apart_by_their_classes_and_order(others):
    right = np.full(len(others), True)
    assert not same_images(pack(np.full(3, True), ACTUAL), pack(right, np.array(others)))
