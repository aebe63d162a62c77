"""Confidence: whether it matches accuracy, and how high it must be to reach an accuracy.

Classifying only the images whose confidence reaches a threshold is called selective classification.
The share of these images is the coverage.

Reference: Geifman & El-Yaniv, "Selective Classification for Deep Neural Networks" (2017),
    https://arxiv.org/abs/1705.08500
"""

from collections.abc import Sequence
from typing import Protocol, TypeVar

import numpy as np
from scipy.special import betaincinv

BINS = 15  # as Guo et al.
CONFIDENCE_LEVEL = 0.95  # of `accuracy_bounds` and `binomial_interval`


def calibration_error(confidence: np.ndarray, correct: np.ndarray) -> float:
    """Return the expected calibration error, in [0, 1].

    It is the mean gap between confidence and accuracy over bins of equal width, weighted by the
    number of images in each.

    Args:
        confidence: `(n,)` probability of the predicted class, in [0, 1].
        correct: `(n,)` bool.

    Reference: Guo et al., "On Calibration of Modern Neural Networks" (2017),
        https://arxiv.org/abs/1706.04599
    """
    # bins are open on the left, (0, 1/15], as in the paper
    bins = np.ceil(confidence * BINS).astype(int)
    gaps = np.bincount(bins, weights=confidence - correct)  # (bins,) summed gap in each bin
    return float(np.abs(gaps).sum() / len(confidence))


class Results(Protocol):
    """Results on the images whose confidence reaches a threshold."""

    @property
    def images(self) -> int: ...
    @property
    def correct(self) -> int: ...


Threshold = TypeVar("Threshold", bound=Results)


def accuracy_bounds(thresholds: Sequence[Results]) -> np.ndarray:
    """Return lower bounds of the accuracy above each of m thresholds, `(m,)` in [0, 1].

    With a probability of 95 %, all of them hold together, so that any may be chosen after looking
    at them. They are the lower bounds of Clopper & Pearson (1934), at 1/m of the error each
    (Bonferroni). The accuracy is that of new images like these that reach the threshold.

    Geifman & El-Yaniv search the thresholds by bisection, and divide the error by the number of its
    steps. The steps depend on the images, which is why all thresholds that could be chosen are
    counted here.
    """
    images = np.array([row.images for row in thresholds], int)
    correct = np.array([row.correct for row in thresholds], int)
    return _lower_bound(images, correct, (1 - CONFIDENCE_LEVEL) / max(1, len(images)))


def choose_threshold(thresholds: Sequence[Threshold], accuracy: float) -> Threshold | None:
    """Return the threshold that most images reach of those whose bound reaches an accuracy, if any.

    Args:
        thresholds: In descending order of confidence.
        accuracy: In (0, 1).
    """
    reached = np.flatnonzero(accuracy_bounds(thresholds) >= accuracy)
    return thresholds[reached[-1]] if len(reached) else None


def binomial_interval(images: int, correct: int) -> tuple[float, float]:
    """Return the 95 % interval of an accuracy (Clopper & Pearson 1934)."""
    error = (1 - CONFIDENCE_LEVEL) / 2
    low, wrong_low = (
        float(_lower_bound(np.asarray(images), np.asarray(count), error))
        for count in (correct, images - correct)
    )
    return low, 1 - wrong_low


def _lower_bound(images: np.ndarray, correct: np.ndarray, error: float) -> np.ndarray:
    """Return the one-sided lower bound of Clopper & Pearson, too high with this probability."""
    bound = betaincinv(np.maximum(correct, 1), images - correct + 1, error)
    return np.where(correct > 0, bound, 0.0)
