"""Confidence: how high it must be for a model to reach an accuracy.

Classifying only the images whose confidence reaches a threshold is called selective classification.
The share of these images is the coverage.

Reference: Geifman & El-Yaniv, "Selective Classification for Deep Neural Networks" (2017),
    https://arxiv.org/abs/1705.08500
"""

import numpy as np
import numpy.typing as npt
from scipy.special import betaincinv

CONFIDENCE_LEVEL = 0.95  # of `accuracy_bounds` and `binomial_interval`


def accuracy_bounds(images: npt.ArrayLike, correct: npt.ArrayLike) -> np.ndarray:
    """Return lower bounds of the accuracy above each of several thresholds, `(m,)` in [0, 1].

    With a probability of 95 %, all of them hold together, so that any may be chosen after looking
    at them. They are the lower bounds of Clopper & Pearson (1934), at 1/m of the error each
    (Bonferroni). The accuracy is that of new images like these, if they are as confident.

    Geifman & El-Yaniv search the thresholds by bisection, and divide the error by the number of its
    steps. Those depend on the images, which is why all thresholds that may be tried are counted
    here.

    Args:
        images: m numbers of images whose confidence reaches the threshold.
        correct: How many of them were classified correctly.
    """
    images = np.asarray(images)
    return _lower_bound(images, np.asarray(correct), (1 - CONFIDENCE_LEVEL) / len(images))


def choose_threshold(images: npt.ArrayLike, correct: npt.ArrayLike, accuracy: float) -> int | None:
    """Return the index of the threshold with the highest coverage whose bound reaches an accuracy.

    None if no bound does. Arguments are as in `accuracy_bounds`, in ascending order of `images`.
    """
    reached = np.flatnonzero(accuracy_bounds(images, correct) >= accuracy)
    return int(reached[-1]) if len(reached) else None


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
