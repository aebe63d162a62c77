"""Tables: read the CSV files of epochs and learning curves."""

from pathlib import Path

import pandas as pd

from pipeline.core.files import require_file


def read(path: Path) -> pd.DataFrame:
    """Read a CSV file; names of models stay text, whatever they look like.

    Raises:
        PipelineError: The file does not exist.
    """
    return pd.read_csv(require_file(path), dtype={"model": str}, keep_default_na=False)
