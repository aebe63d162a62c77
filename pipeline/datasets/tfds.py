"""TFDS: any image-classification data set of TensorFlow Datasets with a train part.

CIFAR-10: A. Krizhevsky (2009), "Learning Multiple Layers of Features from Tiny Images",
https://www.cs.toronto.edu/~kriz/cifar.html
"""

import errno
import logging
import re
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import compress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import requests
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download import downloader
from tensorflow_datasets.core.download.download_manager import (
    NonMatchingChecksumError as ChecksumError,
)

from pipeline import quiet
from pipeline.errors import PipelineError
from pipeline.raw import SET_APART, Dataset, Example, set_apart

# both log what their authors should know and our reader cannot use
for library in ("absl", "tensorflow"):
    logging.getLogger(library).setLevel(logging.ERROR)

OUT_OF_SERVICE = (500, 502, 503, 504)
RETRIES = 3  # of TFDS, with pauses that double: its own 10 take minutes
SECONDS_OF_SILENCE = 20  # after which a server that has answered is given up
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
        if problem := _problem(url):
            raise PipelineError(
                f"{builder.name}: {host} {problem}, and "
                f"{Path(builder.data_dir).absolute()} is no prepared copy. {WAY_OUT}"
            )
    downloader.MAX_RETRIES = RETRIES
    try:
        with _silence_ends():
            builder.download_and_prepare(
                download_config=tfds.download.DownloadConfig(try_download_gcs=False)
            )
    except (requests.RequestException, tfds.download.DownloadError, ChecksumError) as error:
        raise PipelineError(f"{builder.name}: the download failed: {error}. {WAY_OUT}") from None
    except OSError as error:
        # TFDS asks before it begins, where it knows what it will need
        if error.errno not in (errno.ENOSPC, errno.EDQUOT) and "disk space" not in str(error):
            raise
        raise PipelineError(
            f"{builder.name}: {Path(builder.data_dir).absolute()}: {error}. Free some space, "
            "or set TFDS_DATA_DIR to a folder on another disk"
        ) from None


@contextmanager
def _silence_ends() -> Iterator[None]:
    """Give a server up that falls silent in the block, for which TFDS would wait for ever."""
    adapter: Any = requests.adapters.HTTPAdapter
    send = adapter.send

    def send_in_time(self: Any, request: Any, **options: Any) -> requests.Response:
        return send(self, request, **{**options, "timeout": SECONDS_OF_SILENCE})

    adapter.send = send_in_time
    try:
        yield
    finally:
        adapter.send = send


def _problem(url: str, seconds: float = 6) -> str:
    """Return what keeps a server from answering in time; looking up a name alone can hang."""
    answers: list[int] = []

    def ask() -> None:
        try:
            answers.append(requests.head(url, timeout=seconds).status_code)
        except requests.RequestException:
            return

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    if not answers:
        return "cannot be reached"
    # other refusals may be of the question alone, and are left to the download
    return f"is out of service (status {answers[0]})" if answers[0] in OUT_OF_SERVICE else ""


def _examples(builder: Any, split: str) -> Iterator[Example]:
    with quiet.imports():  # TFDS would import it itself, with noise
        import tensorflow as tf
    errors = tf.errors
    damage = (errors.DataLossError, errors.InvalidArgumentError, errors.NotFoundError,
              errors.FailedPreconditionError)  # fmt: skip
    try:
        yield from _read(builder, split)
    except damage as error:
        # the first line, without the place in TensorFlow's graph
        reason = re.sub(r"\{\{.*?\}\} ?| ?\[Op:.*", "", error.message.split("\n")[0])
        raise PipelineError(
            f"{builder.name}: {split} of {Path(builder.data_dir).absolute()} is damaged: "
            f"{reason}. Delete that folder, and it is fetched again; or set TFDS_DATA_DIR "
            "to a sound copy"
        ) from None


def _read(builder: Any, split: str) -> Iterator[Example]:
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
