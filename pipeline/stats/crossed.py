"""Comparison of two models, each trained with several seeds and tested on the same images.

The question is about two ways of training: how much do their expected scores differ, over seeds
and over images like the test images? So an interval counts both the chance of the seeds and that
of the test images. Seeds are nested in the model and images are crossed with it, like readers and
cases in multi-reader multi-case studies.

Scores are tables `(k, n)`: a row for each of k trainings, a column for each of n test images. A
score is 1 for a correct prediction and 0 for a wrong one, or any other score of a prediction,
such as its Brier score. Leading axes, if any, are independent comparisons: simulations use them.

Reference: Obuchowski & Rockette, "Hypothesis testing of diagnostic accuracy for multiple readers
    and multiple tests" (1995), https://doi.org/10.1080/03610919508813243; Hillis, "A comparison of
    denominator degrees of freedom methods for multiple observer ROC analysis" (2007),
    https://doi.org/10.1002/sim.2532
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import binom, t

from pipeline.core.text import counted, decimal, signed

LEVEL = 0.95
# Two additional images: one that only the other model classifies correctly, and one that only the
# reference does (after Agresti & Min 2005). Without them the interval has width zero if all
# predictions agree, however few images there are.
PSEUDO_IMAGES = (1.0, -1.0)
ALPHA = 0.05
EQUIVALENCE_LEVEL = 1 - 2 * ALPHA  # two one-sided tests (Schuirmann 1987)
POWER = 0.8  # of a plan: the probability that equally good models are found as good as each other
# Numbers of additional trainings and test images to try, of at most two significant digits. For a
# comparison nobody trains 100 more models, or labels 100,000 more images (ImageNet's test split).
# Both limits are fixed, because this work does not depend on what there is already.
MORE_TRAININGS = np.arange(1, 100)
MORE_IMAGES = np.array([*range(1, 10), *(m * 10**e for e in range(4) for m in range(10, 100))])


class StandardError(NamedTuple):
    """A standard error and the degrees of freedom of its t distribution."""

    value: Any
    degrees_of_freedom: Any  # infinite for a normal distribution


@dataclass(frozen=True)
class Comparison:
    """The difference between two models, and the variances behind it.

    Pairs are of the reference, then of the other model.

    Attributes:
        trainings: Number of trainings of each model.
        images: Number of test images.
        difference: Mean score of the other model minus that of the reference.
        standard_errors: Of the difference, by one or several methods. The widest interval counts.
        p: Two-sided, of the hypothesis that the expected scores are equal.
        seed_variances: Over seeds, of a training's expected score. 0 where both were trained once.
        image_variance: Over images, of the expected difference on an image.
        residual_variances: Of a training's score on an image, beyond the two above.
    """

    trainings: tuple[int, int]
    images: int
    difference: Any
    standard_errors: Sequence[StandardError]
    p: Any
    seed_variances: tuple[Any, Any]
    image_variance: Any
    residual_variances: tuple[Any, Any]

    def interval(self, level: float = LEVEL) -> tuple[Any, Any]:
        """Return the lower and upper end of the confidence interval."""
        half = _half_width(self.standard_errors, level)
        return self.difference - half, self.difference + half

    def accuracy_interval(self) -> tuple[float, float]:
        """Return the 95 % interval of a difference of accuracies, which is in [-1, 1]."""
        low, high = self.interval()
        return max(float(low), -1.0), min(float(high), 1.0)

    def spread(self) -> dict[str, Any]:
        """Return the standard deviation of the difference that is due to each source."""
        (first, second), (k, other_k) = self.seed_variances, self.trainings
        residual = _sum_of_ratios(self.residual_variances, self.trainings)
        return {
            "reference_seeds": np.sqrt(first / k),
            "seeds": np.sqrt(second / other_k),
            "images": np.sqrt(self.image_variance / self.images),
            "residual": np.sqrt(residual / self.images),
        }


class Mean(NamedTuple):
    """Mean accuracy over trainings."""

    mean: Any
    low: Any
    high: Any
    standard_deviation: Any  # over the trainings; None for one


def compare_models(reference: np.ndarray, other: np.ndarray) -> Comparison:
    """Compare two models by their scores on the same images.

    The interval is the widest that these give, at every level, and p the largest:

    - Seeds and images, with the variance over seeds of each model, and degrees of freedom by
      Satterthwaite. Needs two trainings of each model.
    - The same, with the variance over seeds pooled over both models. Only if they have different
      numbers of trainings: two trainings alone say too little about their variance.
    - Images alone. Without it, trainings that happen to be equally good would make the interval
      narrower than that of a single training.

    The variance over images is never less than that of `PSEUDO_IMAGES` among n + 2 images. So the
    interval has a width even where all predictions agree.

    If both models were trained once, `compare_networks` compares the two trained networks. If one
    was, its variances are assumed to be those of the other: if its seeds in fact vary more, the
    interval is too narrow.

    Args:
        reference: `(k, n)` scores of the reference.
        other: `(l, n)` scores of the other model on the same images.
    """
    tables = np.asarray(reference, float), np.asarray(other, float)
    if tables[0].shape[-1] != tables[1].shape[-1]:
        raise ValueError(f"Same images expected. Got {[table.shape[-1] for table in tables]}")
    k, n = (tables[0].shape[-2], tables[1].shape[-2]), tables[0].shape[-1]
    if max(k) == 1:
        return compare_networks(tables[0][..., 0, :], tables[1][..., 0, :])

    by_seed = [_seed_variance(table) for table in tables]
    residuals = [_residual_variance(table) for table in tables]
    if 1 in k:  # of one training nothing is known
        several = k.index(max(k))
        by_seed, residuals = [by_seed[several]] * 2, [residuals[several]] * 2

    by_image = tables[1].mean(-2) - tables[0].mean(-2)
    of_images = _variance(by_image, -1) / n
    least = np.square(PSEUDO_IMAGES).sum() / ((n + 1) * (n + 2))
    images = np.maximum(of_images - _sum_of_ratios(residuals, k) / n, least)

    errors = [_standard_error(np.maximum(of_images, least))]
    if min(k) > 1:
        parts = [variance / trainings for variance, trainings in zip(by_seed, k, strict=True)]
        squares = [part**2 / (trainings - 1) for part, trainings in zip(parts, k, strict=True)]
        errors.append(_standard_error(sum(parts) + images, sum(squares)))
    if k[0] != k[1]:
        freedom = sum(k) - 2
        pooled = ((k[0] - 1) * by_seed[0] + (k[1] - 1) * by_seed[1]) / freedom
        part = pooled / k[0] + pooled / k[1]
        errors.append(_standard_error(part + images, part**2 / freedom))

    difference = by_image.mean(-1)
    p_values = [
        2 * t.sf(np.abs(difference) / error.value, error.degrees_of_freedom) for error in errors
    ]
    return Comparison(
        trainings=k,
        images=n,
        difference=difference,
        standard_errors=errors,
        p=np.max(p_values, axis=0),
        seed_variances=(
            np.maximum(by_seed[0] - residuals[0] / n, 0),
            np.maximum(by_seed[1] - residuals[1] / n, 0),
        ),
        image_variance=images * n,
        residual_variances=(residuals[0], residuals[1]),
    )


def compare_networks(reference: np.ndarray, other: np.ndarray) -> Comparison:
    """Compare two trained networks by their scores on the same images.

    Says nothing about other trainings of the same models (Dietterich 1998). The interval counts
    `PSEUDO_IMAGES` too. p is that of McNemar's exact test: the sign test, for other scores.

    Args:
        reference: `(n,)` scores of the reference.
        other: `(n,)` scores of the other network.

    Reference: Agresti & Min, "Simple improved confidence intervals for comparing matched
        proportions" (2005), https://doi.org/10.1002/sim.1781
    """
    gain = np.subtract(other, reference, dtype=float)
    n = gain.shape[-1]
    pseudo = np.broadcast_to(PSEUDO_IMAGES, (*gain.shape[:-1], len(PSEUDO_IMAGES)))
    variance = _variance(np.concatenate([gain, pseudo], -1), -1) / (n + len(PSEUDO_IMAGES))
    wins, losses = (gain > 0).sum(-1), (gain < 0).sum(-1)
    zero = np.zeros_like(variance)
    return Comparison(
        trainings=(1, 1),
        images=n,
        difference=gain.mean(-1),
        standard_errors=[_standard_error(variance)],
        p=np.minimum(2 * binom.cdf(np.minimum(wins, losses), wins + losses, 0.5), 1),
        seed_variances=(zero, zero),
        image_variance=variance * n,
        residual_variances=(zero, zero),
    )


def compare_all(
    tables: Mapping[str, np.ndarray],
    references: Mapping[str, str],
    margin: float,
    split: str = "test",
) -> dict[str, dict[str, Any]]:
    """Compare several models, each with its reference, and adjust p for their number.

    Args:
        tables: `(k, n)` of each model, 1 for a correct prediction and 0 for a wrong one.
        references: Name of each model to compare, and name of its reference.
        margin: As for `verdict`.
        split: Split of the images, for the sentence.

    Returns:
        Of each model the difference, its interval, p, verdict, sentence, sources of the spread,
        and what would be enough to detect a difference of `margin`, as numbers and text that JSON
        can hold.
    """
    comparisons = {
        name: compare_models(tables[reference], tables[name])
        for name, reference in references.items()
    }
    adjusted = holm([comparison.p for comparison in comparisons.values()])
    results = {}
    for (name, comparison), p_holm in zip(comparisons.items(), adjusted, strict=True):
        low, high = comparison.accuracy_interval()
        results[name] = {
            "difference": float(comparison.difference),
            "difference_low": low,
            "difference_high": high,
            "p": float(comparison.p),
            "p_holm": float(p_holm),
            "verdict": verdict(comparison, p_holm, margin),
            "sentence": sentence(comparison, p_holm, margin, references[name], split),
            "spread": {source: float(value) for source, value in comparison.spread().items()},
            "trainings_needed": trainings_needed(comparison, margin),
            "images_needed": images_needed(comparison, margin),
        }
    return results


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Return p-values adjusted for their number.

    Reference: Holm, "A simple sequentially rejective multiple test procedure" (1979).
    """
    p = np.asarray(p_values, float)
    order = np.argsort(p)
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    return np.minimum(adjusted, 1)


