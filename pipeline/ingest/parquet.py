"""Parquet: read and write raw data, one file of encoded images and labels per split.

The columns are `image` (struct of `bytes` and `path`), `label` (int64), `id` (string) and, if the
source describes its images, `metadata` (struct of strings). Class names are in the metadata of
Hugging Face `datasets`, so that `datasets.load_dataset`, `pandas.read_parquet` and DuckDB can read
the files.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.core.errors import CONTROL, PipelineError, first_few
from pipeline.core.files import atomic_path, require_file
from pipeline.core.progress import progress
from pipeline.core.splitting import stratified_split
from pipeline.core.text import counted

# Largest size of a row group, the unit of parallel work and of memory.
GROUP_ROWS = 256
GROUP_BYTES = 2**26

# Note after the source of a data set without a test split: missing split, per cent, seed.
HELD_OUT = " (no {}: {:g} % of the images held out as test split, seed {})"

# Text that ends a script in HTML, or changes how it is parsed.
HTML = re.compile("</|<!--")


class Example(NamedTuple):
    image: bytes
    """An encoded image file: PNG, JPEG, …"""
    label: int
    """Index into the class names"""
    id: str
    """Name of the image in its source"""
    metadata: Mapping[str, str] = {}
    """Value of each metadata column; missing values are empty texts"""


class Dataset(NamedTuple):
    classes: list[str]
    source: str
    """Description of the source, for messages and the report"""
    sizes: dict[str, int]
    """Number of examples of each split"""
    splits: Mapping[str, Iterable[Example]]
    """train, test and, if the data set has one, validation; each is read once, in order"""
    metadata_columns: Sequence[str] = ()
    """Names of the columns of each example's metadata"""


def write(folder: Path, dataset: Dataset) -> None:
    """Write `folder`/train.parquet and test.parquet; equal examples give equal bytes.

    A validation split is written after the training images, in separate row groups.

    Raises:
        PipelineError: A class name is unsafe, a label is out of range, or a split is empty or does
            not have the expected size.
    """
    check_names(dataset.source, dataset.classes)
    text = {"_type": "Value", "dtype": "string"}
    features: dict[str, Any] = {
        "image": {"_type": "Image"},
        "label": {"_type": "ClassLabel", "names": dataset.classes},
        "id": text,
    }
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    fields = pa.schema([("image", image), ("label", pa.int64()), ("id", pa.string())])
    if dataset.metadata_columns:
        features["metadata"] = dict.fromkeys(dataset.metadata_columns, text)
        values = pa.struct([(column, pa.string()) for column in dataset.metadata_columns])
        fields = fields.append(pa.field("metadata", values))
    metadata = {
        "huggingface": json.dumps({"info": {"features": features}}),
        "source": dataset.source,
    }
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        for file in (split for split in dataset.splits if split != "validation"):
            splits, file_metadata = [file], metadata
            if file == "train" and "validation" in dataset.splits:
                splits = ["train", "validation"]
                file_metadata = {**metadata, "validation": str(dataset.sizes["validation"])}
            # the images are compressed already
            with pq.ParquetWriter(
                temporary / f"{file}.parquet",
                fields.with_metadata(file_metadata),
                compression="none",
            ) as writer:
                for split in splits:
                    _write_split(writer, split, dataset)


def _write_split(writer: pq.ParquetWriter, split: str, dataset: Dataset) -> None:
    size = dataset.sizes[split]
    examples = progress(dataset.splits[split], size, f"{split} images", "image")
    num_rows = 0
    for group in _groups(examples):
        _check_labels(group, len(dataset.classes), split)
        images = [{"bytes": e.image, "path": e.id} for e in group]
        columns = [images, [e.label for e in group], [e.id for e in group]]
        if dataset.metadata_columns:
            columns.append([
                {column: e.metadata.get(column, "") for column in dataset.metadata_columns}
                for e in group
            ])  # fmt: skip
        arrays = [pa.array(c, f.type) for c, f in zip(columns, writer.schema, strict=True)]
        writer.write_table(pa.Table.from_arrays(arrays, schema=writer.schema))
        num_rows += len(group)
    if not num_rows:
        raise PipelineError(
            f"{dataset.source}: {split} must contain images. Got none. Add some, or choose another "
            "data set"
        )
    if num_rows != size:
        raise PipelineError(
            f"{dataset.source}: {split} must contain {counted(size, 'image')}. Got {num_rows}. "
            "Download the data set again"
        )


