"""Calibration: what the validation images say about a model's probabilities, in its .keras file.

Keras ignores the additional file in its archive. Files of older versions have none.
"""

import json
import zipfile
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from pipeline.core.errors import PipelineError

MEMBER = "calibration.json"
# Shares of the validation images, the most confident first, that `Threshold`s are recorded for.
# They are fixed in advance, and few: each costs certainty, see stats/confidence.py.
COVERAGES = np.arange(1, 21) / 20
DECIMALS = 6  # of thresholds, as of the probabilities that predict prints


@dataclass(frozen=True)
class Threshold:
    """How many validation images have at least a confidence, and were classified correctly."""

    confidence: float
    """Probability of the predicted class, in [0, 1]"""
    images: int
    """Validation images with at least this confidence"""
    correct: int
    """Those of them that were classified correctly"""


@dataclass(frozen=True)
class Calibration:
    """Temperature of a model, and how often it was right on the validation images."""

    temperature: float = 1.0
    """Divides the logits before softmax; above 0"""
    images: int = 0
    """Number of validation images"""
    thresholds: list[Threshold] = field(default_factory=list)
    """One for each of COVERAGES; empty for files of older versions"""

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Return the probabilities of the classes, `(n, k)` float64, from logits `(n, k)`.

        In float64, because in float32 the largest two of an image's logits could round to the same
        value, and its class could change.
        """
        scaled = logits.astype(np.float64) / self.temperature
        exponentials = np.exp(scaled - scaled.max(axis=1, keepdims=True))
        return exponentials / exponentials.sum(axis=1, keepdims=True)


def thresholds(confidence: np.ndarray, correct: np.ndarray) -> list[Threshold]:
    """Return the thresholds of COVERAGES.

    Args:
        confidence: `(n,)` probability of the predicted class, in [0, 1].
        correct: `(n,)` bool.
    """
    descending = -np.sort(-confidence)
    counts = np.ceil(COVERAGES * len(confidence)).astype(int)
    # rounded down, so that the image that sets a threshold reaches it
    scale = 10**DECIMALS
    rounded = np.floor(descending[counts - 1] * scale) / scale
    return [
        Threshold(threshold, int(above.sum()), int(correct[above].sum()))
        for threshold in rounded.tolist()
        for above in [confidence >= threshold]
    ]


def store(path: Path, calibration: Calibration) -> None:
    """Add a calibration to a .keras file; equal contents give equal bytes."""
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(zipfile.ZipInfo(MEMBER), json.dumps(asdict(calibration)))


def read(path: Path) -> Calibration:
    """Return the calibration stored in a .keras file; temperature 1 if it holds none.

    Raises:
        PipelineError: The file is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if MEMBER not in archive.namelist():
                return Calibration()
            stored = json.loads(archive.read(MEMBER))
        rows = [Threshold(**row) for row in stored.pop("thresholds")]
        return Calibration(**stored, thresholds=rows)
    except (OSError, zipfile.BadZipFile, KeyError, ValueError, TypeError) as error:
        raise PipelineError(
            f"{path}: must be a .keras file that this pipeline wrote. Got {error} in {MEMBER}. "
            "Run `dvc repro`"
        ) from None
