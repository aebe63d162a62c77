"""Survey: open every file of a folder of images, and sum up what is in it."""

import hashlib
from collections import defaultdict
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.core.progress import progress
from pipeline.ingest import decoding
from pipeline.ingest.datasets.folder import Found
from pipeline.ingest.images import BadImage, Header, check

NAMES = 3  # files listed of each group of duplicates
CHUNK = 64  # files that a worker process opens at a time


class File(NamedTuple):
    """One file of a folder, and what opening it showed."""

    name: str
    """Path below the folder"""
    split: str
    label: int
    header: Header | None
    """None: not a valid image"""
    problem: str
    """Why it is not a valid image"""
    digest: bytes
    """Equal for files with the same bytes"""


class Survey(NamedTuple):
    classes: list[str]
    files: list[File]

    @property
    def good(self) -> list[File]:
        return [file for file in self.files if file.header]

    @property
    def bad(self) -> list[str]:
        """The names of the files that are not valid images, each with the reason."""
        return [f"{file.name} {file.problem}" for file in self.files if not file.header]

    @property
    def splits(self) -> list[str]:
        return list(dict.fromkeys(file.split for file in self.files))

    def counts(self, split: str | None = None) -> np.ndarray:
        """Return the number of valid images of each class `(k,)`, of one split or of all."""
        labels = [file.label for file in self.good if split in (None, file.split)]
        return np.bincount(np.array(labels, int), minlength=len(self.classes))

    def sizes(self) -> np.ndarray:
        """Return the heights and widths of the valid images `(n, 2)`, by ascending area."""
        sizes = np.array([file.header[:2] for file in self.files if file.header], int)
        return sizes[np.argsort(sizes.prod(axis=1), kind="stable")]

    def aspect_ratios(self) -> np.ndarray:
        """Return the longer side divided by the shorter of each valid image, `(n,)`."""
        sizes = self.sizes()
        return sizes.max(axis=1) / sizes.min(axis=1)

    def multi_frame(self) -> list[str]:
        """Return the names of animated and multi-page files."""
        return [file.name for file in self.files if file.header and file.header.is_multi_frame]

    def duplicates(self) -> dict[str, list[str]]:
        """Return the groups of valid images with the same bytes, by kind; a text for each group.

        The kinds are `classes` (in two classes: contradictory labels), `splits` (in one class, but
        in two splits: leaks) and `class` (in one class and one split). A group has one kind, the
        first that applies.
        """
        groups: dict[bytes, list[File]] = defaultdict(list)
        for file in self.good:
            groups[file.digest].append(file)
        kinds: dict[str, list[str]] = {"classes": [], "splits": [], "class": []}
        for group in groups.values():
            if len(group) > 1:
                more = [f"{len(group) - NAMES} more"] if len(group) > NAMES else []
                text = " = ".join([*(file.name for file in group[:NAMES]), *more])
                if len({file.label for file in group}) > 1:
                    kinds["classes"].append(text)
                elif len({file.split for file in group}) > 1:
                    kinds["splits"].append(text)
                else:
                    kinds["class"].append(text)
        return kinds


def survey(found: Found, folder: Path, max_megapixels: float) -> Survey:
    """Open every file, on all cores.

    Args:
        found: The files, from `folder.find`.
        folder: The folder, for the names of the files.
        max_megapixels: Larger images count as bad.
    """
    listed = [(path, split, label) for split, pairs in found.files.items() for path, label in pairs]
    paths = [path for path, _, _ in listed]
    chunks = [paths[start : start + CHUNK] for start in range(0, len(paths), CHUNK)]
    with decoding.mapper(len(chunks)) as parallel_map:
        opened = parallel_map(partial(_open, max_megapixels=max_megapixels), chunks)
        results = list(progress(chain.from_iterable(opened), len(paths), "photos", "file"))
    return Survey(
        found.classes,
        [
            File(path.relative_to(folder).as_posix(), split, label, *result)
            for (path, split, label), result in zip(listed, results, strict=True)
        ],
    )


def _open(paths: list[Path], max_megapixels: float) -> list[tuple[Header | None, str, bytes]]:
    """Return header, problem and digest of each file."""
    results: list[tuple[Header | None, str, bytes]] = []
    for path in paths:
        encoded = path.read_bytes()
        digest = hashlib.blake2b(encoded, digest_size=16).digest()
        try:
            results.append((check(encoded, max_megapixels), "", digest))
        except BadImage as error:
            results.append((None, str(error), digest))
    return results
