"""Slices: is a model worse on some of the test images, such as those of one camera?

A slice is the images that have one value in a column of their metadata. Its accuracy is compared
with that on all other images, the rest.
"""

from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t

from pipeline.stats import crossed

MAX_VALUES = 20  # of a column; more are names or measurements rather than groups
SAMPLES = 20_000  # of the permutation test


def compare_slices(correct: np.ndarray, metadata: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the accuracy on each slice, and its difference from that on the rest.

    The interval of the difference combines the intervals of both accuracies, which count seeds and
    images (Zou & Donner 2008), as if these were independent. Since both are of the same trainings,
    it is rather too wide. p is the larger one of two tests, adjusted by `holm` for the number of
    slices:

    - a permutation test of whether the images of the slice could be any of the test images;
    - with several trainings, a t test that counts seeds and images.

    Args:
        correct: `(k, n)` 1 for a correct prediction, 0 for a wrong one, of k trainings.
        metadata: n rows. Columns with only one value or more than MAX_VALUES are left out.

    Returns:
        For each slice column, value, images, accuracy with its interval, difference with its
        interval, and p_holm.

    Reference: Zou & Donner, "Construction of confidence limits about effect measures: a general
        approach" (2008), https://doi.org/10.1002/sim.3095
    """
    table = np.asarray(correct, int)
    slices = [
        (column, value, (metadata[column] == value).to_numpy())
        for column in metadata
        if 1 < metadata[column].nunique() <= MAX_VALUES
        for value in sorted(metadata[column].unique())
    ]
    p_values = [max(_p_of_images(table, part), _p_of_seeds(table, part)) for *_, part in slices]
    results = []
    for (column, value, part), p in zip(slices, crossed.holm(p_values), strict=True):
        mean, rest = (crossed.mean_interval(table[:, rows]) for rows in (part, ~part))
        difference = mean.mean - rest.mean
        low = difference - np.hypot(mean.mean - mean.low, rest.high - rest.mean)
        high = difference + np.hypot(mean.high - mean.mean, rest.mean - rest.low)
        results.append(
            {
                "column": column,
                "value": value,
                "images": int(part.sum()),
                "accuracy": float(mean.mean),
                "accuracy_low": float(mean.low),
                "accuracy_high": float(mean.high),
                "difference": float(difference),
                "difference_low": float(low),
                "difference_high": float(high),
                "p_holm": float(p),
            }
        )
    return results


def _p_of_images(table: np.ndarray, part: np.ndarray) -> float:
    """Return p of a permutation test: do the images of a slice have the scores of a random sample?

    An image's score is the number of trainings that classify it correctly. For a random sample, the
    number of images with each score has a multivariate hypergeometric distribution.
    """
    k, n = table.shape
    score, size = table.sum(0), int(part.sum())
    images = np.bincount(score, minlength=k + 1)  # (k + 1,) images with each score
    counts = np.random.default_rng(0).multivariate_hypergeometric(images, size, SAMPLES)
    # distances from the expectation, times n: whole numbers, so that ties are exact
    expected = size * score.sum()
    distances = np.abs(n * (counts @ np.arange(k + 1)) - expected)
    return (1 + np.sum(distances >= abs(n * score[part].sum() - expected))) / (1 + SAMPLES)


def _p_of_seeds(table: np.ndarray, part: np.ndarray) -> float:
    """Return p of a t test of the difference that counts seeds and images; 0 for one training.

    As in `crossed.compare_models`, the variance over seeds contains the residual variance. The
    variance over images is that of all images, as if there were no difference.
    """
    k, n = table.shape
    if k == 1:
        return 0.0
    inverse_size = 1 / part.sum() + 1 / (~part).sum()
    by_seed = table[:, part].mean(1) - table[:, ~part].mean(1)  # (k,)
    by_image = table.mean(0)
    residuals = table - by_image - table.mean(1, keepdims=True) + table.mean()
    residual = np.square(residuals).sum() / ((k - 1) * (n - 1))
    of_seeds = by_seed.var(ddof=1) / k
    variance = of_seeds + max(by_image.var(ddof=1) - residual / k, 0) * inverse_size
    if of_seeds == 0:
        return 0.0
    degrees = variance**2 / (of_seeds**2 / (k - 1))
    return float(2 * t.sf(abs(by_seed.mean()) / np.sqrt(variance), degrees))
