"""Data: CIFAR-10 as the stages leave it, or random images of its shape; made once a run."""

import os
from pathlib import Path

import numpy as np

from benchmarks.harness import REPOSITORY, process, python
from pipeline.core.files import write_json
from pipeline.data import arrays
from pipeline.data.preprocessor import Preprocessor

PARTS = {"train": 50_000, "test": 10_000}
CLASSES = 10
PREPROCESS = ["-m", "pipeline.preprocess", "--raw", "data/raw", "--arrays", "data/arrays"]


def prepare(folder: Path, quick: bool = False) -> str:
    """Write params.yaml and data/arrays; return what the images are.

    Args:
        quick: Random images will do.
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
    """Write params.yaml and data/raw of CIFAR-10, unless they are there."""
    if not (folder / "data/raw").exists():
        params = (REPOSITORY / "params.yaml").read_text()
        (folder / "params.yaml").write_text(params.replace("dataset: digits", "dataset: cifar10"))
        process(python("-m", "pipeline.download", "--raw", "data/raw"), folder)


def _random(folder: Path) -> None:
    random = np.random.default_rng(0)
    for part, count in PARTS.items():
        (folder / part).mkdir(parents=True)
        np.save(folder / part / "images.npy", random.random((count, 32, 32, 3), np.float32))
        np.save(folder / part / "labels.npy", random.integers(CLASSES, size=count))
        arrays.seal(folder / part)
    classes = [str(label) for label in range(CLASSES)]
    info = Preprocessor(classes, [32, 32, 3], "unit", [0.5] * 3, [0.5] * 3)
    write_json(folder / "info.json", vars(info))
