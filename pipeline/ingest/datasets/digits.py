"""Digits: 1,797 handwritten digits of 8×8 pixels, which are part of scikit-learn.

Source: E. Alpaydin and C. Kaynak (1998), "Optical Recognition of Handwritten Digits", UCI
Machine Learning Repository, test set, https://doi.org/10.24432/C50P49
"""

import io

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from pipeline.core.splitting import Grouping
from pipeline.ingest.parquet import Dataset, Example, hold_out_test


def load(
    name: str, folder: str, test_share: float, test_seed: int, grouping: Grouping | None = None
) -> Dataset:
    """Return the digits as 8-bit PNG files; a fixed stratified 20 % are the test split.

    The parameters are those of every data set, and have no effect here.
    """
    digits = load_digits()
    # the 17 levels from 0 to 16 are scaled to 0 to 255 and stay distinct
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # (1797, 8, 8)
    classes = [str(digit) for digit in digits.target_names]
    source = "scikit-learn digits (UCI, doi:10.24432/C50P49)"
    train, test = hold_out_test(source, classes, digits.target, share=0.2, seed=0)
    rows = {"train": train, "test": test}
    return Dataset(
        classes=classes,
        source=source,
        sizes={split: len(indices) for split, indices in rows.items()},
        splits={
            split: [Example(_png(pixels[i]), int(digits.target[i]), f"digits_{i}") for i in indices]
            for split, indices in rows.items()
        },
    )


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
