"""Splitting: divide and sample rows at random, stratified by class."""

import numpy as np

from pipeline.core.errors import PipelineError
from pipeline.core.text import counted


def stratified_split(
    labels: np.ndarray, classes: list[str], share: float, seed: int, where: str, remedy: str
) -> tuple[np.ndarray, np.ndarray]:
    """Divide rows at random into two parts with the same class proportions, up to rounding.

    Args:
        labels: `(n,)` int64 in [0, k).
        classes: k names.
        share: Share of the rows in the second part, in (0, 1).
        seed: In [0, 2**32).
        where: Start of the error message.
        remedy: End of the error message.

    Returns:
        Sorted row numbers of the first and the second part, int64.

    Raises:
        PipelineError: A class has a single image, or a part has fewer images than there are
            classes.
    """
    from sklearn.model_selection import train_test_split  # imported here: the import takes time

    rows = np.arange(len(labels))
    try:
        first, second = train_test_split(rows, test_size=share, stratify=labels, random_state=seed)
    except ValueError as error:
        present, counts = np.unique(labels, return_counts=True)
        raise PipelineError(
            f"{where}: too few images of {classes[present[counts.argmin()]]} ({counts.min()} of "
            f"{len(labels)}) to hold out {100 * share:g} %. {remedy}"
        ) from error
    return np.sort(first), np.sort(second)


def stratified_sample(
    rows: np.ndarray, labels: np.ndarray, size: int | float | None, seed: int
) -> np.ndarray:
    """Sample rows with the same class proportions, up to rounding.

    With one seed, a smaller sample is part of every larger one, so that a learning curve over the
    number of images does not vary with the choice of the images.

    Args:
        rows: `(m,)` int64, row numbers of the training images.
        labels: `(n,)` int64, of all images.
        size: The number of rows, an int of 1 or more; their share, a float in (0, 1]; or None for
            all rows.
        seed: In [0, 2**32).

    Returns:
        Sorted row numbers, int64.

    Raises:
        PipelineError: There are fewer rows, or the sample would not include every class.
    """
    if size is None:
        return rows
    count = size if isinstance(size, int) else round(size * len(rows))
    shuffled = np.random.default_rng(seed).permutation(rows)
    shuffled_labels = labels[shuffled]
    # Of a class with k rows, these are at 0.5/k, 1.5/k, …, so that every prefix is stratified.
    position = np.empty(len(rows))
    classes = np.unique(shuffled_labels)
    for label in classes:
        members = shuffled_labels == label
        position[members] = (np.arange(members.sum()) + 0.5) / members.sum()
    sample = shuffled[np.argsort(position, kind="stable")[:count]]
    if count > len(rows) or len(np.unique(labels[sample])) < len(classes):
        raise PipelineError(
            f"train.train_size must be at most all {len(rows)} training images, and enough to "
            f"include each of {len(classes)} classes. Got {size} ({counted(count, 'image')})"
        )
    return np.sort(sample)
