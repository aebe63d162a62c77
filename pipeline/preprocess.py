"""Preprocess: decode every image into normalized arrays that can be memory-mapped.

Reads   data/raw/{train,test}.parquet
Writes  data/arrays/{train,test}/images.npy    (n, h, w, c) float32 or float16, normalized
        data/arrays/{train,test}/levels.npy    (c, 256) float32: what float16 stands for, only then
        data/arrays/{train,test}/labels.npy    (n,) int64
        data/arrays/info.json                  class names, shape, normalization, statistics,
                                               images skipped
Params  preprocess
"""

import argparse
import io
import math
import os
import struct
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from itertools import accumulate, repeat
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from pipeline import arrays, raw
from pipeline.errors import PipelineError, run
from pipeline.files import replacing, write_json
from pipeline.params import load
from pipeline.schema import Preprocess

SPLITS = ("train", "test")
CHUNK_VALUES = 2**20  # decoded at a time: bounds memory where images are large
GREY_MODES = ("1", "L", "LA")
COLOUR_MODES = ("RGB", "RGBA", "P", "PA", "CMYK", "YCbCr")
# what Pillow raises for damaged files
DAMAGED = (
    OSError, EOFError, SyntaxError, ValueError, TypeError, ArithmeticError, RuntimeError,
    struct.error, Image.DecompressionBombError,
)  # fmt: skip

Map = Callable[..., Iterable[Any]]


class Task(NamedTuple):
    """One group of rows of a Parquet file, and where its pixels go."""

    source: Path
    group: int
    target: Path
    start: int
    stop: int
    shape: tuple[int, int, int]
    resize: bool


class Decoded(NamedTuple):
    """One group of images that is written, the good ones at its start."""

    histogram: np.ndarray
    """Pixel counts `(c, 256)` int64"""
    good: np.ndarray
    """Which images of the group could be decoded, `(n,)` bool"""
    bad: list[str]
    """Names of the others, with the reason"""


class BadImage(Exception):
    """A file that is no image, damaged, or of a kind with more than 8 bits; says which."""


class ColourAmongGrey(Exception):
    """The first image is grey and a later one is not: all must be decoded in colour."""


def open_image(encoded: bytes) -> Image.Image:
    """Open an encoded image, turned the way its camera was held.

    Raises:
        BadImage: It cannot be.
    """
    if not encoded:
        raise BadImage("is empty")
    try:
        image = Image.open(io.BytesIO(encoded))
        ImageOps.exif_transpose(image, in_place=True)
        image.load()
    except UnidentifiedImageError:
        raise BadImage("is no image, or of an unknown kind") from None
    except DAMAGED as error:
        raise BadImage(f"is damaged ({error})") from None
    if image.mode not in GREY_MODES + COLOUR_MODES:
        raise BadImage(f"must have 8 bits a channel (has mode {image.mode})")
    return image


def decode(example: raw.Example, shape: tuple[int, int, int], resize: bool) -> np.ndarray:
    """Decode one image.

    Args:
        example: Encoded image.
        shape: `(h, w, c)` to return; c is 1 or 3.
        resize: Whether to resize an image of another size (antialiased bilinear).

    Returns:
        `(h, w, c)` uint8.

    Raises:
        PipelineError: It has another size, without `resize`.
        BadImage: See `open_image`.
        ColourAmongGrey: c is 1, and the image has colour.
    """
    image = open_image(example.image)
    height, width, channels = shape
    if channels == 1 and image.mode not in GREY_MODES:
        raise ColourAmongGrey
    image = image.convert("L" if channels == 1 else "RGB")
    if image.size != (width, height):
        if not resize:
            raise PipelineError(
                f"{example.id}: is {image.height}×{image.width} pixels, "
                f"the first image {height}×{width}. Set preprocess.image_size: [height, width]"
            )
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(image).reshape(shape)


