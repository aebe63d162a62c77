"""Paired comparison: two models by their predictions for the same test images."""

import numpy as np
from scipy.stats import binomtest, bootstrap

from pipeline.stats.crossed import LEVEL, PSEUDO_IMAGES
from pipeline.stats.verdict import verdict

# With 10,000 resamples, the ends of the interval are accurate to about 2 % of its width.
RESAMPLES = 10_000


def paired(correct: np.ndarray, reference: np.ndarray, seed: int) -> dict:
    """Compare two models on the same test images.

    Args:
        correct: `(n,)` bool, True for images that the model classified correctly.
        reference: `(n,)` bool, True for images that the reference classified correctly.
        seed: Seed of the bootstrap.

    Returns:
        The difference in accuracy with its paired percentile bootstrap interval (Efron 1979),
        which includes `PSEUDO_IMAGES`; p of McNemar's exact test (McNemar 1947); and a verdict:
        `better` or `worse` if the interval excludes 0 and p < 0.05, otherwise
        `not distinguishable`.

    Reference: Agresti & Min, "Simple improved confidence intervals for comparing matched
        proportions" (2005), https://doi.org/10.1002/sim.1781
    """
    # paired: resampling the differences keeps both predictions for an image together
    gain = correct.astype(float) - reference.astype(float)
    low, high = bootstrap(
        (np.append(gain, PSEUDO_IMAGES),),
        np.mean,
        n_resamples=RESAMPLES,
        batch=100,
        confidence_level=LEVEL,
        method="percentile",
        rng=seed,
    ).confidence_interval
    only_model, only_reference = int((gain > 0).sum()), int((gain < 0).sum())
    discordant = only_model + only_reference
    p = binomtest(only_model, discordant).pvalue if discordant else 1.0
    return {
        "difference": float(gain.mean()),
        "difference_low": float(low),
        "difference_high": float(high),
        "only_this_right": only_model,
        "only_reference_right": only_reference,
        "mcnemar_p": float(p),
        "verdict": verdict(gain.mean(), p < 1 - LEVEL and not low <= 0 <= high),
    }