def check_names(source: str, classes: list[str]) -> None:
    """Check that class names are safe to show on terminals and in HTML pages.

    Raises:
        PipelineError: A name is empty, or contains control characters, `</` or `<!--`, because
            `dvc plots show` writes names into a script without escaping them.
    """
    if unsafe := [n for n in classes if not n.strip() or CONTROL.search(n) or HTML.search(n)]:
        raise PipelineError(
            f"{source}: class names must be text without control characters, `</` and `<!--`. "
            f"Got {first_few([repr(n) for n in unsafe])}. Rename them"
        )


def _groups(examples: Iterable[Example]) -> Iterator[list[Example]]:
    """Yield lists of at most GROUP_ROWS examples, ended early when they exceed GROUP_BYTES."""
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
    """Return the source and the class names of a raw Parquet file.

    Raises:
        PipelineError: The file does not exist.
    """
    metadata = pq.read_schema(require_file(path, "Run `dvc repro download`")).metadata
    features = json.loads(metadata[b"huggingface"])["info"]["features"]
    return metadata[b"source"].decode(), features["label"]["names"]


def num_validation(path: Path) -> int:
    """Return the number of rows at the end of train.parquet that are a validation split."""
    return int(pq.read_schema(path).metadata.get(b"validation", 0))


def labels(path: Path) -> np.ndarray:
    """Return the labels `(n,)` int64 of a raw Parquet file."""
    return pq.read_table(path, columns=["label"])["label"].to_numpy()


def rows(path: Path) -> pa.Table:
    """Return the columns `id` and, if there is one, `metadata` of a raw Parquet file."""
    with pq.ParquetFile(path) as file:
        return file.read(columns=["id", "metadata"]).replace_schema_metadata()


def check_classes(source: str, classes: list[str], labels: Mapping[str, np.ndarray]) -> None:
    """Check that there are two or more classes, and that every split has images of each.

    Args:
        source: Description of the source, for error messages.
        classes: k names.
        labels: Labels of each split, `(n,)` int64 in [0, k).

    Raises:
        PipelineError: There is only one class, or a split has no images of a class.
    """
    if len(classes) < 2:
        raise PipelineError(
            f"{source}: must have 2 or more classes. Got only {', '.join(classes)}. Add another"
        )
    for split, split_labels in labels.items():
        counts = np.bincount(split_labels, minlength=len(classes))
        if missing := [classes[label] for label in np.flatnonzero(counts == 0)]:
            raise PipelineError(
                f"{source}: {split} must contain images of every class. "
                f"Got none of {first_few(missing)}. Add some, or remove the class"
            )


def hold_out_test(
    source: str,
    classes: list[str],
    labels: np.ndarray,
    share: float,
    seed: int,
    groups: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Hold out a stratified test split.

    Args:
        source: Description of the source, for error messages.
        classes: k names.
        labels: `(n,)` int64 in [0, k).
        share: Share of the images in the test split, in (0, 1).
        seed: In [0, 2**32).
        groups: `(n,)`. Images of a group stay in one split.

    Returns:
        Sorted row numbers of the training and test splits, int64.

    Raises:
        PipelineError: A class has too few images or groups for both splits.
    """
    remedy = "Add some, move test_share towards 0.5, or provide a test split"
    train, test = stratified_split(labels, classes, share, seed, source, remedy, groups)
    check_classes(source, classes, {"train": labels[train], "test": labels[test]})
    return train, test


def read_group(path: Path, group: int) -> list[Example]:
    """Read the examples of one row group."""
    with pq.ParquetFile(path) as file:
        table = file.read_row_group(group, ["image", "label", "id"]).to_pydict()
    return [
        Example(image["bytes"], label, id)
        for image, label, id in zip(table["image"], table["label"], table["id"], strict=True)
    ]
