"""Confidence: how high it must be for a model to reach an accuracy."""

from typing import NamedTuple

import numpy as np
import pytest

from pipeline.stats import confidence


class Results(NamedTuple):
    images: int
    correct: int


def bounds(*results: tuple[int, int]) -> np.ndarray:
    return confidence.accuracy_bounds([Results(*row) for row in results])


def test_calibration_error_is_the_weighted_gap_of_the_bins():
    # 15 bins of 1/15: 0.91 and 0.92 share (0.867, 0.933], 0.55 lies in (0.533, 0.6]
    confidences, correct = np.array([0.91, 0.92, 0.55]), np.array([True, False, False])
    # |0.91 + 0.92 - 1| + |0.55| of 3 images
    error = confidence.calibration_error(confidences, correct)
    assert error == pytest.approx((0.83 + 0.55) / 3)


def test_certain_and_correct_predictions_have_no_calibration_error():
    assert confidence.calibration_error(np.ones(3), np.ones(3, bool)) == 0


def test_the_bound_of_n_correct_images_is_the_nth_root_of_the_error():
    # if the accuracy were p, all n would be correct with probability p^n
    assert bounds((100, 100)) == pytest.approx([0.05 ** (1 / 100)])
    # two thresholds share the error
    assert bounds((50, 50), (100, 0)) == pytest.approx([0.025 ** (1 / 50), 0])


def test_the_bound_of_some_wrong_images_is_that_of_clopper_and_pearson():
    # 9 of 10: p with 10 p^9 (1 - p) + p^10 = 0.05
    (p,) = bounds((10, 9))
    assert p == pytest.approx(0.6058, abs=1e-4)
    assert 10 * p**9 * (1 - p) + p**10 == pytest.approx(0.05)


def test_the_threshold_with_the_highest_coverage_that_is_known_to_reach_the_accuracy_is_chosen():
    results = [(200, 200), (400, 399), (600, 590), (800, 700)]
    # at an error of 0.05 / 4
    assert bounds(*results) == pytest.approx([0.9783, 0.9838, 0.9677, 0.8466], abs=5e-4)
    for accuracy, chosen in {0.8: 3, 0.96: 2, 0.98: 1, 0.99: None}.items():
        expected = None if chosen is None else results[chosen]
        assert confidence.choose_threshold([Results(*row) for row in results], accuracy) == expected


def test_at_most_5_percent_of_chosen_thresholds_miss_the_accuracy():
    """Thresholds at every twentieth of 1,000 images; the accuracy above a confidence c is known."""
    random = np.random.default_rng(0)
    missed = chosen = 0
    for _ in range(400):
        # an image of confidence c, uniform in [0.8, 1], is correct with probability c
        confidences = np.sort(random.uniform(0.8, 1, 1000))[::-1]
        correct = random.random(1000) < confidences
        results = [Results(m, int(correct[:m].sum())) for m in range(50, 1001, 50)]
        if threshold := confidence.choose_threshold(results, 0.93):
            chosen += 1
            missed += (confidences[threshold.images - 1] + 1) / 2 < 0.93
    assert chosen > 300
    assert missed <= 0.05 * 400


def test_the_interval_of_a_share_is_exact():
    low, high = confidence.binomial_interval(10, 10)
    assert (low, high) == pytest.approx((0.025 ** (1 / 10), 1))
    low, high = confidence.binomial_interval(10, 5)
    assert (low, high) == pytest.approx((0.1871, 0.8129), abs=1e-4)
    assert confidence.binomial_interval(0, 0) == (0, 1)
