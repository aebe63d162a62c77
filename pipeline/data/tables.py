"""Tables: read the CSV files of epochs (from train) and predictions (from evaluate)."""

from pathlib import Path

import pandas as pd

from pipeline.core.files import require_file


def read(path: Path) -> pd.DataFrame:
    """Read a CSV file; class names stay text, whatever they look like.

    Raises:
        PipelineError: The file does not exist.
    """
    dtypes = {"actual": str, "predicted": str}  # a class may be called NA, or 7
    return pd.read_csv(require_file(path), dtype=dtypes, keep_default_na=False)
