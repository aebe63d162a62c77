"""Near-duplicates: find images that show the same picture.

One may be re-encoded, resized, slightly cropped, mirrored, or of another brightness or contrast. As
in pHash, an image is described by the discrete cosine transform of a small gray thumbnail. A k-d
tree over the lowest frequencies finds candidates, because comparing all pairs would take too long.
All frequencies decide, by their correlation: each is first standardized over the data set, so that
what all images have in common does not count.

Reference: Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions" (2010),
    https://www.phash.org/docs/pubs/thesis_zauner.pdf
"""

from functools import cache
from typing import NamedTuple

import numpy as np
from scipy.fft import dct
from scipy.spatial import KDTree
from scipy.special import ndtri

from pipeline.core.cpu import available_cores

SIDE = 16  # pixels per side of the thumbnails, and frequencies per axis
# Candidates are among the nearest neighbors in the coefficients (i, j) with i + j <= LOWEST.
LOWEST, NEIGHBORS, RADIUS = 3, 4, 0.3
# Cropped copies are looked for among candidates that agree this much in coefficients with
# i + j <= MIDDLE.
MIDDLE, MIDDLE_CORRELATION = 8, 0.5
CROPS = (0.95, 0.9)  # share of each side that slightly cropped copies keep
# Lowest correlation of near-duplicates. Random images of CIFAR-10 have 0 ± 0.07. 99 % of 500 copies
# that were re-encoded (JPEG, quality 30), resized to half the size or brightened by 30 % have 0.86.
MIN_CORRELATION = 0.6
CHANCE = 0.01  # expected number of unrelated pairs of a class above the threshold
MIN_CONTRAST = 0.02  # of the median contrast; images with less have no detail to compare
SAMPLE = 20_000  # images whose statistics stand for all
CHUNK = 4096  # images or pairs at a time


class NearDuplicates(NamedTuple):
    pairs: np.ndarray
    """`(m, 2)` int64, numbers of two images, the smaller first; sorted"""
    threshold: float
    """Lowest correlation of a pair, in (0, 1)"""


@cache
def _cosines(side: int) -> np.ndarray:
    """Return the orthonormal discrete cosine transform `(side, side)` of a signal."""
    return dct(np.eye(side), axis=0, norm="ortho")


@cache
def _reduction(length: int) -> np.ndarray:
    """Return the transform of the means of equal parts of a signal, `(side, length)`."""
    edges = np.linspace(0, length, min(SIDE, length) + 1)
    low, high = edges[:-1, None], edges[1:, None]
    pixels = np.arange(length)
    overlaps = np.clip(np.minimum(high, pixels + 1) - np.maximum(low, pixels), 0, None)
    return (_cosines(len(low)) @ (overlaps / (high - low))).astype(np.float32)


def spectra(images: np.ndarray) -> np.ndarray:
    """Return the discrete cosine transform of the thumbnail of each image, with a mean of 0.

    Args:
        images: `(n, h, w, c)`.

    Returns:
        `(n, i, j)` float32, by frequency of rows and columns; i and j are at most SIDE.
    """
    gray = images.mean(axis=-1)
    coefficients = _reduction(gray.shape[1]) @ gray @ _reduction(gray.shape[2]).T
    coefficients[:, 0, 0] = 0
    return coefficients


def _crop(side: int, start: float, share: float) -> np.ndarray:
    """Return the map `(side, side)` from the frequencies of a signal to those of a part of it.

    Args:
        side: Number of frequencies.
        start: Of the part, as a share of the signal.
        share: Length of the part, as a share of the signal.
    """
    frequencies = np.arange(side)
    positions = start + share * (frequencies[:, None] + 0.5) / side
    amplitudes = np.sqrt(np.where(frequencies, 2, 1) / side)
    return (_cosines(side) @ (amplitudes * np.cos(np.pi * positions * frequencies))).astype("f4")


