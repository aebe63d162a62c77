"""Arrays: the normalized images that preprocess writes and the later stages read.

A folder holds images.npy, `(n, h, w, c)` float32, and labels.npy, `(n,)` int64.
"""

from pathlib import Path

import numpy as np

from pipeline.errors import PipelineError


def load(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return images, mapped and not read, and labels.

    Raises:
        PipelineError: A file is missing or not what preprocess writes.
    """
    images = _open(folder / "images.npy", "float32", 4)
    labels = _open(folder / "labels.npy", "int64", 1)
    if len(images) != len(labels):
        raise PipelineError(
            f"{folder}: {len(images)} images, {len(labels)} labels. Run `dvc repro -f preprocess`"
        )
    return images, labels


def _open(path: Path, dtype: str, rank: int) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise PipelineError(f"{path}: no such file. Run `dvc repro preprocess`") from None
    except (ValueError, EOFError) as error:
        raise PipelineError(f"{path}: no array: {error}. Run `dvc repro -f preprocess`") from None
    if array.dtype != dtype or array.ndim != rank:
        raise PipelineError(
            f"{path}: must be {dtype} of rank {rank}. Got {array.dtype} of rank {array.ndim}. "
            "Run `dvc repro -f preprocess`"
        )
    return array


def create(path: Path, shape: tuple[int, ...]) -> None:
    """Write a float32 .npy file of zeros, as holes: no time and no memory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)


def rows(path: Path, start: int, stop: int) -> np.ndarray:
    """Map some rows of a float32 .npy file for writing.

    Only these: the pages of a mapping count as the process's memory until it is dropped.
    """
    whole = np.load(path, mmap_mode="r")
    offset = whole.offset + start * whole[:1].nbytes
    return np.memmap(path, np.float32, "r+", offset, (stop - start, *whole.shape[1:]))


def read_split(path: Path, num_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the row numbers of the training and the validation part.

    Raises:
        PipelineError: They are not the rows of these arrays.
    """
    if not path.is_file():
        raise PipelineError(f"{path}: no such file. Run `dvc repro split`")
    with np.load(path, allow_pickle=False) as split:
        train, validation = split["train"], split["validation"]
    if not np.array_equal(np.sort(np.concatenate([train, validation])), np.arange(num_rows)):
        raise PipelineError(
            f"{path}: must name each of {num_rows} rows once. Run `dvc repro -f split`"
        )
    return train, validation
