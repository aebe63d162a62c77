"""Decoding: decode images into arrays, in parallel on all cores."""

import errno
import math
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from itertools import accumulate, chain, islice
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from pipeline.core import cpu
from pipeline.core.batching import batch_size
from pipeline.core.errors import PipelineError
from pipeline.core.progress import progress
from pipeline.data import arrays
from pipeline.ingest import parquet
from pipeline.ingest.images import (
    HIGH_BYTE,
    MULTI_FRAME,
    BadImage,
    decode,
    extremes,
    open_image,
    to_8_bits,
)

CHUNK_VALUES = 2**20  # pixel values decoded at a time; bounds memory for large images

Map = Callable[..., Iterable[Any]]


class Options(NamedTuple):
    """Decoding options, the same for all images."""

    shape: tuple[int, int, int]
    """h, w and c"""
    resize: str | None
    """How to resize images of another size: `stretch`, `crop` or `pad`; None: not at all"""
    dtype: str
    """`float32`: pixels scaled to [0, 1]; `uint8`: pixels in [0, 255]"""
    intensity_range: Sequence[float] | None
    """Values of grayscale images of more than 8 bits that become 0 and 255; None: not known yet"""
    max_megapixels: float
    """Larger images are refused"""
    excluded: frozenset[str]
    """Ids of images to leave out"""


class Task(NamedTuple):
    """One row group of a Parquet file, and the rows of the array that its images are written to."""

    source: Path
    """Parquet file"""
    group: int
    """Number of the row group"""
    target: Path
    """images.npy"""
    start: int
    stop: int
    """Rows of the target: [start, stop)"""
    options: Options


class Decoded(NamedTuple):
    """Result of one task; its valid images are written to the first rows of the group."""

    histogram: np.ndarray
    """Pixel counts `(c, 256)` int64"""
    good: np.ndarray
    """Which images of the group are written, `(n,)` bool"""
    bad: list[str]
    """Names of the images that cannot be decoded, each with the reason"""
    extremes: list[tuple[float, float]]
    """Lowest and highest pixel of each image of more than 8 bits, if the range is not known yet"""
    high_byte: int
    """Number of 16-bit color images of which only the high 8 bits were read"""
    multi_frame: int
    """Number of animated and multi-page files, of which only the first frame was read"""


def decode_group(task: Task) -> Decoded:
    """Decode one group and write its valid images, in order."""
    examples = parquet.read_group(task.source, task.group)
    good = np.ones(len(examples), bool)
    bad = []
    pixel_ranges = []
    high_byte = multi_frame = 0
    shape, resize, dtype, intensity_range, max_megapixels, excluded = task.options
    target = None if resize is None else shape[:2]
    histogram = np.zeros((shape[2], 256), np.int64)
    start = task.start
    chunk = batch_size(shape, CHUNK_VALUES)
    for first in range(0, len(examples), chunk):
        images = []
        for row, example in enumerate(examples[first : first + chunk], first):
            if example.id in excluded:
                good[row] = False
                continue
            try:
                image = open_image(example.image, max_megapixels, target)
                if intensity_range is None and (pixel_range := extremes(image)):
                    pixel_ranges.append(pixel_range)
                info = image.info
                image = to_8_bits(image, intensity_range)
                images.append(decode(image, example.id, shape, resize))
                high_byte += info[HIGH_BYTE]
                multi_frame += info[MULTI_FRAME]
            except BadImage as error:
                good[row] = False
                bad.append(f"{example.id} {error}")
        if images:
            batch = np.stack(images)  # (m, h, w, c)
            values = batch if dtype == "uint8" else batch / np.float32(255)
            arrays.write_rows(task.target, start, values)
            start += len(batch)
            stacked = batch.reshape(-1, shape[1], shape[2])
            # Pillow counts more than twice as fast as NumPy
            image = Image.fromarray(stacked[..., 0] if shape[2] == 1 else stacked)
            histogram += np.reshape(image.histogram(), histogram.shape)
    return Decoded(histogram, good, bad, pixel_ranges, high_byte, multi_frame)