def _crops(height: int, width: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return maps of rows and of columns: for each share in CROPS, those of nine positions."""
    return [
        (_crop(height, y * (1 - share), share), _crop(width, x * (1 - share), share))
        for share in CROPS
        for y in (0, 0.5, 1)
        for x in (0, 0.5, 1)
    ]


def _unit(spectra: np.ndarray) -> np.ndarray:
    """Divide spectra `(n, i, j)` by their contrast; return float32."""
    values = spectra.astype(np.float32)
    return values / np.maximum(np.linalg.norm(values, axis=(1, 2), keepdims=True), 1e-9)


class _Standardization:
    """Gives all frequencies the same weight, and removes what the images have in common."""

    def __init__(self, spectra: np.ndarray):
        """Measure the mean and the standard deviation of each coefficient `(n, i, j)`."""
        unit = _unit(spectra)
        self.mean, self.deviation = unit.mean(axis=0), unit.std(axis=0)
        self.order = np.add.outer(*(np.arange(side) for side in unit.shape[1:]))
        # the margin of digits never changes
        self.varies = (self.deviation > 0.01 * self.deviation.max()) & (self.order > 0)

    def __call__(self, spectra: np.ndarray, max_order: int = 2 * SIDE) -> np.ndarray:
        """Return the coefficients with i + j <= max_order as vectors `(n, d)` of length 1."""
        used = self.varies & (self.order <= max_order)
        values = (_unit(spectra)[:, used] - self.mean[used]) / self.deviation[used]
        return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-9)

    def correlations(self, a: np.ndarray, b: np.ndarray, max_order: int = 2 * SIDE) -> np.ndarray:
        """Return the correlation of each spectrum in `a` with that in `b`, `(n,)`."""
        return np.einsum("nd,nd->n", self(a, max_order), self(b, max_order))


def _mirrored(spectra: np.ndarray) -> np.ndarray:
    """Return the spectra of the images mirrored horizontally."""
    return spectra * np.where(np.arange(spectra.shape[2]) % 2, -1, 1).astype(spectra.dtype)


def _threshold(spectra: np.ndarray, labels: np.ndarray, standardize: _Standardization) -> float:
    """Return the lowest correlation that different images do not reach by chance.

    Images of a class are alike, those of digits or X-rays more than photographs. So random pairs of
    images of one class are sampled. Their correlations, after Fisher's transformation, have a
    median and a spread, and the threshold is where a normal distribution leaves CHANCE of all
    pairs. Median and spread are robust, as the data set may be full of copies.
    """
    shuffled = np.random.default_rng(0).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    pairs = np.stack([by_class[:-1], by_class[1:]])
    pairs = pairs[:, labels[pairs[0]] == labels[pairs[1]]]
    if not pairs.size:
        return MIN_CORRELATION
    pairs = pairs[:, :: -(-pairs.shape[1] // SAMPLE)]
    fisher = np.arctanh(0.9999 * standardize.correlations(spectra[pairs[0]], spectra[pairs[1]]))
    center = np.median(fisher)
    spread = np.median(np.abs(fisher - center)) / ndtri(0.75)
    quantile = -ndtri(2 * CHANCE / len(labels) ** 2)
    return max(MIN_CORRELATION, float(np.tanh(center + quantile * spread)))


def _candidates(vectors: np.ndarray, tree: KDTree, start: int) -> np.ndarray:
    """Return pairs `(m, 2)`: the number of a vector, and that of a near neighbor in the tree.

    Args:
        vectors: `(n, d)`.
        tree: Of the vectors of all images.
        start: Number of the first vector.
    """
    _, neighbors = tree.query(
        vectors, k=NEIGHBORS, distance_upper_bound=RADIUS, workers=len(available_cores())
    )
    numbers = np.broadcast_to(start + np.arange(len(vectors))[:, None], neighbors.shape)
    valid = (neighbors < tree.n) & (neighbors != numbers)  # the nearest may be the image itself
    return np.stack([numbers[valid], neighbors[valid]], axis=1)


def _are_copies(
    a: np.ndarray, b: np.ndarray, standardize: _Standardization, threshold: float
) -> np.ndarray:
    """Return `(n,)` bool: whether each image in `b` is a copy of that in `a`, or a part of it.

    Args:
        a: `(n, i, j)`, spectra.
        b: As `a`.
        standardize: For the data set.
        threshold: Lowest correlation of copies.
    """
    copies = standardize.correlations(a, b) >= threshold
    alike = standardize.correlations(a, b, MIDDLE) >= MIDDLE_CORRELATION
    for rows, columns in _crops(*a.shape[1:]):
        open_pairs = np.flatnonzero(alike & ~copies)
        part = rows @ a[open_pairs].astype(np.float32) @ columns.T
        part[:, 0, 0] = 0
        copies[open_pairs] = standardize.correlations(part, b[open_pairs]) >= threshold
    return copies


def find(spectra: np.ndarray, labels: np.ndarray) -> NearDuplicates:
    """Find the pairs of images that show the same picture.

    Images almost without contrast are not compared.

    Args:
        spectra: `(n, i, j)` of n images, float32 or float16. Exact duplicates should be left out,
            since each image is compared with its NEIGHBORS nearest only.
        labels: `(n,)` int64. Images of a class are expected to be alike.
    """
    contrast = np.concatenate([
        np.linalg.norm(spectra[start : start + CHUNK].astype(np.float32), axis=(1, 2))
        for start in range(0, len(spectra), CHUNK)
    ])  # fmt: skip
    numbers = np.flatnonzero(contrast > MIN_CONTRAST * np.median(contrast))
    if len(numbers) < 2:
        return NearDuplicates(np.empty((0, 2), np.int64), MIN_CORRELATION)
    spectra, labels = spectra[numbers], labels[numbers]
    standardize = _Standardization(spectra[:: -(-len(spectra) // SAMPLE)])
    threshold = _threshold(spectra, labels, standardize)
    chunks = [slice(start, start + CHUNK) for start in range(0, len(spectra), CHUNK)]
    tree = KDTree(np.concatenate([standardize(spectra[chunk], LOWEST) for chunk in chunks]))
    pairs: list[np.ndarray] = []
    for change in (lambda spectra: spectra, _mirrored):
        for chunk in chunks:
            vectors = standardize(change(spectra[chunk]), LOWEST)
            candidates = _candidates(vectors, tree, chunk.start)
            a, b = change(spectra[candidates[:, 0]]), spectra[candidates[:, 1]]
            copies = _are_copies(a, b, standardize, threshold)
            pairs.append(candidates[copies])
    found = np.unique(np.sort(numbers[np.concatenate(pairs)], axis=1), axis=0)
    return NearDuplicates(found, threshold)
