"""Arrays: store and read the images and labels of each split.

A folder holds images.npy, `(n, h, w, c)`, and labels.npy, `(n,)` int64. float32 images are stored
normalized. uint8 images are normalized when they are read, with the values in ../info.json; the
result is the same to the last bit. SHA256SUMS holds checksums that `sha256sum -c` can verify.
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
    """Normalized images on disk; indexing reads only the requested rows, as float32.

    The file is read rather than memory-mapped, because mapped pages count as memory of the process:
    up to 2 MiB per row, as the operating system maps the surrounding pages too.
    """

    def __init__(self, path: Path, preprocessor: Preprocessor | None):
        """Read the header of a .npy file.

        Args:
            path: images.npy.
            preprocessor: Normalizes the rows that are read; None if they are stored normalized.
        """
        stored = np.load(path, mmap_mode="r")
        self.shape: tuple[int, ...] = stored.shape
        self.size: int = stored.size
        self._path, self._dtype, self._offset = path, stored.dtype, stored.offset
        self._preprocessor = preprocessor

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: int | np.integer | slice | np.ndarray) -> np.ndarray:
        """Return images `(k, h, w, c)` float32, or `(h, w, c)` for a single row number."""
        if not isinstance(rows, slice):
            stored = self._read(np.atleast_1d(rows).tolist())
        elif (selected := range(len(self))[rows]).step == 1:
            stored = self._read([selected.start], len(selected))  # in one piece
        else:
            stored = self._read(list(selected))
        images = self._preprocessor.normalized(stored) if self._preprocessor else stored
        return images[0] if isinstance(rows, int | np.integer) else images

    def _read(self, starts: list[int], length: int = 1) -> np.ndarray:
        """Read `length` rows from each start: `(k, h, w, c)` in the stored dtype."""
        stored = np.empty((len(starts) * length, *self.shape[1:]), self._dtype)
        buffer = memoryview(stored.reshape(-1).view(np.uint8).data)
        row_bytes = self._dtype.itemsize * math.prod(self.shape[1:])
        with self._path.open("rb", buffering=0) as file:
            for number, start in enumerate(starts):
                file.seek(self._offset + range(len(self))[start] * row_bytes if length else 0)
                remaining = buffer[number * length * row_bytes :][: length * row_bytes]
                while remaining:  # Linux reads at most 2 GiB at a time
                    num_bytes = file.readinto(remaining)
                    if not num_bytes:
                        raise PipelineError(
                            f"{self._path}: the file was truncated while it was read. "
                            "Run `dvc repro`"
                        )
                    remaining = remaining[num_bytes:]
        return stored


def seal(folder: Path) -> None:
    """Write the checksums of the arrays in a folder, once they are complete."""
    sums = "".join(f"{sha256(path)}  {path.name}\n" for path in sorted(folder.glob("*.npy")))
    (folder / SUMS).write_text(sums, "utf-8")


def check_sums(folder: Path, stage: str = "preprocess") -> None:
    """Compare the arrays in a folder with the checksums that a stage wrote.

    Raises:
        PipelineError: A file has changed.
    """
    sums = require_file(folder / SUMS, f"Run `dvc repro {stage}`")
    for line in sums.read_text("utf-8").splitlines():
        expected, _, name = line.partition("  ")
        if (received := sha256(folder / name)) != expected:
            raise PipelineError(
                f"{folder / name}: must be the array that {stage} wrote, SHA-256 "
                f"{expected[:12]}…. Got {received[:12]}…. Run `dvc repro -f {stage}`"
            )


def load(folder: Path, check: bool = True) -> tuple[Images, np.ndarray]:
    """Return the images of a split, which are read on indexing, and its labels `(n,)` int64.

    Args:
        folder: data/arrays/train or data/arrays/test.
        check: Whether to verify the checksums, which reads every file once.

    Raises:
        PipelineError: A file is missing or is not the one that preprocess wrote.
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
        raise PipelineError(
            f"{path}: must be a NumPy array. Got {error}. Run `dvc repro -f preprocess`"
        ) from None
    if array.dtype not in dtypes or array.ndim != rank:
        raise PipelineError(
            f"{path}: must be {' or '.join(dtypes)} of rank {rank}. "
            f"Got {array.dtype} of rank {array.ndim}. Run `dvc repro -f preprocess`"
        )
    return array


def create(path: Path, shape: tuple[int, ...], dtype: str) -> None:
    """Write a .npy file of zeros as a sparse file, which takes neither time nor memory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)


def rows(path: Path, start: int, stop: int) -> np.ndarray:
    """Memory-map rows `start` to `stop` of a .npy file for reading.

    Only these rows are mapped, because mapped pages count as memory of the process.
    """
    array = np.load(path, mmap_mode="r")
    offset = array.offset + start * array[:1].nbytes
    return np.memmap(path, array.dtype, "r", offset, (stop - start, *array.shape[1:]))


def write_rows(path: Path, start: int, images: np.ndarray) -> None:
    """Write images `(m, h, w, c)` to the rows of a .npy file from `start` on.

    Writing takes a third of the processor time that writing to a memory map takes.
    """
    array = np.load(path, mmap_mode="r")
    with path.open("r+b") as file:
        file.seek(array.offset + start * array[:1].nbytes)
        file.write(np.ascontiguousarray(images, array.dtype).data)


def write_split(path: Path, train: np.ndarray, validation: np.ndarray) -> None:
    """Write the row numbers of the training and validation splits as an .npz file.

    `np.savez` would write ZIP64 headers, which differ between versions of Python, so that stages
    that depend on the file would rerun for no reason.
    """
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, rows in (("train", train), ("validation", validation)):
            content = io.BytesIO()
            np.save(content, rows)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), content.getvalue())


def read_split(path: Path, num_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the row numbers of the training and validation splits, each int64.

    Raises:
        PipelineError: The two splits together do not hold each of `num_rows` rows exactly once.
    """
    with np.load(require_file(path, "Run `dvc repro split`"), allow_pickle=False) as split:
        train, validation = split["train"], split["validation"]
    if not np.array_equal(np.sort(np.concatenate([train, validation])), np.arange(num_rows)):
        raise PipelineError(
            f"{path}: must list each of {num_rows} rows once. Run `dvc repro -f split`"
        )
    return train, validation
