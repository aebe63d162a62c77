"""Splitting: divide rows at random, stratified by class."""

import numpy as np

from pipeline.core.errors import PipelineError


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