def _follow_parent() -> None:
    """Make a worker process ignore Ctrl-C and exit when its parent ends.

    Ctrl-C is sent to the workers too; a parent that is killed cannot stop them.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()

    def wait() -> None:
        if parent:
            parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


@contextmanager
def mapper(tasks: int) -> Iterator[Map]:
    """Yield a parallel `map`, or the built-in one for few tasks or a single core."""
    workers = len(cpu.available_cores())
    if workers == 1 or tasks < 8:
        yield map
        return
    # not fork: the parent has threads of Arrow and NumPy
    with ProcessPoolExecutor(min(workers, tasks), get_context("spawn"), _follow_parent) as pool:
        try:
            yield pool.map
        except BrokenProcessPool:
            raise PipelineError(
                "preprocess: a worker process was killed, most likely for lack of memory. Lower "
                "preprocess.image_size, or close other programs"
            ) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def create(path: Path, shape: tuple[int, ...], dtype: str) -> None:
    """Write a .npy file of zeros, and reserve its disk space.

    A full disk is then an error before the images are decoded.

    Raises:
        PipelineError: The disk does not have enough free space.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)  # of a previous pass, so that its space is free
    needed, free = math.prod(shape) * np.dtype(dtype).itemsize, shutil.disk_usage(path.parent).free
    if needed > free:
        smaller = "" if dtype == "uint8" else ", or set preprocess.dtype: uint8"
        raise PipelineError(
            f"{path}: needs {needed / 1e9:.3g} GB. Got {free / 1e9:.3g} GB of free disk space. "
            f"Free some space or lower preprocess.image_size{smaller}"
        )
    arrays.create(path, shape, dtype)
    if hasattr(os, "posix_fallocate"):  # Linux
        with path.open("r+b") as file:
            try:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
            except OSError as error:
                # not every file system can reserve space
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                    raise OSError(error.errno, error.strerror, str(path)) from None


def plan(source: Path, target: Path, options: Options) -> list[Task]:
    """Create the array for a Parquet file, and return one task per row group."""
    metadata = pq.read_metadata(source)
    create(target, (metadata.num_rows, *options.shape), options.dtype)
    sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    stops = list(accumulate(sizes))
    return [
        Task(source, group, target, stop - size, stop, options)
        for group, (size, stop) in enumerate(zip(sizes, stops, strict=True))
    ]


def decode_all(
    sources: dict[str, Path], folder: Path, options: Options
) -> tuple[dict[str, list[Task]], dict[str, list[Decoded]]]:
    """Decode the images of every split.

    Args:
        sources: Parquet file of each split.
        folder: Images are written to `folder`/SPLIT/images.npy.
        options: Decoding options.

    Returns:
        The tasks of each split, and their results.
    """
    tasks = {
        split: plan(source, folder / split / "images.npy", options)
        for split, source in sources.items()
    }
    all_tasks = list(chain.from_iterable(tasks.values()))
    with mapper(len(all_tasks)) as parallel_map:
        results = parallel_map(decode_group, all_tasks)
        decoded = list(progress(results, len(all_tasks), "decode", "group"))
    remaining = iter(decoded)
    return tasks, {split: list(islice(remaining, len(tasks[split]))) for split in tasks}


def close_gaps(tasks: list[Task], decoded: list[Decoded]) -> list[Task]:
    """Rewrite an array without the unused rows of bad and excluded images, if there are any.

    Returns:
        The tasks with valid images, with the new rows of these images.
    """
    if all(group.good.all() for group in decoded):
        return tasks
    target = tasks[0].target
    options = tasks[0].options
    temporary = target.with_name("good.npy")
    counts = [int(group.good.sum()) for group in decoded]
    create(temporary, (sum(counts), *options.shape), options.dtype)
    moved = []
    for task, count, stop in zip(tasks, counts, accumulate(counts), strict=True):
        if count:
            moved.append(task._replace(start=stop - count, stop=stop))
            good = arrays.rows(target, task.start, task.start + count)
            arrays.write_rows(temporary, stop - count, good)
    temporary.replace(target)
    return moved


def first_image(
    sources: Iterable[Path], max_megapixels: float, excluded: frozenset[str]
) -> Image.Image | None:
    """Return the first image that can be opened and is not excluded, or None."""
    for source in sources:
        for group in range(pq.read_metadata(source).num_row_groups):
            for example in parquet.read_group(source, group):
                if example.id not in excluded:
                    with suppress(BadImage):
                        return open_image(example.image, max_megapixels)
    return None
