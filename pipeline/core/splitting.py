"""Splitting: divide and sample rows at random, stratified by class, without dividing a group."""

import re
import warnings
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from pipeline.core.errors import PipelineError, first_few
from pipeline.core.text import counted

MAX_FOLDS = 10  # into which rows are divided to hold out whole groups


class Grouping(NamedTuple):
    """Which images belong together: those of a patient, a video or a burst."""

    column: str | None
    """Column of metadata.csv whose values are the groups"""
    pattern: str | None
    """Regular expression whose group in parentheses, found in an id, is the group"""

    def groups(
        self, where: str, ids: Sequence[str], metadata: Sequence[Mapping[Any, str]]
    ) -> np.ndarray | None:
        """Return the group of each image, `(n,)` str; None if images are not grouped.

        Args:
            where: Start of the error message.
            ids: Of the images.
            metadata: Of each image, the values by column; or empty.

        Raises:
            PipelineError: There is no such column, an image has no group, or all have the same.
        """
        if self.column is not None:
            columns = list(metadata[0]) if metadata else []
            if self.column not in columns:
                raise PipelineError(
                    f"{where}: split.group must be a column of metadata.csv. Got {self.column}; "
                    f"columns: {first_few(columns) or 'none'}. Change it, or add the column"
                )
            groups = [values[self.column] for values in metadata]
            remedy = f"Fill in the column {self.column} of metadata.csv"
        elif self.pattern is not None:
            matches = [re.search(self.pattern, id) for id in ids]
            groups = [(match[1] or "") if match else "" for match in matches]
            remedy = f"Change split.group_pattern, {self.pattern}"
        else:
            return None
        if missing := [id for id, group in zip(ids, groups, strict=True) if not group]:
            raise PipelineError(
                f"{where}: every image must have a group. Got {counted(len(missing), 'image')} "
                f"without: {first_few(missing)}. {remedy}"
            )
        if len(set(groups)) == 1:
            raise PipelineError(
                f"{where}: images must be of 2 or more groups. Got only {groups[0]}. {remedy}"
            )
        return np.array(groups)


def stratified_split(
    labels: np.ndarray,
    classes: list[str],
    share: float,
    seed: int,
    where: str,
    remedy: str,
    groups: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Divide rows at random into two parts with the same class proportions, up to rounding.

    Args:
        labels: `(n,)` int64 in [0, k).
        classes: k names.
        share: Share of the rows in the second part, in (0, 1). With groups, the share and the
            class proportions are only as near as whole groups allow.
        seed: In [0, 2**32).
        where: Start of the error message.
        remedy: End of the error message.
        groups: `(n,)`. Rows of a group stay in one part.

    Returns:
        Sorted row numbers of the first and the second part, int64.

    Raises:
        PipelineError: A class has a single image or is in a single group, or a part has fewer
            images than there are classes.
    """
    from sklearn.model_selection import train_test_split  # imported here: the import takes time

    if groups is not None:
        limit = max(2, min(MAX_FOLDS, len(np.unique(groups))))
        possible = Fraction(min(max(share, 1 / limit), 1 - 1 / limit)).limit_denominator(limit)
        folds = stratified_folds(labels, classes, possible.denominator, seed, where, remedy, groups)
        second = np.sort(np.concatenate([fold for _, fold in folds[: possible.numerator]]))
        first = np.setdiff1d(np.arange(len(labels)), second)
        _check_first(labels, classes, first, where, remedy)
        return first, second
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


def stratified_folds(
    labels: np.ndarray,
    classes: list[str],
    num_folds: int,
    seed: int,
    where: str,
    remedy: str,
    groups: np.ndarray | None = None,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Divide rows at random into folds with the same class proportions, as near as possible.

    Args:
        labels: `(n,)` int64 in [0, k).
        classes: k names.
        num_folds: At least 2.
        seed: In [0, 2**32).
        where: Start of the error message.
        remedy: End of the error message.
        groups: `(n,)`. Rows of a group stay in one fold.

    Returns:
        Of each fold, the sorted row numbers of all others, and its own, int64.

    Raises:
        PipelineError: There are too few images or groups of a class, or too few groups.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    present, counts = np.unique(labels, return_counts=True)
    if groups is not None:
        _check_groups(labels, classes, num_folds, groups, where, remedy)
    elif counts.max() < num_folds or counts.min() < 2:
        raise PipelineError(
            f"{where}: too few images of {classes[present[counts.argmin()]]} ({counts.min()} of "
            f"{len(labels)}) for {num_folds} folds. {remedy}"
        )
    kind = StratifiedKFold if groups is None else StratifiedGroupKFold
    with warnings.catch_warnings():
        # "The least populated class has only …": then not every fold has images of this class
        warnings.simplefilter("ignore", UserWarning)
        folds = list(kind(num_folds, shuffle=True, random_state=seed).split(labels, labels, groups))
    for first, second in folds:
        _check_first(labels, classes, first, where, remedy)
        if not len(second):
            raise PipelineError(
                f"{where}: groups of very different sizes cannot be divided into {num_folds} "
                f"folds. {remedy}"
            )
    return folds


def _check_groups(
    labels: np.ndarray,
    classes: list[str],
    num_folds: int,
    groups: np.ndarray,
    where: str,
    remedy: str,
) -> None:
    """Check that there is a group for each fold, and that no class is in one group only."""
    if (count := len(np.unique(groups))) < num_folds:
        raise PipelineError(f"{where}: {count} groups are too few for {num_folds} folds. {remedy}")
    for label in np.unique(labels):
        names = np.unique(groups[labels == label])
        if len(names) == 1:
            raise PipelineError(
                f"{where}: images of a class must be of 2 or more groups. Got only {names[0]} of "
                f"{classes[label]}. {remedy}"
            )
    if np.unique(labels, return_counts=True)[1].max() < num_folds:
        raise PipelineError(f"{where}: too few images for {num_folds} folds. {remedy}")


def _check_first(
    labels: np.ndarray, classes: list[str], first: np.ndarray, where: str, remedy: str
) -> None:
    """Check that the rows that are not held out include every class."""
    if missing := np.setdiff1d(labels, labels[first]).tolist():
        raise PipelineError(
            f"{where}: too few images or groups of {first_few([classes[m] for m in missing])}: all "
            f"of them would be held out. {remedy}"
        )


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
