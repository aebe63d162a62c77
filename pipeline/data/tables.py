"""Tables: read the CSV files of epochs, predictions and learning curves."""

from pathlib import Path

import pandas as pd

from pipeline.core.files import require_file


def read(path: Path) -> pd.DataFrame:
    """Read a CSV file; names stay text, whatever they look like.

    Raises:
        PipelineError: The file does not exist.
    """
    dtypes = dict.fromkeys(("actual", "predicted", "model"), str)  # a class may be called NA, or 7
    return pd.read_csv(require_file(path), dtype=dtypes, keep_default_na=False)
