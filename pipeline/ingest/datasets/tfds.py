"""TFDS: any image-classification data set of TensorFlow Datasets with a train split.

CIFAR-10: A. Krizhevsky (2009), "Learning Multiple Layers of Features from Tiny Images",
https://www.cs.toronto.edu/~kriz/cifar.html
"""

import errno
import logging
import re
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
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

from pipeline.core import native_log
from pipeline.core.errors import PipelineError
from pipeline.ingest.parquet import HELD_OUT, Dataset, Example, hold_out_test

# both log what their authors should know and our reader cannot use
for library in ("absl", "tensorflow"):
    logging.getLogger(library).setLevel(logging.ERROR)

OUT_OF_SERVICE = (500, 502, 503, 504)
RETRIES = 3  # of TFDS, with pauses that double: its own 10 take minutes
SECONDS_OF_SILENCE = 20  # after which a server that has answered is given up
BATCH = 256  # examples read at a time
# TFDS reads so many files in turn, so many rows of each; given, since this decides the order.
FILES, ROWS = 16, 16
VALIDATION = ("validation", "valid", "val")  # names of such a split in TFDS
WAY_OUT = "Set TFDS_DATA_DIR to a prepared copy, or `dataset: digits` to run offline"


def load(name: str, folder: str, test_share: float, test_seed: int) -> Dataset:
    """Return a data set from the prepared copy in TFDS_DATA_DIR, or download it.

    Without a labelled test split, the validation split becomes the test split. Without either,
    `test_share` of each class is held out, sampled by `test_seed`.

    Raises:
        PipelineError: It has no `image` and `label` or no labelled train split, its files are of
            a format that cannot be read, or it has to be downloaded and cannot be.
    """
    builder = tfds.builder(name)
    _check_features(name, builder)
    if not builder.is_prepared():
        _download(name, builder)
    _check_format(name, builder)
    sizes = {split: part.num_examples for split, part in builder.info.splits.items()}
    if "train" not in sizes:
        raise PipelineError(
            f"{name}: must have a train split. It has {', '.join(sizes)}. "
            "Export it to a folder and use `dataset: folder`"
        )
    classes = list(builder.info.features["label"].names)
    source = f"TensorFlow Datasets {builder.info.full_name}"
    parts, unlabelled = _parts(name, builder)
    if "validation" in unlabelled:
        source += " (no labelled validation split)"
    missing = "labelled test split" if "test" in unlabelled else "test split"
    if "test" not in parts and "validation" in parts:
        parts["test"] = parts.pop("validation")
        source += f" (no {missing}: {parts['test']} is the test split)"
    splits: dict[str, Iterable[Example]]
    if "test" in parts:
        sizes = {part: sizes[split] for part, split in parts.items()}
        splits = {part: _examples(name, builder, split) for part, split in parts.items()}
    else:
        labels = _labels(name, builder, "train")
        if (labels < 0).any():
            raise _unlabelled(name, "train")
        train, test = hold_out_test(source, classes, labels, test_share, test_seed)
        sizes = {"train": len(train), "test": len(test)}
        splits = {
            part: compress(_examples(name, builder, "train"), np.isin(np.arange(len(labels)), rows))
            for part, rows in (("train", train), ("test", test))
        }
        source += HELD_OUT.format(missing, 100 * test_share, test_seed)
    return Dataset(classes=classes, source=source, sizes=sizes, splits=splits)


def _parts(name: str, builder: Any) -> tuple[dict[str, str], list[str]]:
    """Return which split of TFDS is train, validation and test, and which have no labels."""
    parts = {"train": "train"}
    unlabelled = []
    for part, names in (("validation", VALIDATION), ("test", ["test"])):
        for split in (split for split in names if split in builder.info.splits):
            if (_labels(name, builder, split) < 0).any():
                unlabelled.append(part)
            else:
                parts[part] = split
    return parts, unlabelled


def _check_features(name: str, builder: Any) -> None:
    features = dict(builder.info.features)
    if not (
        isinstance(features.get("image"), tfds.features.Image)
        and isinstance(features.get("label"), tfds.features.ClassLabel)
    ):
        raise PipelineError(
            f"{name}: must have an `image` and a `label`. "
            f"It has {', '.join(sorted(features))}. "
            "Choose an image-classification data set of tensorflow.org/datasets"
        )


def _check_format(name: str, builder: Any) -> None:
    readable = ["tfrecord", "parquet"]
    if find_spec("array_record"):  # which TFDS brings on Linux alone
        readable.append("array_record")
    if (received := builder.info.file_format.value) not in readable:
        raise PipelineError(
            f"{name}: files of {Path(builder.data_dir).absolute()} must be "
            f"{' or '.join(readable)} here. Got {received}. Set TFDS_DATA_DIR to another folder"
        )


