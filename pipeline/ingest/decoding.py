"""Decoding: encoded images written as arrays, group by group, on all cores."""

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
from itertools import accumulate
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
from PIL import Image
from tqdm import tqdm

from pipeline.core import cpu
from pipeline.core.batching import batch_size
from pipeline.core.errors import PipelineError
from pipeline.data import arrays
from pipeline.ingest import parquet
from pipeline.ingest.images import HIGH_BYTE, BadImage, decode, extremes, open_image, to_8_bits

CHUNK_VALUES = 2**20  # decoded at a time: bounds memory where images are large

Map = Callable[..., Iterable[Any]]


class Options(NamedTuple):
    """How all images are decoded."""

    shape: tuple[int, int, int]
    """h, w and c"""
    resize: bool
    """Whether to resize images of another size"""
    dtype: str
    """float32: pixels as numbers in [0, 1]; uint8: as they are"""
    intensity_range: Sequence[float] | None
    """What becomes 0 and 255 of grey images of more than 8 bits; None: not known"""
    max_megapixels: float


class Task(NamedTuple):
    """One group of rows of a Parquet file, and where its pixels go."""

    source: Path
    group: int
    target: Path
    start: int
    stop: int
    options: Options


class Decoded(NamedTuple):
    """One group of images that is written, the good ones at its start."""

    histogram: np.ndarray
    """Pixel counts `(c, 256)` int64"""
    good: np.ndarray
    """Which images of the group could be decoded, `(n,)` bool"""
    bad: list[str]
    """Names of the others, with the reason"""
    extremes: list[tuple[float, float]]
    """Of each image of more than 8 bits the lowest and highest pixel, if no range is known"""
    high_byte: int
    """How many images, in colour of 16 bits, have but their high 8"""


def decode_group(task: Task) -> Decoded:
    """Write the good images of one group, in order."""
    examples = parquet.read_group(task.source, task.group)
    good = np.ones(len(examples), bool)
    bad = []
    found = []
    high_byte = 0
    shape, resize, dtype, intensity_range, max_megapixels = task.options
    histogram = np.zeros((shape[2], 256), np.int64)
    start = task.start
    chunk = batch_size(shape, CHUNK_VALUES)
    for first in range(0, len(examples), chunk):
        images = []
        for row, example in enumerate(examples[first : first + chunk], first):
            try:
                image = open_image(example.image, max_megapixels)
                if intensity_range is None and (bounds := extremes(image)):
                    found.append(bounds)
                image = to_8_bits(image, intensity_range)
                images.append(decode(image, example.id, shape, resize))
                high_byte += image.info.get(HIGH_BYTE, False)
            except BadImage as error:
                good[row] = False
                bad.append(f"{example.id} {error}")
        if images:
            batch = np.stack(images)  # (m, h, w, c)
            out = arrays.rows(task.target, start, start + len(batch))
            out[...] = batch if dtype == "uint8" else batch / np.float32(255)
            start += len(batch)
            for channel, counts in enumerate(histogram):
                counts += np.bincount(batch[..., channel].ravel(), minlength=256)
    return Decoded(histogram, good, bad, found, high_byte)


def _follow_parent() -> None:
    """Make a process of the pool end when the one that started it does, and not before.

    Ctrl-C reaches all of them; a parent that is killed tells none of them.
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
    """Yield a `map` over the cores; for little work the plain one, which starts at once."""
    workers = len(cpu.available_cores())
    if workers == 1 or tasks < 8:
        yield map
        return
    # spawn, not fork: the parent holds the threads of Arrow and NumPy
    with ProcessPoolExecutor(min(workers, tasks), get_context("spawn"), _follow_parent) as pool:
        try:
            yield pool.map
        except BrokenProcessPool:
            raise PipelineError(
                "preprocess: one of its processes was killed from outside, most likely since "
                "memory was short. Lower preprocess.image_size, or close other programs"
            ) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def create(path: Path, shape: tuple[int, ...], dtype: str) -> None:
    """Write a .npy file of zeros, and reserve its space on the disk.

    Holes would be filled through memory, where a full disk ends the process without a word.

    Raises:
        PipelineError: The disk has less space free.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)  # of images decoded in another way: it needs no second space
    needed, free = math.prod(shape) * np.dtype(dtype).itemsize, shutil.disk_usage(path.parent).free
    if needed > free:
        smaller = "" if dtype == "uint8" else ", or set preprocess.dtype: uint8"
        raise PipelineError(
            f"{path}: needs {needed / 1e9:.3g} GB, and its disk has {free / 1e9:.3g} GB free. Free "
            f"some or lower preprocess.image_size{smaller}"
        )
    arrays.create(path, shape, dtype)
    if hasattr(os, "posix_fallocate"):  # Linux
        with path.open("r+b") as file:
            try:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
            except OSError as error:
                # a file system that cannot reserve keeps the holes
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                    raise OSError(error.errno, error.strerror, str(path)) from None


def plan(source: Path, target: Path, options: Options) -> list[Task]:
    """List the groups of a Parquet file, and create the array they go to."""
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
    """Write the images of every split.

    Returns:
        The groups of each split, and what decoding them gave.
    """
    tasks = {
        split: plan(source, folder / split / "images.npy", options)
        for split, source in sources.items()
    }
    every = [task for own in tasks.values() for task in own]
    with mapper(len(every)) as run_all:
        bar = tqdm(run_all(decode_group, every), "decode", len(every), unit="group", disable=None)
        results = iter(list(bar))
    return tasks, {split: [next(results) for _ in own] for split, own in tasks.items()}


def close_gaps(tasks: list[Task], decoded: list[Decoded]) -> list[Task]:
    """Write an array anew without the rows that bad images left unused, if there are any.

    Returns:
        The groups that hold images, and where these lie now.
    """
    if not any(group.bad for group in decoded):
        return tasks
    target = tasks[0].target
    options = tasks[0].options
    beside = target.with_name("good.npy")
    counts = [int(group.good.sum()) for group in decoded]
    create(beside, (sum(counts), *options.shape), options.dtype)
    moved = []
    for task, count, stop in zip(tasks, counts, accumulate(counts), strict=True):
        if count:
            moved.append(task._replace(start=stop - count, stop=stop))
            good = arrays.rows(target, task.start, task.start + count)
            arrays.rows(beside, stop - count, stop)[...] = good
    beside.replace(target)
    return moved


def first_image(sources: Iterable[Path], max_megapixels: float) -> Image.Image | None:
    """Return the first image that can be opened, if any can."""
    for source in sources:
        for group in range(pq.read_metadata(source).num_row_groups):
            for example in parquet.read_group(source, group):
                with suppress(BadImage):
                    return open_image(example.image, max_megapixels)
    return None