def verdict(comparison: Comparison, p: float, margin: float) -> str:
    """Return `better`, `worse`, `as good as` or `cannot tell`.

    Args:
        comparison: Of accuracies.
        p: Of the comparison, adjusted by `holm` if there are several. It decides better or worse.
        margin: Difference that does not matter. Models are as good as each other if the 90 %
            interval lies within it: two one-sided tests at 5 % (Schuirmann 1987).
    """
    if p <= ALPHA:
        return "better" if comparison.difference > 0 else "worse"
    low, high = comparison.interval(EQUIVALENCE_LEVEL)
    return "as good as" if -margin < low and high < margin else "cannot tell"


def sentence(
    comparison: Comparison, p: float, margin: float, reference: str, split: str = "test"
) -> str:
    """Return the verdict with its numbers, to be read after the name of the model.

    Args:
        comparison: Of accuracies.
        p: As for `verdict`.
        margin: As for `verdict`.
        reference: Name of the reference.
        split: Split of the images.
    """
    word = verdict(comparison, p, margin)
    low, high = (100 * end for end in comparison.accuracy_interval())
    trained = _trainings(comparison.trainings)
    if word == "cannot tell":
        result = f"between {signed(low)} and {signed(high)} points"
        if low > 0 or high < 0:
            adjusted = ", adjusted for several comparisons" if p > comparison.p else ""
            result += f", but p is {p:.2g}{adjusted}"
        if len(set(comparison.trainings)) > 1:
            result += f", {trained}"
        return f"cannot tell: {result}; {_remedy(comparison, margin, split)}"
    if word == "as good as":
        return f"as good as {reference}, within {points(margin)}, {trained}"
    if word == "worse":
        low, high = -high, -low
    difference = decimal(100 * abs(comparison.difference))
    interval = f"[{decimal(low)}, {decimal(high)}]"
    return f"{word} than {reference} by {difference} points {interval}, {trained}"


