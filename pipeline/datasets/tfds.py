"""TFDS: any image-classification data set of TensorFlow Datasets with a train part.

CIFAR-10: A. Krizhevsky (2009), "Learning Multiple Layers of Features from Tiny Images",
https://www.cs.toronto.edu/~kriz/cifar.html
"""

import logging
import threading
from collections.abc import Iterable, Iterator
from itertools import compress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import requests
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download.download_manager import (
    NonMatchingChecksumError as ChecksumError,
)

from pipeline import quiet
from pipeline.errors import PipelineError
from pipeline.raw import SET_APART, Dataset, Example, set_apart

# both log what their authors should know and our reader cannot use
for library in ("absl", "tensorflow"):
    logging.getLogger(library).setLevel(logging.ERROR)

WAY_OUT = "Set TFDS_DATA_DIR to a prepared copy, or `dataset: digits` to run offline"


def load(name: str, folder: str, test_share: float, test_seed: int) -> Dataset:
    """Return a data set from the prepared copy in TFDS_DATA_DIR, or download it.

    Without a test part, `test_share` of each class becomes it, drawn by `test_seed`.

    Raises:
        PipelineError: It has no `image` and `label` or no train part, or it has to be
            downloaded and cannot be.
    """
    builder = tfds.builder(name)
    _check_features(builder)
    if not builder.is_prepared():
        _download(builder)
    sizes = {split: part.num_examples for split, part in builder.info.splits.items()}
    if "train" not in sizes:
        raise PipelineError(
            f"{name}: must have a train split. It has {', '.join(sizes)}. "
            "Export it to a folder and use `dataset: folder`"
        )
    classes = list(builder.info.features["label"].names)
    source = f"TensorFlow Datasets {builder.info.full_name}"
    splits: dict[str, Iterable[Example]]
    if "test" in sizes:
        splits = {split: _examples(builder, split) for split in ("train", "test")}
    else:
        labels = np.array([example.label for example in _examples(builder, "train")])
        train, test = set_apart(source, classes, labels, test_share, test_seed)
        sizes = {"train": len(train), "test": len(test)}
        splits = {
            split: compress(_examples(builder, "train"), np.isin(np.arange(len(labels)), rows))
            for split, rows in (("train", train), ("test", test))
        }
        source += SET_APART.format("test split", 100 * test_share, test_seed)
    return Dataset(
        classes=classes,
        source=source,
        sizes={split: sizes[split] for split in ("train", "test")},
        splits=splits,
    )


def _check_features(builder: Any) -> None:
    features = dict(builder.info.features)
    if not (
        isinstance(features.get("image"), tfds.features.Image)
        and isinstance(features.get("label"), tfds.features.ClassLabel)
    ):
        raise PipelineError(
            f"{builder.name}: must have an `image` and a `label`. "
            f"It has {', '.join(sorted(features))}. "
            "Choose an image-classification data set of tensorflow.org/datasets"
        )


def _download(builder: Any) -> None:
    if builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
        raise PipelineError(f"{builder.name}: its licence wants it downloaded by hand. {WAY_OUT}")
    # TFDS itself would retry for minutes
    for host, url in {urlsplit(url).hostname: url for url in builder.url_infos}.items():
        if not _reachable(url):
            raise PipelineError(
                f"{builder.name}: {host} cannot be reached, and "
                f"{Path(builder.data_dir).absolute()} is no prepared copy. {WAY_OUT}"
            )
    try:
        builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(try_download_gcs=False)
        )
    except (requests.RequestException, tfds.download.DownloadError, ChecksumError) as error:
        raise PipelineError(f"{builder.name}: the download failed: {error}. {WAY_OUT}") from None


def _reachable(url: str, seconds: float = 6) -> bool:
    """Tell whether a server answers at all, in time; looking up a name alone can hang."""
    answers = []

    def ask() -> None:
        try:
            answers.append(requests.head(url, timeout=seconds).status_code)
        except requests.RequestException:
            return

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return bool(answers)


def _examples(builder: Any, split: str) -> Iterator[Example]:
    with quiet.imports():
        import tensorflow  # noqa: F401 (TFDS would import it itself, with noise)
    dataset = builder.as_dataset(
        split=split,
        batch_size=1024,  # an example at a time takes 50 times as long
        decoders={"image": tfds.decode.SkipDecoding()},
        read_config=tfds.ReadConfig(add_tfds_id=True),
    )
    for batch in tfds.as_numpy(dataset):
        ids = batch.get("id", batch["tfds_id"])
        for image, label, id in zip(batch["image"], batch["label"], ids, strict=True):
            yield Example(image, int(label), id.decode() if isinstance(id, bytes) else str(id))
