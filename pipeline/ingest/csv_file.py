"""CSV: read a CSV file that a person wrote, and report its errors in one line."""

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.core.errors import PipelineError


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Report text that is not UTF-8 and invalid CSV in one line."""
    try:
        yield
    except (UnicodeDecodeError, csv.Error) as error:
        raise PipelineError(
            f"{path}: must be a CSV file in UTF-8. Got {error}. Save it again as CSV UTF-8"
        ) from None


def read(path: Path, *required: str) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the number of each line, from 2, and its values by column.

    Args:
        path: The CSV file; its first line names the columns.
        required: Columns that it must have.

    Raises:
        PipelineError: The file is not CSV in UTF-8, lacks a column, or a line has other columns.
    """
    with readable(path), path.open(encoding="utf-8-sig", newline="") as file:  # Excel writes a BOM
        reader = csv.reader(file, strict=True)
        columns = next(reader, [])
        if not set(required) <= set(columns) or len(set(columns)) < len(columns) or "" in columns:
            raise PipelineError(
                f"{path}: the first line must name {' and '.join(required)} and other columns, "
                f"each once, separated by commas. Got {', '.join(columns) or 'no line'}. Correct it"
            )
        for cells in filter(None, reader):
            if len(cells) != len(columns):
                raise PipelineError(
                    f"{path}: line {reader.line_num}: must have {len(columns)} values. "
                    f"Got {len(cells)}. Correct it"
                )
            yield reader.line_num, dict(zip(columns, cells, strict=True))
