"""Photographs: measure how long 3,000 JPEG files take to become arrays of 224×224 pixels.

cnn-pipeline is the whole process of the stage preprocess, which writes and checksums the arrays,
with dtype: uint8, as `make photos` sets it.
PyTorch is a DataLoader with two workers that use Pillow, and Keras is image_dataset_from_directory;
both read each photograph once into an array in memory, timed without their import.

The photographs are random crops of the two that scikit-learn contains, 500×375 pixels.
"""

import shutil
import time
from collections.abc import Iterable
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from benchmarks.harness import (
    OURS,
    REPOSITORY,
    Command,
    Plan,
    Sample,
    Variant,
    Worker,
    process,
    python,
    serve,
)
from pipeline.config import yaml_reader
from pipeline.core import native_log

COUNT = 3_000
QUICK_COUNT = 300
SIZE = (500, 375)  # width and height in pixels
SIDE = 224
BATCH_SIZE = 32
WORKERS = 2  # of PyTorch's DataLoader
DOWNLOAD = python("-m", "pipeline.download", "--raw", "data/raw")
PREPROCESS = python("-m", "pipeline.preprocess", "--raw", "data/raw", "--arrays", "data/arrays")


def variants(plan: Plan) -> dict[str, Variant]:
    """Write the photographs, and return each way to read them."""
    count = QUICK_COUNT if plan.quick else COUNT
    photographs, folder = plan.folder / "photographs", plan.folder / "project"
    write(photographs, count)
    folder.mkdir()
    params = yaml_reader.parse((REPOSITORY / "params.yaml").read_text("utf-8"))
    preprocess = params["preprocess"] | {"image_size": [SIDE, SIDE], "dtype": "uint8"}
    params |= {"dataset": "folder", "folder": str(photographs), "preprocess": preprocess}
    (folder / "params.yaml").write_text(yaml.safe_dump(params), "utf-8")
    process(DOWNLOAD, folder)

    def remove() -> None:  # as DVC does before a stage runs
        shutil.rmtree(folder / "data/arrays", ignore_errors=True)

    named: dict[str, Variant] = {
        OURS: Command(folder, PREPROCESS, before=remove),
        "Keras's image_dataset_from_directory": Worker(keras, photographs, count),
    }
    if find_spec("torch"):
        named[f"PyTorch's DataLoader, {WORKERS} workers"] = Worker(pytorch, photographs, count)
    return named


def write(folder: Path, count: int) -> None:
    """Write JPEG files of two classes, the same in every run."""
    from sklearn.datasets import load_sample_images

    random = np.random.default_rng(0)
    width, height = SIZE
    for label, pixels in enumerate(load_sample_images().images):  # (427, 640, 3)
        (folder / str(label)).mkdir(parents=True)
        for number in range(count // 2):
            top = random.integers(pixels.shape[0] - height + 1)
            left = random.integers(pixels.shape[1] - width + 1)
            crop = pixels[top : top + height, left : left + width]
            Image.fromarray(crop).save(folder / str(label) / f"{number}.jpg", quality=90)


def keras(pipe: Connection, folder: Path, count: int) -> None:
    """Read all photographs with Keras, from [0, 255] as it yields them."""
    with native_log.silenced():
        import keras

    def batches() -> Iterable[tuple[Any, Any]]:
        return keras.utils.image_dataset_from_directory(
            folder, image_size=(SIDE, SIDE), batch_size=BATCH_SIZE, verbose=False
        )

    serve_arrays(pipe, batches, (count, SIDE, SIDE, 3))


def pytorch(pipe: Connection, folder: Path, count: int) -> None:
    """Read all photographs with PyTorch and Pillow."""
    from benchmarks.pytorch import Photographs, loader

    def batches() -> Iterable[tuple[Any, Any]]:
        return loader(Photographs(folder, SIDE), BATCH_SIZE, WORKERS)

    serve_arrays(pipe, batches, (count, 3, SIDE, SIDE))


def serve_arrays(pipe: Connection, batches: Any, shape: tuple[int, ...]) -> None:
    """Respond to the requests of a `harness.Worker` by copying all batches into an array."""

    def read() -> Sample:
        start = time.perf_counter()
        images, labels = np.empty(shape, np.float32), np.empty(shape[0], np.int64)
        end = 0
        for batch, classes in batches():
            begin, end = end, end + len(batch)
            images[begin:end], labels[begin:end] = batch, classes
        return {"s": time.perf_counter() - start}

    def warm_up() -> dict[str, str]:
        read()
        return {}

    serve(pipe, warm_up, read)