def _download(name: str, builder: Any) -> None:
    if builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
        raise PipelineError(f"{name}: its licence wants it downloaded by hand. {WAY_OUT}")
    # TFDS itself would retry for minutes
    for host, url in {urlsplit(url).hostname: url for url in (builder.url_infos or ())}.items():
        if problem := _problem(url):
            raise PipelineError(
                f"{name}: {host} {problem}, and "
                f"{Path(builder.data_dir).absolute()} is no prepared copy. {WAY_OUT}"
            )
    downloader.MAX_RETRIES = RETRIES
    try:
        with _silence_ends():
            builder.download_and_prepare(
                download_config=tfds.download.DownloadConfig(try_download_gcs=False),
                file_format="tfrecord",
            )
    except (requests.RequestException, tfds.download.DownloadError, ChecksumError) as error:
        raise PipelineError(f"{name}: the download failed: {error}. {WAY_OUT}") from None
    except OSError as error:
        # TFDS asks before it begins, where it knows what it will need
        if error.errno not in (errno.ENOSPC, errno.EDQUOT) and "disk space" not in str(error):
            raise
        raise PipelineError(
            f"{name}: {Path(builder.data_dir).absolute()}: {error}. Free some space, "
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


def _examples(name: str, builder: Any, split: str) -> Iterator[Example]:
    wanted = {"image", "label", "id"} & set(builder.info.features)
    for row in _rows(name, builder, split, wanted):
        if row["label"] < 0:
            raise _unlabelled(name, split)
        id = row.get("id", row["tfds_id"])
        id = id.decode() if isinstance(id, bytes) else str(id)
        yield Example(row["image"], int(row["label"]), id)


def _labels(name: str, builder: Any, split: str) -> np.ndarray:
    """Return the labels `(n,)` int64 of a split, negative where there is none."""
    return np.array([row["label"] for row in _rows(name, builder, split, {"label"})], np.int64)


def _unlabelled(name: str, split: str) -> PipelineError:
    return PipelineError(
        f"{name}: every image of {split} must have a label. Got -1. Choose another data set, or "
        "label the images, in folders, and use `dataset: folder`"
    )


def _rows(name: str, builder: Any, split: str, wanted: set[str]) -> Iterator[dict[str, Any]]:
    """Yield the wanted features of each example, images encoded, with its `tfds_id`.

    Others are not decoded: masks and boxes would be padded to the largest, and take gigabytes.
    """
    with native_log.silenced():  # TFDS would import it itself, with noise
        import tensorflow as tf
    errors = tf.errors
    damage = (errors.DataLossError, errors.InvalidArgumentError, errors.NotFoundError,
              errors.FailedPreconditionError)  # fmt: skip
    skip = {"image": tfds.decode.SkipDecoding()} if "image" in wanted else None
    decoding = tfds.decode.PartialDecoding(wanted, skip)
    in_turn = 1 if builder.info.disable_shuffling else FILES
    read = _array_record if builder.info.file_format.value == "array_record" else _tfrecord
    try:
        yield from read(builder, split, decoding, in_turn)
    except damage as error:
        # the first line, without the place in TensorFlow's graph
        reason = re.sub(r"\{\{.*?\}\} ?| ?\[Op:.*", "", error.message.split("\n")[0])
        raise PipelineError(
            f"{name}: {split} of {Path(builder.data_dir).absolute()} is damaged: "
            f"{reason}. Delete that folder, and it is fetched again; or set TFDS_DATA_DIR "
            "to a sound copy"
        ) from None


def _tfrecord(builder: Any, split: str, decoding: Any, in_turn: int) -> Iterator[dict[str, Any]]:
    dataset = builder.as_dataset(
        split=split,
        batch_size=BATCH,  # an example at a time takes 50 times as long
        decoders=decoding,
        read_config=tfds.ReadConfig(
            add_tfds_id=True,
            try_autocache=False,  # each is read once
            interleave_cycle_length=in_turn,
            interleave_block_length=ROWS,
        ),
    )
    for batch in tfds.as_numpy(dataset):
        for values in zip(*batch.values(), strict=True):
            yield dict(zip(batch, values, strict=True))


def _array_record(
    builder: Any, split: str, decoding: Any, in_turn: int
) -> Iterator[dict[str, Any]]:
    """Yield what `_tfrecord` yields of the same data set, in the same order."""
    import tensorflow as tf

    source = builder.as_data_source(
        split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
    )
    features = decoding.extract_features(builder.info.features)
    files = builder.info.splits[split].file_instructions
    starts = np.cumsum([0, *(file.take for file in files)])
    order = tf.data.Dataset.from_tensor_slices((starts[:-1], starts[1:])).interleave(
        tf.data.Dataset.range, cycle_length=in_turn, block_length=ROWS
    )
    for rows in order.batch(BATCH).as_numpy_iterator():
        try:
            records = source.__getitems__(rows.tolist())
        except RuntimeError as error:  # all that this reader raises, missing files included
            raise tf.errors.DataLossError(None, None, str(error)) from None
        for row, record in zip(rows, records, strict=True):
            file = np.searchsorted(starts, row, side="right") - 1
            called = files[file].basename().replace(".array_record-", ".tfrecord-")
            example = features.deserialize_example_np(record, decoders=decoding.decoders)
            yield {**example, "tfds_id": f"{called}__{row - starts[file]}"}
