"""Arrays: the images that preprocess writes and the later stages read, normalized.

A folder holds images.npy, `(n, h, w, c)`, and labels.npy, `(n,)` int64. float32 images are stored
normalized; uint8 images are normalized when they are read, as ../info.json says, to the same bits.
SHA256SUMS, as `sha256sum -c` reads it, tells the arrays that preprocess wrote from any others.
"""

import io
import math
import zipfile
from pathlib import Path

import numpy as np

from pipeline.core.errors import PipelineError
from pipeline.core.files import atomic_path, read_json, require_file, sha256
from pipeline.data.preprocessor import Preprocessor

SUMS = "SHA256SUMS"


class Images:
    """Normalized images on disk; indexing reads rows, and no others, as float32.

    By reading and not by a map of the file: pages that are mapped count as the process's memory,
    a row then up to 2 MiB, since the system maps as much around it as it holds in one piece.
    """

    def __init__(self, path: Path, preprocessor: Preprocessor | None):
        """Look at the header of a .npy file, which `preprocessor` normalizes if it is uint8."""
        stored = np.load(path, mmap_mode="r")
        self.shape: tuple[int, ...] = stored.shape
        self.size: int = stored.size
        self._path, self._dtype, self._offset = path, stored.dtype, stored.offset
        self._preprocessor = preprocessor

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: int | np.integer | slice | np.ndarray) -> np.ndarray:
        """Return `(k, h, w, c)` float32, for a single row `(h, w, c)`."""
        if not isinstance(rows, slice):
            stored = self._read(np.atleast_1d(rows).tolist())
        elif (run := range(len(self))[rows]).step == 1:
            stored = self._read([run.start], max(len(run), 0))  # in one piece
        else:
            stored = self._read(list(run))
        images = self._preprocessor.normalized(stored) if self._preprocessor else stored
        return images[0] if isinstance(rows, int | np.integer) else images

    def _read(self, starts: list[int], length: int = 1) -> np.ndarray:
        """Return so many rows from each start on, `(k, h, w, c)` as they are stored."""
        stored = np.empty((len(starts) * length, *self.shape[1:]), self._dtype)
        pieces = memoryview(stored.reshape(-1).view(np.uint8).data)
        row = self._dtype.itemsize * math.prod(self.shape[1:])
        with self._path.open("rb", buffering=0) as file:
            for number, start in enumerate(starts):
                file.seek(self._offset + range(len(self))[start] * row if length else 0)
                left = pieces[number * length * row :][: length * row]
                while left:  # at most 2 GiB at a time
                    left = left[file.readinto(left) or _ended(self._path) :]
        return stored


def seal(folder: Path) -> None:
    """Write down what the files of a folder hold, once they are complete."""
    sums = "".join(f"{sha256(path)}  {path.name}\n" for path in sorted(folder.glob("*.npy")))
    (folder / SUMS).write_text(sums, "utf-8")


def check_sums(folder: Path) -> None:
    """Read all of a folder once, and compare it with what preprocess wrote.

    Raises:
        PipelineError: A file is another one.
    """
    sums = require_file(folder / SUMS, "Run `dvc repro preprocess`")
    for line in sums.read_text("utf-8").splitlines():
        expected, _, name = line.partition("  ")
        if (received := sha256(folder / name)) != expected:
            raise PipelineError(
                f"{folder / name}: must be the array that preprocess wrote, SHA-256 "
                f"{expected[:12]}…. Got {received[:12]}…. Run `dvc repro -f preprocess`"
            )


def _ended(path: Path) -> int:
    raise PipelineError(f"{path}: has become shorter while it was read. Run `dvc repro`")


def load(folder: Path, check: bool = True) -> tuple[Images, np.ndarray]:
    """Return images, not read yet, and labels `(n,)` int64.

    Args:
        folder: data/arrays/train or data/arrays/test.
        check: Whether to read all of it once, and compare it with what preprocess wrote.

    Raises:
        PipelineError: A file is missing or not what preprocess wrote.
    """
    stored = _open(folder / "images.npy", ("float32", "uint8"), 4)
    labels = _open(folder / "labels.npy", ("int64",), 1)
    if len(stored) != len(labels):
        raise PipelineError(
            f"{folder}: {len(stored)} images, {len(labels)} labels. Run `dvc repro -f preprocess`"
        )
    preprocessor = None
    if stored.dtype == np.uint8:
        preprocessor = Preprocessor.of(read_json(folder.parent / "info.json"))
    if check:
        check_sums(folder)
    return Images(folder / "images.npy", preprocessor), np.array(labels)


def _open(path: Path, dtypes: tuple[str, ...], rank: int) -> np.ndarray:
    require_file(path, "Run `dvc repro preprocess`")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise PipelineError(f"{path}: no array: {error}. Run `dvc repro -f preprocess`") from None
    if array.dtype not in dtypes or array.ndim != rank:
        raise PipelineError(
            f"{path}: must be {' or '.join(dtypes)} of rank {rank}. "
            f"Got {array.dtype} of rank {array.ndim}. Run `dvc repro -f preprocess`"
        )
    return array


def create(path: Path, shape: tuple[int, ...], dtype: str) -> None:
    """Write a .npy file of zeros, as holes: no time and no memory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)


def rows(path: Path, start: int, stop: int) -> np.ndarray:
    """Map some rows of a .npy file for writing.

    Only these: the pages of a mapping count as the process's memory until it is dropped.
    """
    whole = np.load(path, mmap_mode="r")
    offset = whole.offset + start * whole[:1].nbytes
    return np.memmap(path, whole.dtype, "r+", offset, (stop - start, *whole.shape[1:]))


def write_split(path: Path, train: np.ndarray, validation: np.ndarray) -> None:
    """Write the row numbers of both parts, as `np.load` reads them.

    `np.savez` writes them too, but with the headers of a large archive, which differ between
    versions of Python: stages that depend on the file would run again for nothing.
    """
    with atomic_path(path) as beside, zipfile.ZipFile(beside, "w") as archive:
        for name, rows in (("train", train), ("validation", validation)):
            content = io.BytesIO()
            np.save(content, rows)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), content.getvalue())


def read_split(path: Path, num_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the row numbers of the training and the validation part.

    Raises:
        PipelineError: They are not the rows of these arrays.
    """
    with np.load(require_file(path, "Run `dvc repro split`"), allow_pickle=False) as split:
        train, validation = split["train"], split["validation"]
    if not np.array_equal(np.sort(np.concatenate([train, validation])), np.arange(num_rows)):
        raise PipelineError(
            f"{path}: must name each of {num_rows} rows once. Run `dvc repro -f split`"
        )
    return train, validation
