"""Rows: the id and the metadata of the image in each row of the arrays.

data/arrays/rows/SPLIT.parquet has the columns `id` (string) and, if the data set has metadata,
`metadata` (struct of strings). It is apart from the arrays, so that models are not trained again if
only the metadata change.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.core.files import require_file

if TYPE_CHECKING:
    import pandas as pd

FOLDER = "rows"


def write(arrays_folder: Path, split: str, table: pa.Table) -> None:
    """Write the columns `id` and, if there is one, `metadata` of a split.

    Args:
        arrays_folder: data/arrays.
        split: train or test.
        table: A row for each row of the arrays.
    """
    path = _path(arrays_folder, split)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


def ids(arrays_folder: Path, split: str) -> list[str]:
    """Return the id of each image: its path in the folder of images, or its name in the data set.

    Raises:
        PipelineError: The file does not exist.
    """
    return _read(arrays_folder, split)["id"].to_pylist()


def metadata(arrays_folder: Path, split: str) -> "pd.DataFrame":
    """Return the metadata of each image, a column of strings for each column of metadata.csv.

    Missing values are empty texts. Without metadata, the table has rows and no columns.

    Raises:
        PipelineError: The file does not exist.
    """
    import pandas as pd  # imported here: the import takes time

    table = _read(arrays_folder, split)
    if "metadata" not in table.column_names:
        return pd.DataFrame(index=range(len(table)))
    return pd.DataFrame(table["metadata"].to_pylist())


def _read(arrays_folder: Path, split: str) -> pa.Table:
    return pq.read_table(require_file(_path(arrays_folder, split), "Run `dvc repro preprocess`"))


def _path(arrays_folder: Path, split: str) -> Path:
    return arrays_folder / FOLDER / f"{split}.parquet"