def trainings_needed(comparison: Comparison, margin: float) -> int | None:
    """Return how many more trainings of each model would detect a difference of `margin`.

    That is, with a power of 80 %, two equally good models would be found as good as each other. A
    difference of `margin` is then found with about the same power.

    Returns:
        The smallest of `MORE_TRAININGS`. None if none is enough, and if it is unknown because both
        models were trained once.
    """
    if max(comparison.trainings) == 1:
        return None
    return _first(MORE_TRAININGS, _settles(comparison, MORE_TRAININGS, 0, margin))


def images_needed(comparison: Comparison, margin: float) -> int | None:
    """Return how many more test images would detect a difference of `margin`.

    Returns:
        The smallest of `MORE_IMAGES`; None as for `trainings_needed`.
    """
    if max(comparison.trainings) == 1:
        return None
    return _first(MORE_IMAGES, _settles(comparison, 0, MORE_IMAGES, margin))


def mean_interval(correct: np.ndarray) -> Mean:
    """Return the mean accuracy over trainings with its 95 % interval, over seeds and images.

    Wilson's interval with the effective number of images: that which would give the variance of
    the mean if each image were classified once, independently. For one training it is Wilson's
    interval itself, over images alone.

    Args:
        correct: `(k, n)` 1 for a correct prediction, 0 for a wrong one.

    Reference: Korn & Graubard, "Confidence intervals for proportions with small expected number of
        positive counts estimated from survey data" (1998)
    """
    table = np.asarray(correct, float)
    k, n = table.shape[-2:]
    by_seed = _seed_variance(table) / k
    of_images = table.mean(-2).var(-1) / n
    images = np.maximum(of_images - _residual_variance(table) / k / n, 0)
    errors = (
        _standard_error(of_images),
        _standard_error(by_seed + images, by_seed**2 / max(k - 1, 1)),
    )
    mean = table.mean((-2, -1))
    spread = mean * (1 - mean)
    width = _half_width(errors, LEVEL)
    with np.errstate(invalid="ignore"):
        # squared quantile divided by the effective number of images, spread / variance
        shift = np.where(
            spread * width > 0, width**2 / spread, t.ppf((1 + LEVEL) / 2, np.inf) ** 2 / n
        )
    centre = (mean + shift / 2) / (1 + shift)
    half = np.sqrt(shift * spread + shift**2 / 4) / (1 + shift)
    deviation = table.mean(-1).std(-1, ddof=1) if k > 1 else None
    return Mean(mean, centre - half, centre + half, deviation)


