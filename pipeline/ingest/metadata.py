"""Metadata: read metadata.csv, which describes images in further columns of text.

The format is that of Hugging Face's ImageFolder: the column `file_name` contains paths relative to
the folder of metadata.csv, and the other columns may have any names.
"""

import os
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from pipeline.core.errors import PipelineError, first_few
from pipeline.core.text import counted
from pipeline.ingest import csv_file

FILE = "metadata.csv"
FILE_NAME = "file_name"


def read(folders: Iterable[Path], images: Iterable[Path]) -> dict[Path, dict[str, str]]:
    """Return the metadata of each image that a metadata.csv names.

    Args:
        folders: Folders that may contain a metadata.csv.
        images: Files that may have metadata. Other files that exist may be named, too.

    Returns:
        Values by column. Each image has all columns of all files; a missing value is an empty text.

    Raises:
        PipelineError: A file cannot be read, has no column `file_name` or names a column or an
            image twice, or names one that does not exist.
    """
    images_by_name = {_normalized(path): path for path in images}
    rows: dict[Path, dict[str, str]] = {}
    names, missing = set(), []
    for folder in dict.fromkeys(folders):
        if not (folder / FILE).is_file():
            continue
        for _, row in csv_file.read(folder / FILE, FILE_NAME):
            path = folder / row.pop(FILE_NAME)
            name = _normalized(path)
            if name in names:
                raise PipelineError(
                    f"{folder / FILE}: must name each image once. Got {path} twice. Remove one row"
                )
            names.add(name)
            if name in images_by_name:
                rows[images_by_name[name]] = row
            elif not path.exists():
                missing.append(str(path))
    if missing:
        raise PipelineError(
            f"{FILE}: {FILE_NAME} must be the path of an image, relative to {FILE}. "
            f"Got {counted(len(missing), 'missing file')}: {first_few(missing)}. Correct or remove "
            "these rows"
        )
    columns = dict.fromkeys(column for row in rows.values() for column in row)
    return {path: {column: row.get(column, "") for column in columns} for path, row in rows.items()}


def _normalized(path: Path) -> str:
    """Return a path without `.` and `..`; macOS stores é as e and an accent."""
    return unicodedata.normalize("NFC", os.path.normpath(path))
