"""Correctness: its encoding, and the detection of different test images."""

import json

import numpy as np
import pytest

from pipeline.stats.correctness import pack, same_images, unpack

ACTUAL = np.array(["cat", "dog", "cat"])


def test_an_image_takes_one_bit():
    # 1 0 1, padded to 1010 0000: the byte 0xa0, in base64 oA==
    packed = pack(np.array([True, False, True]), ACTUAL)
    assert (packed["images"], packed["right"]) == (3, "oA==")
    assert unpack(packed).tolist() == [True, False, True]


@pytest.mark.parametrize("count", [1, 7, 8, 9, 360])
def test_unpack_reverses_pack(count):
    correct = np.random.default_rng(0).random(count) < 0.5
    unpacked = unpack(json.loads(json.dumps(pack(correct, np.full(count, "a")))))
    assert unpacked.dtype == bool
    np.testing.assert_array_equal(unpacked, correct)


def test_ten_thousand_images_take_less_than_two_kilobytes():
    packed = pack(np.full(10_000, True), np.full(10_000, "a"))
    # base64 encodes each 3 of the 1,250 bytes as 4 characters
    assert len(packed["right"]) == 1668
    assert len(json.dumps(packed)) < 2000


def test_the_same_images_are_recognized_whatever_the_predictions():
    assert same_images(pack(np.full(3, True), ACTUAL), pack(np.full(3, False), ACTUAL))


@pytest.mark.parametrize("others", [
    ["dog", "cat", "cat"],
    ["cat", "dog"],
    ["cat", "dog", "cat", "cat"],
    ["catdog", "cat"],
    ["cat", "dög", "cat"],
])  # fmt: skip
def test_images_with_other_classes_or_order_are_detected(others):
    correct = np.full(len(others), True)
    assert not same_images(pack(np.full(3, True), ACTUAL), pack(correct, np.array(others)))