def _variance(values: np.ndarray, axis: int) -> np.ndarray:
    """Return the unbiased variance; 0 for one value, which has none."""
    return values.var(axis, ddof=min(1, values.shape[axis] - 1))


def _seed_variance(table: np.ndarray) -> np.ndarray:
    """Return the variance over seeds of the mean score."""
    return _variance(table.mean(-1), -1)


def _residual_variance(table: np.ndarray) -> np.ndarray:
    """Return the residual mean square of a table in two-way analysis of variance.

    The variance over seeds on an image, averaged over images, is made up of that of the mean score
    and of the residual.
    """
    n = table.shape[-1]
    within_image = _variance(table, -2).mean(-1)
    return np.maximum(within_image - _seed_variance(table), 0) * n / max(n - 1, 1)


def _sum_of_ratios(variances: Sequence[Any], counts: Sequence[Any]) -> Any:
    return sum(variance / count for variance, count in zip(variances, counts, strict=True))


def _standard_error(variance: Any, squares: Any = 0.0) -> StandardError:
    """Return the standard error with degrees of freedom by Satterthwaite.

    Args:
        variance: Its square.
        squares: Sum over the estimated parts of the variance of their squares, each divided by its
            degrees of freedom.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        degrees = np.where(np.greater(squares, 0), np.square(variance) / squares, np.inf)[()]
    return StandardError(np.sqrt(variance), degrees)


def _half_width(errors: Sequence[StandardError], level: float) -> Any:
    """Return half the width of the widest interval that one of the standard errors gives."""
    quantile = (1 + level) / 2
    return np.max([t.ppf(quantile, error.degrees_of_freedom) * error.value for error in errors], 0)


def _settles(comparison: Comparison, trainings: Any, images: Any, margin: float) -> Any:
    """Return whether so many more trainings of each model and more images would be enough."""
    n = comparison.images + images
    parts, squares = [], []
    for seeds, residual, trained in zip(
        comparison.seed_variances,
        comparison.residual_variances,
        comparison.trainings,
        strict=True,
    ):
        k = trained + trainings
        parts.append((seeds + residual / n) / k)
        squares.append(parts[-1] ** 2 / np.maximum(k - 1, 1))
    error, degrees = _standard_error(sum(parts) + comparison.image_variance / n, sum(squares))
    # of two equally good models, both one-sided tests have to succeed
    quantiles = t.ppf(1 - ALPHA, degrees) + t.ppf((1 + POWER) / 2, degrees)
    return quantiles * error <= margin


def _first(numbers: np.ndarray, settled: np.ndarray) -> int | None:
    return int(numbers[settled.argmax()]) if settled.any() else None


def _remedy(comparison: Comparison, margin: float, split: str) -> str:
    """Return what would tell the models apart, or show that they are as good as each other."""
    if max(comparison.trainings) == 1:
        return _trainings(comparison.trainings)
    trainings, images = trainings_needed(comparison, margin), images_needed(comparison, margin)
    detect = f"would be enough to detect a difference of {points(margin)}"
    more_trainings = f"{counted(trainings, 'more training')} each" if trainings else ""
    more_images = counted(images, f"more {split} image") if images else ""
    if trainings and images:
        return f"about {more_trainings} (or {more_images}) {detect}"
    if trainings:
        return f"about {more_trainings} {detect}"
    if images:
        return (
            f"about {more_images} {detect}; no practical number of trainings would, because there "
            f"are too few {split} images"
        )
    if _settles(comparison, MORE_TRAININGS[-1], MORE_IMAGES[-1], margin):
        return f"only more trainings and more {split} images together {detect}"
    return f"no practical number of trainings and {split} images {detect}"


def _trainings(trainings: tuple[int, int]) -> str:
    first, second = trainings
    if first != second:
        # then the interval may be too narrow where the model trained less often varies more
        few = min(trainings) < 3
        assumed = ", assuming the same spread over seeds for both" if few else ""
        return f"{counted(second, 'training')} against {first}{assumed}"
    if first == 1:
        return "one training each: about these two trained networks only"
    return f"{first} trainings each"


def points(share: float) -> str:
    """Return a share as percentage points: 1 point, 0.5 points."""
    return f"{100 * share:g} point{'s' * (round(100 * share, 9) != 1)}"
