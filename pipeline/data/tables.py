"""Tables: what train writes of each epoch and evaluate of each test image, as CSV."""

from pathlib import Path

import pandas as pd

from pipeline.core.files import require_file


def read(path: Path) -> pd.DataFrame:
    """Return a table; names of classes are text, whatever they look like.

    Raises:
        PipelineError: There is no such file.
    """
    text = {"actual": str, "predicted": str}  # a class may be called NA, or 7
    return pd.read_csv(require_file(path), dtype=text, keep_default_na=False)