def decode_group(task: Task) -> Decoded:
    """Write the good images of one group, in order, as numbers in [0, 1]."""
    examples = raw.read_group(task.source, task.group)
    good = np.ones(len(examples), bool)
    bad = []
    histogram = np.zeros((task.shape[2], 256), np.int64)
    start = task.start
    chunk = max(1, CHUNK_VALUES // math.prod(task.shape))
    for first in range(0, len(examples), chunk):
        images = []
        for row, example in enumerate(examples[first : first + chunk], first):
            try:
                images.append(decode(example, task.shape, task.resize))
            except BadImage as error:
                good[row] = False
                bad.append(f"{example.id} {error}")
        if images:
            batch = np.stack(images)  # (m, h, w, c)
            out = arrays.rows(task.target, start, start + len(batch))
            np.divide(batch, np.float32(255), out=out)
            start += len(batch)
            for channel, counts in enumerate(histogram):
                counts += np.bincount(batch[..., channel].ravel(), minlength=256)
    return Decoded(histogram, good, bad)


def statistics(histogram: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation of each channel, exactly, from its histogram.

    Args:
        histogram: Pixel counts `(c, 256)` int64.

    Returns:
        Mean and standard deviation, each `(c,)` float64, of pixels in [0, 1].
    """
    values = np.arange(256) / 255
    count = histogram.sum(axis=1)
    mean = histogram @ values / count
    variance = (histogram * (values - mean[:, None]) ** 2).sum(axis=1) / count
    return mean, np.sqrt(variance)


def levels(mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """Return each 8-bit level as its pixels are normalized, by the same operations.

    Args:
        mean: `(c,)`, of pixels in [0, 1].
        std: `(c,)`, not 0.

    Returns:
        `(c, 256)` float32.
    """
    unit = np.arange(256, dtype=np.uint8) / np.float32(255)
    return (unit - mean.astype(np.float32)[:, None]) / std.astype(np.float32)[:, None]


def standardize_group(task: Task, mean: np.ndarray, std: np.ndarray) -> None:
    """Turn one group of images in [0, 1] into (pixel - mean) / std, in place."""
    rows = arrays.rows(task.target, task.start, task.stop)
    unit = rows
    if rows.dtype == np.float16:
        unit = arrays.exact(rows, arrays.table(levels(np.zeros_like(mean), np.ones_like(std))))
    rows[...] = (unit - mean.astype(np.float32)) / std.astype(np.float32)


@contextmanager
def mapper(tasks: int) -> Iterator[Map]:
    """Yield a `map` over the cores; for little work the plain one, which starts at once."""
    cores = os.cpu_count() or 1
    if cores == 1 or tasks < 8:
        yield map
        return
    # spawn, not fork: the parent holds the threads of Arrow and NumPy
    with ProcessPoolExecutor(min(cores, tasks), get_context("spawn")) as pool:
        try:
            yield pool.map
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def plan(
    source: Path, target: Path, shape: tuple[int, int, int], resize: bool, dtype: str
) -> list[Task]:
    """List the groups of a Parquet file, and create the array they go to."""
    metadata = pq.read_metadata(source)
    arrays.create(target, (metadata.num_rows, *shape), dtype)
    sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    stops = list(accumulate(sizes))
    return [
        Task(source, group, target, stop - size, stop, shape, resize)
        for group, (size, stop) in enumerate(zip(sizes, stops, strict=True))
    ]


def decode_all(
    sources: dict[str, Path], folder: Path, shape: tuple[int, int, int], resize: bool, dtype: str
) -> tuple[dict[str, list[Task]], dict[str, list[Decoded]]]:
    """Write every split as numbers in [0, 1].

    Returns:
        The groups of each split, and what decoding them gave.
    """
    tasks = {
        split: plan(source, folder / split / "images.npy", shape, resize, dtype)
        for split, source in sources.items()
    }
    every = [task for own in tasks.values() for task in own]
    with mapper(len(every)) as run_all:
        bar = tqdm(run_all(decode_group, every), "decode", len(every), unit="group", disable=None)
        results = iter(list(bar))
    return tasks, {split: [next(results) for _ in own] for split, own in tasks.items()}


def close_gaps(tasks: list[Task], decoded: list[Decoded], dtype: str) -> list[Task]:
    """Write an array anew without the rows that bad images left unused, if there are any.

    Returns:
        The groups that hold images, and where these lie now.
    """
    if not any(group.bad for group in decoded):
        return tasks
    target = tasks[0].target
    beside = target.with_name("good.npy")
    counts = [int(group.good.sum()) for group in decoded]
    arrays.create(beside, (sum(counts), *tasks[0].shape), dtype)
    moved = []
    for task, count, stop in zip(tasks, counts, accumulate(counts), strict=True):
        if count:
            moved.append(task._replace(start=stop - count, stop=stop))
            good = arrays.rows(target, task.start, task.start + count)
            arrays.rows(beside, stop - count, stop)[...] = good
    beside.replace(target)
    return moved


def first_image(sources: Iterable[Path]) -> Image.Image | None:
    """Return the first image that can be opened, if any can."""
    for source in sources:
        for group in range(pq.read_metadata(source).num_row_groups):
            for example in raw.read_group(source, group):
                with suppress(BadImage):
                    return open_image(example.image)
    return None


def normalize_all(
    tasks: dict[str, list[Task]], settings: Preprocess, mean: np.ndarray, std: np.ndarray
) -> None:
    """Bring all groups from [0, 1] to their final values; for float16, note what it stands for.

    Raises:
        PipelineError: float16 has too few values for the levels.
    """
    shift, scale = np.zeros_like(mean), np.ones_like(std)
    if settings.normalize == "standardize":
        # a channel without contrast has nothing to divide by
        shift, scale = mean, np.where(std > 0, std, 1)
    if settings.dtype == "float16":
        values = levels(shift, scale)
        with np.errstate(over="ignore"):  # as infinity, which the check below finds
            stored = values.astype(np.float16)
        if min(len(np.unique(channel)) for channel in stored) < 256:
            raise PipelineError(
                f"preprocess: float16 cannot hold a standard deviation of {scale.min():.1g}. "
                "Set preprocess.dtype: float32"
            )
        for own in tasks.values():
            np.save(own[0].target.with_name("levels.npy"), values)
    if settings.normalize == "standardize":
        every = [task for own in tasks.values() for task in own]
        with mapper(len(every)) as run_all:
            list(run_all(standardize_group, every, repeat(shift), repeat(scale)))


def preprocess(raw_folder: Path, folder: Path, settings: Preprocess) -> dict:
    """Write the arrays of both splits, and info.json.

    Args:
        raw_folder: Holds train.parquet and test.parquet.
        folder: Gets train/, test/ and info.json.
        settings: Of params.yaml.

    Returns:
        What info.json holds: class names, image shape, normalization, statistics, and the
        number of images skipped.

    Raises:
        PipelineError: A class has no images, or images cannot be decoded or differ in size.
    """
    sources = {split: raw_folder / f"{split}.parquet" for split in SPLITS}
    source, classes = raw.describe(sources["train"])
    labels = {split: raw.labels(path) for split, path in sources.items()}
    raw.check_classes(source, classes, labels)
    # without a first one all are bad, whatever the shape, and decoding lists them
    first = first_image(sources.values()) or Image.new("L", (1, 1))
    height, width = settings.image_size or (first.height, first.width)
    shape = (height, width, 1 if first.mode in GREY_MODES else 3)
    decoding = (settings.image_size is not None, settings.dtype)
    with replacing(folder) as beside:
        try:
            tasks, decoded = decode_all(sources, beside, shape, *decoding)
        except ColourAmongGrey:
            shape = (height, width, 3)
            tasks, decoded = decode_all(sources, beside, shape, *decoding)
        bad = [text for split in SPLITS for group in decoded[split] for text in group.bad]
        if bad and settings.on_bad_image == "error":
            raise PipelineError(
                f"{source}: every file must be a sound image. Got {len(bad)} of another kind: "
                f"{'; '.join(bad)}. Replace or remove them, or set preprocess.on_bad_image: skip"
            )
        for split in SPLITS:
            labels[split] = labels[split][np.concatenate([g.good for g in decoded[split]])]
            np.save(beside / split / "labels.npy", labels[split])
        raw.check_classes(source, classes, labels)
        tasks = {
            split: close_gaps(tasks[split], decoded[split], settings.dtype) for split in SPLITS
        }
        mean, std = statistics(np.sum([group.histogram for group in decoded["train"]], axis=0))
        normalize_all(tasks, settings, mean, std)
        info = {
            "classes": classes,
            "image_shape": list(shape),
            "normalize": settings.normalize,
            "mean": mean.tolist(),
            "std": std.tolist(),
            "skipped": {split: sum(len(g.bad) for g in decoded[split]) for split in SPLITS},
        }
        write_json(beside / "info.json", info)
    return info


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--raw", type=Path, required=True)
    parser.add_argument("--arrays", type=Path, required=True)
    args = parser.parse_args(argv)
    params = load()

    info = preprocess(args.raw, args.arrays, params.preprocess)
    shape = " × ".join(map(str, info["image_shape"]))
    skipped = sum(info["skipped"].values())
    tail = f", {skipped} skipped as bad" if skipped else ""
    print(f"preprocess: {shape} images, {info['normalize']}{tail} -> {args.arrays}")


if __name__ == "__main__":
    run(main)
