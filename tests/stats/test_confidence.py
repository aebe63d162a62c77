"""Confidence: how high it must be for a model to reach an accuracy."""

import numpy as np
import pytest

from pipeline.stats import confidence


def test_the_bound_of_n_correct_images_is_the_nth_root_of_the_error():
    # if the accuracy were p, all n would be correct with probability p^n
    assert confidence.accuracy_bounds([100], [100]) == pytest.approx([0.05 ** (1 / 100)])
    # two thresholds share the error
    bounds = confidence.accuracy_bounds([50, 100], [50, 0])
    assert bounds == pytest.approx([0.025 ** (1 / 50), 0])


def test_the_bound_of_some_wrong_images_is_that_of_clopper_and_pearson():
    # 9 of 10: p with 10 p^9 (1 - p) + p^10 = 0.05
    (p,) = confidence.accuracy_bounds([10], [9])
    assert p == pytest.approx(0.6058, abs=1e-4)
    assert 10 * p**9 * (1 - p) + p**10 == pytest.approx(0.05)


def test_the_threshold_with_the_highest_coverage_that_is_known_to_reach_the_accuracy_is_chosen():
    images, correct = [200, 400, 600, 800], [200, 399, 590, 700]
    # bounds at an error of 0.05 / 4: 0.978, 0.985, 0.967 and 0.846
    bounds = confidence.accuracy_bounds(images, correct)
    assert bounds == pytest.approx([0.9783, 0.9838, 0.9677, 0.8466], abs=5e-4)
    choices = {0.8: 3, 0.96: 2, 0.98: 1, 0.99: None}
    for accuracy, index in choices.items():
        assert confidence.choose_threshold(images, correct, accuracy) == index


def test_at_most_5_percent_of_chosen_thresholds_miss_the_accuracy():
    """Thresholds at every twentieth of 1,000 images; the accuracy above a confidence c is known."""
    random = np.random.default_rng(0)
    missed = chosen = 0
    for _ in range(400):
        # an image of confidence c, uniform in [0.8, 1], is correct with probability c
        confidences = np.sort(random.uniform(0.8, 1, 1000))[::-1]
        correct = random.random(1000) < confidences
        images = np.arange(50, 1001, 50)
        index = confidence.choose_threshold(images, correct.cumsum()[images - 1], 0.93)
        if index is not None:
            chosen += 1
            missed += (confidences[images[index] - 1] + 1) / 2 < 0.93
    assert chosen > 300
    assert missed <= 0.05 * 400


def test_the_interval_of_a_share_is_exact():
    low, high = confidence.binomial_interval(10, 10)
    assert (low, high) == pytest.approx((0.025 ** (1 / 10), 1))
    low, high = confidence.binomial_interval(10, 5)
    assert (low, high) == pytest.approx((0.1871, 0.8129), abs=1e-4)
    assert confidence.binomial_interval(0, 0) == (0, 1)
