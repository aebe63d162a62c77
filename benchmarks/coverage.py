"""Coverage: how often the 95 % interval of a comparison holds the true difference.

Simulates trainings of two equally accurate models, compares them and counts. It takes minutes:

    python -m benchmarks.coverage

Writes  benchmarks/results/coverage.csv    every cell
Prints  the tables of docs/comparing.md

Whether a training classifies an image correctly follows a probit model: a sum of normal effects of
the seed, of the image, of the image for this model, and of the training on this image.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import brentq
from scipy.special import ndtr, ndtri

from pipeline.stats.crossed import compare_models, mean_interval

SIMULATIONS = 4000
# Variances of the effects, before that of the seed takes its part of each.
IMAGE, IMAGE_AND_MODEL, RESIDUAL = 0.7, 0.1, 0.2
CHUNK = 300_000  # predictions at once: what caches hold
RESULT = Path(__file__).parent / "results/coverage.csv"
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(80)


@dataclass(frozen=True)
class Cell:
    """One setting of the simulation; pairs are of the reference, then of the other model."""

    accuracy: float
    images: int
    trainings: tuple[int, int]
    deviations: tuple[float, float]  # of a training's expected accuracy, over seeds
    heavy_tails: bool = False  # seeds with the t distribution of 3 degrees of freedom
    correlation: float = 0.0  # of the effects of the same seed in both models


@dataclass(frozen=True)
class Coverage:
    """Shares of the simulations, and the median half width of the difference's interval."""

    difference: float
    mean: float  # that the interval of the mean accuracy of the reference holds the truth
    half_width: float


def simulate(cell: Cell, seed: int = 0, simulations: int = SIMULATIONS) -> Coverage:
    """Return how often intervals hold the true value.

    Heavy tails move the mean accuracy, equally for both models: then `mean` is not meaningful.
    """
    rng = np.random.default_rng(seed)
    size = max(1, CHUNK // (cell.images * sum(cell.trainings)))
    chunks = [
        _simulate(cell, rng, min(size, simulations - start))
        for start in range(0, simulations, size)
    ]
    difference, mean, half = (np.concatenate(column) for column in zip(*chunks, strict=True))
    return Coverage(difference.mean(), mean.mean(), np.median(half))


def _simulate(cell: Cell, rng: np.random.Generator, count: int) -> tuple[np.ndarray, ...]:
    scores = _scores(cell, rng, count)
    comparison = compare_models(*scores)
    low, high = comparison.interval()
    mean = mean_interval(scores[0])
    covers_mean = (mean.low <= cell.accuracy) & (cell.accuracy <= mean.high)
    return (low <= 0) & (high >= 0), covers_mean, (high - low) / 2


def _scores(cell: Cell, rng: np.random.Generator, count: int) -> list[np.ndarray]:
    """Return `(count, k, n)` whether each prediction is correct, for each model."""

    def normal(variance: float, *shape: int) -> np.ndarray:
        return np.sqrt(np.float32(variance)) * rng.standard_normal(
            (count, *shape), dtype=np.float32
        )

    seeds = [_seed_effects(cell, rng, (count, k, 1)) for k in cell.trainings]
    if cell.correlation:
        shared = min(cell.trainings)
        own = np.sqrt(1 - cell.correlation**2) * seeds[1][:, :shared]
        seeds[1][:, :shared] = cell.correlation * seeds[0][:, :shared] + own
    images = normal(IMAGE, 1, cell.images)
    tables = []
    for k, effects, deviation in zip(cell.trainings, seeds, cell.deviations, strict=True):
        scale = _latent_deviation(cell.accuracy, deviation)
        latent = normal(RESIDUAL, k, cell.images)
        latent += images + normal(IMAGE_AND_MODEL, 1, cell.images)
        latent *= np.float32(np.sqrt(1 - scale**2))
        latent += (scale * effects).astype(np.float32)
        tables.append(latent > -ndtri(cell.accuracy))
    return tables


def _seed_effects(cell: Cell, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    if cell.heavy_tails:
        return rng.standard_t(3, shape) / np.sqrt(3)  # variance 1
    return rng.standard_normal(shape)


def _latent_deviation(accuracy: float, deviation: float) -> float:
    """Return the standard deviation of the seed's effect that gives this one of accuracy."""

    def excess(scale: float) -> float:
        accuracies = ndtr((ndtri(accuracy) + scale * NODES) / np.sqrt(1 - scale**2))
        weights = WEIGHTS / WEIGHTS.sum()
        mean = weights @ accuracies
        return np.sqrt(weights @ (accuracies - mean) ** 2) - deviation

    return brentq(excess, 0, 0.5) if deviation else 0.0


ACCURACIES = (0.8, 0.97)
IMAGES = (360, 2000)
POINT = 0.01
# What seeds are like: title, and what it sets in each of its cells.
SEEDS: dict[str, list[dict]] = {
    "spread 0, 0.4 or 1 point": [{"deviations": (d * POINT, d * POINT)} for d in (0, 0.4, 1)],
    "1 point, heavy tails": [{"deviations": (POINT, POINT), "heavy_tails": True}],
    "1 point, correlated by 0.5": [{"deviations": (POINT, POINT), "correlation": 0.5}],
    "1 against 0.4 points": [{"deviations": (POINT, 0.4 * POINT)}],
    "0.4 against 1 point": [{"deviations": (0.4 * POINT, POINT)}],
    "1 against 0 points": [{"deviations": (POINT, 0)}],
}
EQUAL = ((2, 2), (3, 3), (5, 5), (10, 10))
UNEQUAL = ((2, 3), (2, 10), (3, 5), (3, 10), (1, 3), (1, 10))


def cells(seeds: str, trainings: tuple[int, int]) -> list[Cell]:
    """Return the cells of one kind of seeds, at every accuracy and number of images."""
    return [
        Cell(accuracy, images, trainings, **setting)
        for accuracy in ACCURACIES
        for images in IMAGES
        for setting in SEEDS[seeds]
    ]


def table(frame: pd.DataFrame, rows: str, value: str, trainings: Sequence[tuple[int, int]]) -> str:
    """Return a table in Markdown: the smallest and largest value of each row, in percent."""
    lines = [f"| {rows} | {' | '.join(f'{k} and {m}' for k, m in trainings)} |"]
    lines.append(f"| --- |{' ---: |' * len(trainings)}")
    for name, group in frame.groupby(rows, sort=False):
        columns = [group[group.trainings == pair][value] for pair in trainings]
        lines.append(f"| {name} | {' | '.join(map(_range, columns))} |")
    return "\n".join(lines)


def _range(values: Iterable[float]) -> str:
    low, high = (f"{100 * end:.1f}" for end in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def main() -> None:
    rows = []
    for trainings in (*EQUAL, *UNEQUAL):
        for seeds in SEEDS:
            for cell in cells(seeds, trainings):
                found = simulate(cell)
                images = f"{cell.accuracy:.0%} of {cell.images:,} images"
                rows.append({"seeds": seeds, "test": images, **vars(cell), **vars(found)})
    frame = pd.DataFrame(rows)
    frame.to_csv(RESULT, index=False, float_format="%.5g", lineterminator="\n")
    usual = frame[frame.seeds == next(iter(SEEDS))]
    print(table(frame, "seeds", "difference", EQUAL))
    print(table(frame, "seeds", "difference", UNEQUAL))
    print(table(usual, "seeds", "mean", EQUAL))
    print(table(usual[usual.deviations == (0.4 * POINT,) * 2], "test", "half_width", EQUAL))


if __name__ == "__main__":
    main()
