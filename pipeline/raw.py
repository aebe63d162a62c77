"""Raw data: encoded images with labels, one Parquet file a split.

Columns `image` (struct of `bytes` and `path`), `label` (int64) and `id` (string), with the
class names where Hugging Face `datasets` keeps them, so that `datasets.load_dataset`,
`pandas.read_parquet` and DuckDB all read the file as it is.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from pipeline.errors import PipelineError
from pipeline.files import replacing

# Images written and decoded at a time: the unit of parallel work, and of memory.
GROUP_ROWS = 256
GROUP_BYTES = 2**26


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
    """train and test, read once and in order"""


def write(folder: Path, dataset: Dataset) -> None:
    """Write every split to `folder`/SPLIT.parquet; the same examples give the same bytes.

    Raises:
        PipelineError: A label is no index into the class names, or a split is empty.
    """
    features = {
        "image": {"_type": "Image"},
        "label": {"_type": "ClassLabel", "names": dataset.classes},
        "id": {"_type": "Value", "dtype": "string"},
    }
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema(
        [("image", image), ("label", pa.int64()), ("id", pa.string())],
        metadata={
            "huggingface": json.dumps({"info": {"features": features}}),
            "source": dataset.source,
        },
    )
    with replacing(folder) as beside:
        beside.mkdir()
        for split, examples in dataset.splits.items():
            bar = tqdm(examples, split, dataset.sizes[split], unit="image", disable=None)
            # images are compressed as they are; a second time costs time and saves nothing
            with pq.ParquetWriter(
                beside / f"{split}.parquet", schema, compression="none"
            ) as writer:
                num_rows = 0
                for group in _groups(bar):
                    _check_labels(group, len(dataset.classes), split)
                    images = [{"bytes": e.image, "path": e.id} for e in group]
                    columns = [images, [e.label for e in group], [e.id for e in group]]
                    arrays = [pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)]
                    writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
                    num_rows += len(group)
            if not num_rows:
                raise PipelineError(f"{dataset.source}: {split} holds no images")


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


def classes(path: Path) -> list[str]:
    """Return the class names of a raw Parquet file.

    Raises:
        PipelineError: There is no such file.
    """
    if not path.is_file():
        raise PipelineError(f"{path}: no such file. Run `dvc repro download`")
    metadata = pq.read_schema(path).metadata
    return json.loads(metadata[b"huggingface"])["info"]["features"]["label"]["names"]


def read_group(path: Path, group: int) -> list[Example]:
    """Return the examples of one group of rows, so that memory does not grow with the file."""
    with pq.ParquetFile(path) as file:
        table = file.read_row_group(group).to_pydict()
    return [
        Example(image["bytes"], label, id)
        for image, label, id in zip(table["image"], table["label"], table["id"], strict=True)
    ]
