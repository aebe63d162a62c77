"""Data: prepare CIFAR-10 with the stages, or random images of its shape, once per run."""

import os
from pathlib import Path

import numpy as np

from benchmarks.harness import REPOSITORY, process, python
from pipeline.core.files import write_json
from pipeline.data import arrays
from pipeline.data.preprocessor import Preprocessor

SPLITS = {"train": 50_000, "test": 10_000}
CLASSES = 10
PREPROCESS = ["-m", "pipeline.preprocess", "--raw", "data/raw", "--arrays", "data/arrays"]


def prepare(folder: Path, quick: bool = False) -> str:
    """Write params.yaml and data/arrays; return a description of the images.

    Args:
        folder: Of the run.
        quick: Whether to use random images even if CIFAR-10 is available.
    """
    cifar10 = "TFDS_DATA_DIR" in os.environ and not quick
    if not (folder / "data/arrays").exists():
        if cifar10:
            download(folder)
            process(python(*PREPROCESS), folder)
        else:
            _random(folder / "data/arrays")
    return "CIFAR-10" if cifar10 else "random images of CIFAR-10's shape"


def download(folder: Path) -> None:
    """Write params.yaml and data/raw of CIFAR-10, unless they exist."""
    if not (folder / "data/raw").exists():
        params = (REPOSITORY / "params.yaml").read_text()
        (folder / "params.yaml").write_text(params.replace("dataset: digits", "dataset: cifar10"))
        process(python("-m", "pipeline.download", "--raw", "data/raw"), folder)


def _random(folder: Path) -> None:
    random = np.random.default_rng(0)
    for split, count in SPLITS.items():
        (folder / split).mkdir(parents=True)
        np.save(folder / split / "images.npy", random.random((count, 32, 32, 3), np.float32))
        np.save(folder / split / "labels.npy", random.integers(CLASSES, size=count))
        arrays.seal(folder / split)
    classes = [str(label) for label in range(CLASSES)]
    preprocessor = Preprocessor(classes, [32, 32, 3], "unit", [0.5] * 3, [0.5] * 3)
    write_json(folder / "info.json", vars(preprocessor))
