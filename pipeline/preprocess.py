"""Preprocess: decode every image into normalized arrays that can be memory-mapped.

Reads   data/raw/{train,test}.parquet
Writes  data/arrays/{train,test}/images.npy    (n, h, w, c) float32, normalized
        data/arrays/{train,test}/labels.npy    (n,) int64
        data/arrays/info.json                  class names, shape, normalization, statistics
Params  preprocess.normalize, preprocess.image_size
"""

import argparse
import io
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from itertools import accumulate, repeat
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
from PIL import Image, ImageOps
from tqdm import tqdm

from pipeline import arrays, raw
from pipeline.errors import PipelineError, run
from pipeline.files import replacing, write_json
from pipeline.params import load

GREY_MODES = ("1", "L", "LA")
COLOUR_MODES = ("RGB", "RGBA", "P", "PA", "CMYK", "YCbCr")


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


class ColourAmongGrey(Exception):
    """The first image is grey and a later one is not: all must be decoded in colour."""


def open_image(example: raw.Example) -> Image.Image:
    """Open an encoded image, turned the way its camera was held.

    Raises:
        PipelineError: It is no image, damaged, or of a kind with more than 8 bits.
    """
    try:
        image = Image.open(io.BytesIO(example.image))
        ImageOps.exif_transpose(image, in_place=True)
        image.load()
    except (OSError, SyntaxError, ValueError, RuntimeError, Image.DecompressionBombError) as error:
        raise PipelineError(
            f"{example.id}: cannot be read as an image: {error}. Replace or remove it"
        ) from None
    if image.mode not in GREY_MODES + COLOUR_MODES:
        raise PipelineError(
            f"{example.id}: must have 8 bits a channel. Got mode {image.mode}. Convert it"
        )
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
        PipelineError: See `open_image`; or another size without `resize`.
        ColourAmongGrey: c is 1, and the image has colour.
    """
    image = open_image(example)
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


def decode_group(task: Task) -> np.ndarray:
    """Write one group of images as float32 in [0, 1] and return its histogram.

    Returns:
        Pixel counts `(c, 256)` int64.
    """
    examples = raw.read_group(task.source, task.group)
    batch = np.stack([decode(e, task.shape, task.resize) for e in examples])  # (n, h, w, c)
    np.divide(batch, np.float32(255), out=arrays.rows(task.target, task.start, task.stop))
    return np.stack(
        [np.bincount(batch[..., c].ravel(), minlength=256) for c in range(task.shape[2])]
    )


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


def standardize_group(task: Task, mean: np.ndarray, std: np.ndarray) -> None:
    """Turn one group of images in [0, 1] into (pixel - mean) / std, in place."""
    rows = arrays.rows(task.target, task.start, task.stop)
    rows[...] = (rows - mean.astype(np.float32)) / std.astype(np.float32)


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


def plan(source: Path, target: Path, shape: tuple[int, int, int], resize: bool) -> list[Task]:
    """List the groups of a Parquet file, and create the arrays they go to."""
    metadata = pq.read_metadata(source)
    arrays.create(target / "images.npy", (metadata.num_rows, *shape))
    np.save(target / "labels.npy", pq.read_table(source, columns=["label"])["label"].to_numpy())
    sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    stops = list(accumulate(sizes))
    return [
        Task(source, group, target / "images.npy", stop - size, stop, shape, resize)
        for group, (size, stop) in enumerate(zip(sizes, stops, strict=True))
    ]


def decode_all(
    raw_folder: Path, folder: Path, shape: tuple[int, int, int], resize: bool
) -> tuple[list[Task], np.ndarray]:
    """Write both splits as float32 in [0, 1].

    Returns:
        The groups, and the histogram `(c, 256)` of the training images.
    """
    train, test = (
        plan(raw_folder / f"{split}.parquet", folder / split, shape, resize)
        for split in ("train", "test")
    )
    tasks = train + test
    with mapper(len(tasks)) as run_all:
        results = run_all(decode_group, tasks)
        histograms = list(tqdm(results, "decode", len(tasks), unit="group", disable=None))
    return tasks, np.sum(histograms[: len(train)], axis=0)


def preprocess(
    raw_folder: Path, folder: Path, normalize: str, image_size: list[int] | None
) -> dict:
    """Write the arrays of both splits, and info.json.

    Args:
        raw_folder: Holds train.parquet and test.parquet.
        folder: Gets train/, test/ and info.json.
        normalize: `unit` or `standardize`.
        image_size: `[h, w]` to resize to, or None: all images must be of one size.

    Returns:
        What info.json holds: class names, image shape, normalization and statistics.

    Raises:
        PipelineError: An image cannot be decoded, or sizes differ.
    """
    classes = raw.classes(raw_folder / "train.parquet")
    first = open_image(raw.read_group(raw_folder / "train.parquet", 0)[0])
    height, width = image_size or (first.height, first.width)
    channels = 1 if first.mode in GREY_MODES else 3
    resize = image_size is not None
    with replacing(folder) as beside:
        shape = (height, width, channels)
        try:
            tasks, histogram = decode_all(raw_folder, beside, shape, resize)
        except ColourAmongGrey:
            shape = (height, width, 3)
            tasks, histogram = decode_all(raw_folder, beside, shape, resize)
        mean, std = statistics(histogram)
        if normalize == "standardize":
            # a channel without contrast has nothing to divide by
            scale = np.where(std > 0, std, 1)
            with mapper(len(tasks)) as run_all:
                list(run_all(standardize_group, tasks, repeat(mean), repeat(scale)))
        info = {
            "classes": classes,
            "image_shape": list(shape),
            "normalize": normalize,
            "mean": mean.tolist(),
            "std": std.tolist(),
        }
        write_json(beside / "info.json", info)
    return info


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--raw", type=Path, required=True)
    parser.add_argument("--arrays", type=Path, required=True)
    args = parser.parse_args(argv)
    params = load()

    info = preprocess(
        args.raw, args.arrays, params.preprocess.normalize, params.preprocess.image_size
    )
    shape = " × ".join(map(str, info["image_shape"]))
    print(f"preprocess: {shape} images, {info['normalize']} -> {args.arrays}")


if __name__ == "__main__":
    run(main)
