"""Label issues: the images of the report whose labels are probably wrong."""

from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.core.files import require_file
from pipeline.data import arrays, rows
from pipeline.data.preprocessor import Preprocessor
from pipeline.reporting.parts import thumbnail

MAX_IMAGES = {"train": 24, "test": 12}  # of each split, to keep the page small


def cards(issues: Path, arrays_folder: Path, preprocessor: Preprocessor, split: str) -> list[dict]:
    """Return the most suspicious images of a split.

    Args:
        issues: data/label_issues.
        arrays_folder: data/arrays.
        preprocessor: That normalized the images.
        split: train or test.

    Returns:
        The columns of data/label_issues/SPLIT.csv, and `picture`, a thumbnail as a data URI.
    """
    text = dict.fromkeys(("id", "label", "given"), str)  # a class may be called NA, or 7
    path = require_file(issues / f"{split}.csv")
    table = pd.read_csv(path, dtype=text, keep_default_na=False)[: MAX_IMAGES[split]]
    images, _ = arrays.load(arrays_folder / split, check=False)  # preprocess wrote both
    row_of = {id: row for row, id in enumerate(rows.ids(arrays_folder, split))}
    issue_cards: list[dict[str, Any]] = []
    for issue in table.to_dict("records"):
        pixels = preprocessor.pixels(images[row_of[issue["id"]]])
        issue_cards.append({**issue, "picture": thumbnail(pixels)})  # type: ignore[dict-item]
    return issue_cards
