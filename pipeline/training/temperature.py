"""Temperature: make the probabilities of a trained model match how often it is right.

Reference: Guo et al., "On Calibration of Modern Neural Networks" (2017),
    https://arxiv.org/abs/1706.04599
"""

import math

import numpy as np

from pipeline.data.calibration import Calibration, thresholds

LARGEST = 1000.0  # the search is between 1 / LARGEST and LARGEST
STEPS = 40  # halvings of that interval, on a logarithmic scale: to 11 digits
DIGITS = 4  # that are kept: others would only repeat the rounding of one machine


def fit(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the temperature with the lowest log loss on the validation images.

    A weak prior of the inverse temperature b, with density proportional to b exp(-b), has its mode
    at 1. Without it, the temperature of a model that classifies all images correctly would be 0,
    and that of one that is no better than chance would be infinite. With many images, the prior
    makes next to no difference.

    Args:
        logits: `(n, k)`.
        labels: `(n,)` int64, in [0, k).
    """
    logits = logits.astype(np.float64)
    margins = logits - np.take_along_axis(logits, labels[:, None], axis=1)  # (n, k)

    def slope(inverse: float) -> float:
        """Return the derivative of log loss and prior, which increases with b: both are convex."""
        scaled = inverse * margins
        weights = np.exp(scaled - scaled.max(axis=1, keepdims=True))
        weights /= weights.sum(axis=1, keepdims=True)
        return float((weights * margins).sum()) + 1 - 1 / inverse

    low, high = -math.log(LARGEST), math.log(LARGEST)
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if slope(math.exp(middle)) > 0 else (middle, high)
    return float(f"{math.exp(-middle):.{DIGITS}g}")


def calibrate(logits: np.ndarray, labels: np.ndarray) -> Calibration:
    """Return the temperature, and the thresholds of the probabilities that it gives.

    Args: As of `fit`.
    """
    temperature = fit(logits, labels)
    confidence = Calibration(temperature).probabilities(logits).max(axis=1)
    correct = logits.argmax(axis=1) == labels
    return Calibration(temperature, len(labels), thresholds(confidence, correct))
