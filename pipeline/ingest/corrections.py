"""Corrections: images that a person excludes, and labels that a person corrects, by id."""

import csv
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.core.errors import PipelineError, first_few
from pipeline.core.files import require_file
from pipeline.ingest import csv_file


class Corrections(NamedTuple):
    excluded: frozenset[str]
    """Ids of images to leave out"""
    labels: Mapping[str, int]
    """Correct label of images, by id"""

    def correct(self, ids: Iterable[str], labels: np.ndarray) -> np.ndarray:
        """Return the labels `(n,)` int64 of n images after correction."""
        pairs = zip(ids, labels.tolist(), strict=True)
        return np.array([self.labels.get(id, label) for id, label in pairs], np.int64)


class Line(NamedTuple):
    """A line of a file with the id of an image, and with its class unless it is excluded."""

    path: Path
    number: int
    id: str
    label: str | None = None


def read(
    exclude: str | None, relabel: str | None, ids: Iterable[str], classes: list[str]
) -> Corrections:
    """Read the images to exclude and the labels to correct.

    Args:
        exclude: A file with an id on each line, or a CSV file with the column id; None: no file.
        relabel: A CSV file with the columns id and label, a class name; None: no file.
        ids: Of all images.
        classes: k names.

    Raises:
        PipelineError: A file does not exist or is invalid, or names an unknown image or class or
            an image twice.
    """
    counts = Counter(ids)
    labels: dict[str, str | None] = {}
    for line in chain(_read_exclude(exclude), _read_relabel(relabel)):
        _check(line, counts, classes, labels)
        labels[line.id] = line.label
    return Corrections(
        frozenset(id for id, label in labels.items() if label is None),
        {id: classes.index(label) for id, label in labels.items() if label is not None},
    )


def _read_exclude(file: str | None) -> Iterator[Line]:
    if file is None:
        return
    path = require_file(Path(file), "Create it, or set preprocess.exclude to null")
    with csv_file.readable(path):
        lines = path.read_text("utf-8-sig").split("\n")
        has_header = "id" in next(csv.reader(lines), [])
    if has_header:
        yield from (Line(path, number, row["id"]) for number, row in csv_file.read(path, "id"))
    else:
        yield from (Line(path, number, id) for number, id in enumerate(lines, start=1) if id)


def _read_relabel(file: str | None) -> Iterator[Line]:
    if file is None:
        return
    path = require_file(Path(file), "Create it, or set preprocess.relabel to null")
    for number, row in csv_file.read(path, "id", "label"):
        yield Line(path, number, row["id"], row["label"])


def _check(
    line: Line, counts: Mapping[str, int], classes: list[str], earlier: Collection[str]
) -> None:
    """Check that a line names one image, which no earlier line names, and a class.

    Args:
        line: Of one of the files.
        counts: Number of images with each id.
        classes: k names.
        earlier: Ids of the lines before, in both files.
    """
    if counts[line.id] != 1:
        expected = "id must be that of one image"
        received = f"{line.id!r}, which {counts[line.id] or 'no'} images have"
    elif line.id in earlier:
        expected = "must name an image that exclude and relabel name only once"
        received = f"{line.id!r} again"
    elif line.label not in (None, *classes):
        expected, received = f"label must be one of {first_few(classes)}", repr(line.label)
    else:
        return
    raise PipelineError(
        f"{line.path}: line {line.number}: {expected}. Got {received}. Correct or remove the line"
    )
