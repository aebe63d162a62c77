"""Tables: what train writes of each epoch and evaluate of each test image, as CSV."""

from pathlib import Path

import pandas as pd

from pipeline.core.errors import PipelineError


def read(path: Path) -> pd.DataFrame:
    """Return a table; names of classes are text, whatever they look like.

    Raises:
        PipelineError: There is no such file.
    """
    if not path.is_file():
        raise PipelineError(f"{path}: no such file. Run `dvc repro`")
    # a class may be called NA, or 7
    return pd.read_csv(path, dtype={"actual": str, "predicted": str}, keep_default_na=False)
