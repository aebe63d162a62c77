"""Raw data: encoded images with labels, one Parquet file a split.

Columns `image` (struct of `bytes` and `path`), `label` (int64) and `id` (string), with the
class names where Hugging Face `datasets` keeps them, so that `datasets.load_dataset`,
`pandas.read_parquet` and DuckDB all read the file as it is.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from pipeline.core.errors import CONTROL, PipelineError, first_few
from pipeline.core.files import atomic_path, require_file
from pipeline.core.splitting import stratified_split

# Images written and decoded at a time: the unit of parallel work, and of memory.
GROUP_ROWS = 256
GROUP_BYTES = 2**26

# Follows the source where a data set brings no test split: what is missing, per cent, seed.
HELD_OUT = " (no {}: {:g} % of the images held out as test split, seed {})"


# What a browser takes for the end of a script.
HTML = re.compile("</|<!--")


class Example(NamedTuple):
    image: bytes
    """An encoded image file: PNG, JPEG, …"""
    label: int
    """Index into the class names"""
    id: str
    """Names the image at its source"""


class Dataset(NamedTuple):
    classes: list[str]
    source: str
    """Where the images come from, for people"""
    sizes: dict[str, int]
    """Number of examples of each split"""
    splits: Mapping[str, Iterable[Example]]
    """train, test and, where the data set brings one, validation; read once and in order"""


def write(folder: Path, dataset: Dataset) -> None:
    """Write `folder`/train.parquet and test.parquet; the same examples give the same bytes.

    A validation split follows the training images, in row groups of its own.

    Raises:
        PipelineError: A class's name cannot be shown, a label is no index into the names, or a
            split is empty or shorter than said.
    """
    check_names(dataset.source, dataset.classes)
    features = {
        "image": {"_type": "Image"},
        "label": {"_type": "ClassLabel", "names": dataset.classes},
        "id": {"_type": "Value", "dtype": "string"},
    }
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    fields = pa.schema([("image", image), ("label", pa.int64()), ("id", pa.string())])
    metadata = {
        "huggingface": json.dumps({"info": {"features": features}}),
        "source": dataset.source,
    }
    with atomic_path(folder) as beside:
        beside.mkdir()
        for file in (split for split in dataset.splits if split != "validation"):
            splits, own = [file], metadata
            if file == "train" and "validation" in dataset.splits:
                splits = ["train", "validation"]
                own = {**metadata, "validation": str(dataset.sizes["validation"])}
            # images are compressed as they are; a second time costs time and saves nothing
            with pq.ParquetWriter(
                beside / f"{file}.parquet", fields.with_metadata(own), compression="none"
            ) as writer:
                for split in splits:
                    _write_split(writer, split, dataset)


def _write_split(writer: pq.ParquetWriter, split: str, dataset: Dataset) -> None:
    size = dataset.sizes[split]
    bar = tqdm(dataset.splits[split], split, size, unit="image", disable=None)
    num_rows = 0
    for group in _groups(bar):
        _check_labels(group, len(dataset.classes), split)
        images = [{"bytes": e.image, "path": e.id} for e in group]
        columns = [images, [e.label for e in group], [e.id for e in group]]
        arrays = [pa.array(c, f.type) for c, f in zip(columns, writer.schema, strict=True)]
        writer.write_table(pa.Table.from_arrays(arrays, schema=writer.schema))
        num_rows += len(group)
    if not num_rows:
        raise PipelineError(f"{dataset.source}: {split} holds no images")
    if num_rows != size:
        raise PipelineError(
            f"{dataset.source}: {split} must hold {size} images. Got {num_rows}. "
            "Fetch the data set again"
        )


def check_names(source: str, classes: list[str]) -> None:
    """Check that class names do no harm where they are shown: on terminals and in pages.

    Raises:
        PipelineError: One is empty, or holds control characters or what ends a script in HTML,
            since `dvc plots show` writes them into one as they are.
    """
    if unsafe := [n for n in classes if not n.strip() or CONTROL.search(n) or HTML.search(n)]:
        raise PipelineError(
            f"{source}: names of classes must be text without control characters, `</` and "
            f"`<!--`. Got {first_few([repr(n) for n in unsafe])}. Rename them"
        )


def _groups(examples: Iterable[Example]) -> Iterator[list[Example]]:
    """Yield runs of examples that end at GROUP_ROWS, or with what passes GROUP_BYTES."""
    group: list[Example] = []
    size = 0
    for example in examples:
        group.append(example)
        size += len(example.image)
        if len(group) == GROUP_ROWS or size > GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _check_labels(examples: list[Example], num_classes: int, split: str) -> None:
    for example in examples:
        if not 0 <= example.label < num_classes:
            raise PipelineError(
                f"{split} image {example.id}: label must be in [0, {num_classes}). "
                f"Got {example.label}"
            )


def describe(path: Path) -> tuple[str, list[str]]:
    """Return source and class names of a raw Parquet file.

    Raises:
        PipelineError: There is no such file.
    """
    metadata = pq.read_schema(require_file(path, "Run `dvc repro download`")).metadata
    features = json.loads(metadata[b"huggingface"])["info"]["features"]
    return metadata[b"source"].decode(), features["label"]["names"]


def num_validation(path: Path) -> int:
    """Return how many rows at the end of train.parquet are a validation split; 0: it has none."""
    return int(pq.read_schema(path).metadata.get(b"validation", 0))


def labels(path: Path) -> np.ndarray:
    """Return the labels `(n,)` int64 of a raw Parquet file."""
    return pq.read_table(path, columns=["label"])["label"].to_numpy()


def check_classes(source: str, classes: list[str], labels: Mapping[str, np.ndarray]) -> None:
    """Check that there is something to tell apart, to learn and to measure.

    Args:
        source: For the message.
        classes: k names.
        labels: Of each split, `(n,)` int64 in [0, k).

    Raises:
        PipelineError: There is one class only, or a split has no image of one.
    """
    if len(classes) < 2:
        raise PipelineError(
            f"{source}: must have 2 or more classes. Got {', '.join(classes)} only. Add another"
        )
    for split, own in labels.items():
        counts = np.bincount(own, minlength=len(classes))
        if missing := [classes[label] for label in np.flatnonzero(counts == 0)]:
            raise PipelineError(
                f"{source}: {split} must hold images of every class. "
                f"Got none of {first_few(missing)}. Add some, or remove the class"
            )


def hold_out_test(
    source: str, classes: list[str], labels: np.ndarray, share: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Hold out a test split of a data set without one; every class keeps its share.

    Args:
        source: For the message.
        classes: k names.
        labels: `(n,)` int64 in [0, k).
        share: Of the test split, in (0, 1).
        seed: In [0, 2**32).

    Returns:
        Sorted row numbers of the training and the test split, int64.

    Raises:
        PipelineError: A class has too few images for both.
    """
    remedy = "Add some, move test_share towards 0.5, or bring a test split"
    train, test = stratified_split(labels, classes, share, seed, source, remedy)
    check_classes(source, classes, {"train": labels[train], "test": labels[test]})
    return train, test


def read_group(path: Path, group: int) -> list[Example]:
    """Return the examples of one group of rows, so that memory does not grow with the file."""
    with pq.ParquetFile(path) as file:
        table = file.read_row_group(group).to_pydict()
    return [
        Example(image["bytes"], label, id)
        for image, label, id in zip(table["image"], table["label"], table["id"], strict=True)
    ]
