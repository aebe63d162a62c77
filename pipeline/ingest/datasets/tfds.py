"""TFDS: image-classification data sets of TensorFlow Datasets.

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
from pipeline.core.splitting import Grouping
from pipeline.ingest.parquet import HELD_OUT, Dataset, Example, hold_out_test

# their warnings are for the developers of these libraries, not for the user
for library in ("absl", "tensorflow"):
    logging.getLogger(library).setLevel(logging.ERROR)

OUT_OF_SERVICE = (500, 502, 503, 504)  # HTTP status codes
MAX_RETRIES = 3  # TFDS retries 10 times, with pauses that double: several minutes
READ_TIMEOUT = 20  # seconds without data after which a download is aborted
BATCH_SIZE = 256  # examples read at a time
# Number of files that TFDS interleaves, and of consecutive rows from each. Set here because they
# determine the order of the examples.
CYCLE_LENGTH, BLOCK_LENGTH = 16, 16
VALIDATION_SPLITS = ("validation", "valid", "val")  # names of validation splits in TFDS
REMEDY = "Set TFDS_DATA_DIR to a prepared copy, or `dataset: digits` to run offline"


def load(
    name: str, folder: str, test_share: float, test_seed: int, grouping: Grouping | None = None
) -> Dataset:
    """Return a data set from the prepared copy in TFDS_DATA_DIR, or download it.

    Without a labelled test split, the validation split becomes the test split. Without either, a
    test split is held out.

    Args:
        name: Name in TensorFlow Datasets, such as `cifar10` or `emnist/letters`.
        folder: Not used; a parameter of every data set.
        test_share: Share of each class to hold out, in (0, 1).
        test_seed: Seed that selects the images to hold out, in [0, 2**32).
        grouping: Which images are held out together, by their ids.

    Raises:
        PipelineError: The data set has no `image` and `label`, no labelled train split or files in
            an unsupported format, or its download fails.
    """
    builder = tfds.builder(name)
    _check_features(name, builder)
    if not builder.is_prepared():
        _download(name, builder)
    _check_format(name, builder)
    sizes = {split: info.num_examples for split, info in builder.info.splits.items()}
    if "train" not in sizes:
        raise PipelineError(
            f"{name}: must have a train split. Got {', '.join(sizes)}. "
            "Export it to a folder and use `dataset: folder`"
        )
    classes = list(builder.info.features["label"].names)
    source = f"TensorFlow Datasets {builder.info.full_name}"
    source_splits, unlabelled = _source_splits(name, builder)
    if "validation" in unlabelled:
        source += " (no labelled validation split)"
    missing = "labelled test split" if "test" in unlabelled else "test split"
    if "test" not in source_splits and "validation" in source_splits:
        source_splits["test"] = source_splits.pop("validation")
        source += f" (no {missing}: {source_splits['test']} is the test split)"
    splits: dict[str, Iterable[Example]]
    if "test" in source_splits:
        sizes = {split: sizes[origin] for split, origin in source_splits.items()}
        splits = {
            split: _examples(name, builder, origin) for split, origin in source_splits.items()
        }
    else:
        labels = _labels(name, builder, "train")
        if (labels < 0).any():
            raise _unlabelled(name, "train")
        groups = None
        if grouping and any(grouping):
            groups = grouping.groups(source, _ids(name, builder, "train"), [])
        train, test = hold_out_test(source, classes, labels, test_share, test_seed, groups)
        sizes = {"train": len(train), "test": len(test)}
        splits = {
            split: compress(
                _examples(name, builder, "train"), np.isin(np.arange(len(labels)), rows)
            )
            for split, rows in (("train", train), ("test", test))
        }
        source += HELD_OUT.format(missing, 100 * test_share, test_seed)
    return Dataset(classes=classes, source=source, sizes=sizes, splits=splits)


def _source_splits(name: str, builder: Any) -> tuple[dict[str, str], list[str]]:
    """Return the TFDS name of the train, validation and test splits, and the unlabelled splits."""
    source_splits = {"train": "train"}
    unlabelled = []
    for split, origins in (("validation", VALIDATION_SPLITS), ("test", ["test"])):
        for origin in origins:
            if origin not in builder.info.splits:
                continue
            if (_labels(name, builder, origin) < 0).any():
                unlabelled.append(split)
            else:
                source_splits[split] = origin
    return source_splits, unlabelled


def _check_features(name: str, builder: Any) -> None:
    features = dict(builder.info.features)
    if not (
        isinstance(features.get("image"), tfds.features.Image)
        and isinstance(features.get("label"), tfds.features.ClassLabel)
    ):
        raise PipelineError(
            f"{name}: must have an `image` and a `label`. "
            f"Got {', '.join(sorted(features))}. "
            "Choose an image-classification data set of tensorflow.org/datasets"
        )


def _check_format(name: str, builder: Any) -> None:
    readable = ["tfrecord", "parquet"]
    if find_spec("array_record"):  # TFDS installs it on Linux only
        readable.append("array_record")
    if (received := builder.info.file_format.value) not in readable:
        raise PipelineError(
            f"{name}: files of {Path(builder.data_dir).absolute()} must be "
            f"{' or '.join(readable)} here. Got {received}. Set TFDS_DATA_DIR to another folder"
        )


def _download(name: str, builder: Any) -> None:
    if builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
        raise PipelineError(f"{name}: must be downloaded by hand. {REMEDY}")
    # checked first, because TFDS retries for minutes
    for host, url in {urlsplit(url).hostname: url for url in (builder.url_infos or ())}.items():
        if problem := _problem(url):
            raise PipelineError(
                f"{name}: {host} {problem}, and "
                f"{Path(builder.data_dir).absolute()} is not a prepared copy. {REMEDY}"
            )
    downloader.MAX_RETRIES = MAX_RETRIES
    try:
        with _read_timeout():
            builder.download_and_prepare(
                download_config=tfds.download.DownloadConfig(try_download_gcs=False),
                file_format="tfrecord",
            )
    except (requests.RequestException, tfds.download.DownloadError, ChecksumError) as error:
        raise PipelineError(f"{name}: the download failed: {error}. {REMEDY}") from None
    except OSError as error:
        # where TFDS knows the size, it checks for enough disk space before it downloads
        if error.errno not in (errno.ENOSPC, errno.EDQUOT) and "disk space" not in str(error):
            raise
        raise PipelineError(
            f"{name}: {Path(builder.data_dir).absolute()}: {error}. Free some space, "
            "or set TFDS_DATA_DIR to a folder on another disk"
        ) from None


@contextmanager
def _read_timeout() -> Iterator[None]:
    """Set a timeout for requests in the block; TFDS sets none and would wait forever."""
    adapter: Any = requests.adapters.HTTPAdapter
    send = adapter.send

    def send_with_timeout(self: Any, request: Any, **options: Any) -> requests.Response:
        return send(self, request, **{**options, "timeout": READ_TIMEOUT})

    adapter.send = send_with_timeout
    try:
        yield
    finally:
        adapter.send = send


def _problem(url: str, seconds: float = 6) -> str:
    """Return why a server cannot be used, or an empty text if it can be."""
    statuses: list[int] = []

    def request() -> None:
        try:
            statuses.append(requests.head(url, timeout=seconds).status_code)
        except requests.RequestException:
            return

    # in a thread, because the timeout of a request does not include the DNS lookup
    thread = threading.Thread(target=request, daemon=True)
    thread.start()
    thread.join(seconds)
    if not statuses:
        return "cannot be reached"
    # other error codes may concern HEAD requests only; the download will tell
    return f"is out of service (status {statuses[0]})" if statuses[0] in OUT_OF_SERVICE else ""


def _examples(name: str, builder: Any, split: str) -> Iterator[Example]:
    features = {"image", "label", "id"} & set(builder.info.features)
    for row in _rows(name, builder, split, features):
        if row["label"] < 0:
            raise _unlabelled(name, split)
        yield Example(row["image"], int(row["label"]), _id(row))


def _id(row: dict[str, Any]) -> str:
    id = row.get("id", row["tfds_id"])
    return id.decode() if isinstance(id, bytes) else str(id)


def _ids(name: str, builder: Any, split: str) -> list[str]:
    """Return the id of each example of a split."""
    features = {"id", "label"} & set(builder.info.features)
    return [_id(row) for row in _rows(name, builder, split, features)]


def _labels(name: str, builder: Any, split: str) -> np.ndarray:
    """Return the labels `(n,)` int64 of a split; -1 is a missing label."""
    return np.array([row["label"] for row in _rows(name, builder, split, {"label"})], np.int64)


def _unlabelled(name: str, split: str) -> PipelineError:
    return PipelineError(
        f"{name}: every image of {split} must have a label. Got -1. Choose another data set, or "
        "sort the images into class folders and use `dataset: folder`"
    )


def _rows(name: str, builder: Any, split: str, features: set[str]) -> Iterator[dict[str, Any]]:
    """Yield `features` and `tfds_id` of each example; images stay encoded.

    Other features are not decoded: masks and boxes would be padded to the largest, and take
    gigabytes.
    """
    with native_log.silenced():  # TFDS would import TensorFlow with its log output
        import tensorflow as tf
    errors = tf.errors
    damaged = (errors.DataLossError, errors.InvalidArgumentError, errors.NotFoundError,
               errors.FailedPreconditionError)  # fmt: skip
    decoders = {"image": tfds.decode.SkipDecoding()} if "image" in features else None
    decoding = tfds.decode.PartialDecoding(features, decoders)
    cycle_length = 1 if builder.info.disable_shuffling else CYCLE_LENGTH
    is_array_record = builder.info.file_format.value == "array_record"
    read = _read_array_record if is_array_record else _read_tfrecord
    try:
        yield from read(builder, split, decoding, cycle_length)
    except damaged as error:
        # the first line, without the names of TensorFlow operations
        reason = re.sub(r"\{\{.*?\}\} ?| ?\[Op:.*", "", error.message.split("\n")[0])
        raise PipelineError(
            f"{name}: {split} of {Path(builder.data_dir).absolute()} is damaged: "
            f"{reason}. Delete that folder to download it again, or set TFDS_DATA_DIR to an "
            "intact copy"
        ) from None


def _read_tfrecord(
    builder: Any, split: str, decoding: Any, cycle_length: int
) -> Iterator[dict[str, Any]]:
    """Yield the examples of a split from TFRecord or Parquet files."""
    dataset = builder.as_dataset(
        split=split,
        batch_size=BATCH_SIZE,  # reading single examples takes 50 times as long
        decoders=decoding,
        read_config=tfds.ReadConfig(
            add_tfds_id=True,
            try_autocache=False,  # each example is read once
            interleave_cycle_length=cycle_length,
            interleave_block_length=BLOCK_LENGTH,
        ),
    )
    for batch in tfds.as_numpy(dataset):
        for values in zip(*batch.values(), strict=True):
            yield dict(zip(batch, values, strict=True))


def _read_array_record(
    builder: Any, split: str, decoding: Any, cycle_length: int
) -> Iterator[dict[str, Any]]:
    """Yield the same examples in the same order as `_read_tfrecord`, from ArrayRecord files."""
    import tensorflow as tf

    source = builder.as_data_source(
        split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
    )
    features = decoding.extract_features(builder.info.features)
    files = builder.info.splits[split].file_instructions
    starts = np.cumsum([0, *(file.take for file in files)])
    order = tf.data.Dataset.from_tensor_slices((starts[:-1], starts[1:])).interleave(
        tf.data.Dataset.range, cycle_length=cycle_length, block_length=BLOCK_LENGTH
    )
    for rows in order.batch(BATCH_SIZE).as_numpy_iterator():
        try:
            records = source.__getitems__(rows.tolist())
        except RuntimeError as error:  # raised for any error, including missing files
            raise tf.errors.DataLossError(None, None, str(error)) from None
        for row, record in zip(rows, records, strict=True):
            file = np.searchsorted(starts, row, side="right") - 1
            file_name = files[file].basename().replace(".array_record-", ".tfrecord-")
            example = features.deserialize_example_np(record, decoders=decoding.decoders)
            yield {**example, "tfds_id": f"{file_name}__{row - starts[file]}"}
