"""Features: what the frozen layers of a model compute from the training images, stored as arrays.

A folder holds features.npy, `(n, …)` float32 in the order of the training images, features.json
and SHA256SUMS. The JSON file is `null`, and there is nothing else, if a model has no features that
are worth storing.
"""

from pathlib import Path
from typing import NamedTuple

from pipeline.core.files import read_json
from pipeline.data import arrays

ARRAY = "features.npy"
RECORD = "features.json"


class Features(NamedTuple):
    values: arrays.Images
    """`(n, …)` float32, read on indexing"""
    weights: str
    """SHA-256 of the frozen weights, from `frozen.weights_hash`"""


def load(folder: Path, check: bool = True) -> Features | None:
    """Return the features in a folder, which are read on indexing; None if it has none.

    Args:
        folder: data/features/MODEL.
        check: Whether to verify the checksum, which reads the file once.

    Raises:
        PipelineError: A file is missing or is not the one that the stage wrote.
    """
    record = read_json(folder / RECORD)
    if record is None:
        return None
    if check:
        arrays.check_sums(folder, f"features@{folder.name}")
    return Features(arrays.Images(folder / ARRAY, None), record["weights"])
