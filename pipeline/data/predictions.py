"""Predictions: the logits of one training for its validation images and the test images.

data/predictions/MODEL/SEED.parquet has a row for each image, validation images first, each split
in the order of the arrays. The columns are `split` (`validation` or `test`), `id` (string), `label`
(int64) and `logits` (a list of k float32). Class names are in the metadata of Hugging Face
`datasets`, and the temperature in the metadata of the schema.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.core.files import atomic_path, require_file
from pipeline.data.calibration import Calibration

SPLITS = ("validation", "test")


@dataclass(frozen=True)
class Predictions:
    """The logits of one training for n images."""

    classes: list[str]
    """k names, in the order of the logits"""
    splits: np.ndarray
    """`(n,)` str: `validation` or `test`"""
    ids: np.ndarray
    """`(n,)` str, the id of each image in data/arrays/rows"""
    labels: np.ndarray
    """`(n,)` int64, in [0, k)"""
    logits: np.ndarray
    """`(n, k)` float32, before division by the temperature"""
    temperature: float = 1.0

    @cached_property
    def probabilities(self) -> np.ndarray:
        """`(n, k)` float64, the softmax of logits / temperature."""
        return Calibration(self.temperature).probabilities(self.logits)

    @property
    def predicted(self) -> np.ndarray:
        """`(n,)` int64, the class with the largest logit."""
        return self.logits.argmax(axis=1)

    @property
    def correct(self) -> np.ndarray:
        """`(n,)` bool, whether the predicted class is the label."""
        return self.predicted == self.labels

    @property
    def confidence(self) -> np.ndarray:
        """`(n,)` float64, the probability of the predicted class."""
        return self.probabilities.max(axis=1)

    def table(self) -> pd.DataFrame:
        """Return the columns id, actual and predicted (class names) and confidence."""
        names = np.array(self.classes, object)
        return pd.DataFrame(
            {
                "id": self.ids,
                "actual": names[self.labels],
                "predicted": names[self.predicted],
                "confidence": self.confidence,
            }
        )

    def of(self, split: str) -> "Predictions":
        """Return the predictions of one split."""
        rows = self.splits == split
        return Predictions(
            self.classes,
            self.splits[rows],
            self.ids[rows],
            self.labels[rows],
            self.logits[rows],
            self.temperature,
        )


def write(path: Path, predictions: Predictions) -> None:
    """Write the predictions of one training; equal predictions give equal bytes."""
    k = len(predictions.classes)
    text = {"_type": "Value", "dtype": "string"}
    number = {"_type": "Value", "dtype": "float32"}
    features = {
        "split": text,
        "id": text,
        "label": {"_type": "ClassLabel", "names": predictions.classes},
        "logits": {"_type": "Sequence", "feature": number, "length": k},
    }
    schema = pa.schema(
        {
            "split": pa.string(),
            "id": pa.string(),
            "label": pa.int64(),
            "logits": pa.list_(pa.float32(), k),
        },
        metadata={
            "huggingface": json.dumps({"info": {"features": features}}),
            "temperature": str(predictions.temperature),
        },
    )
    logits = predictions.logits.astype(np.float32, copy=False).ravel()
    columns = [
        pa.array(predictions.splits.tolist(), pa.string()),
        pa.array(predictions.ids.tolist(), pa.string()),
        pa.array(predictions.labels, pa.int64()),
        pa.FixedSizeListArray.from_arrays(logits, k),
    ]
    with atomic_path(path) as temporary:
        pq.write_table(pa.Table.from_arrays(columns, schema=schema), temporary)


def read(path: Path) -> Predictions:
    """Read the predictions of one training.

    Args:
        path: data/predictions/MODEL/SEED.parquet.

    Raises:
        PipelineError: The file does not exist.
    """
    table = pq.read_table(require_file(path))
    metadata = table.schema.metadata
    classes = json.loads(metadata[b"huggingface"])["info"]["features"]["label"]["names"]
    logits = table["logits"].combine_chunks().flatten().to_numpy()
    return Predictions(
        classes=classes,
        splits=np.array(table["split"].to_pylist(), str),
        ids=np.array(table["id"].to_pylist(), object),
        labels=table["label"].to_numpy(),
        logits=logits.reshape(len(table), len(classes)),
        temperature=float(metadata[b"temperature"]),
    )


def read_table(folder: Path, seeds: Sequence[int]) -> pd.DataFrame:
    """Read the predicted classes of the test images of all trainings of a model.

    Args:
        folder: data/predictions/MODEL.
        seeds: Of the trainings.

    Returns:
        seed, id, actual, predicted and confidence: a row for each training and test image.

    Raises:
        PipelineError: A file does not exist.
    """
    tables = {seed: read(folder / f"{seed}.parquet").of("test").table() for seed in seeds}
    return pd.concat(tables, names=["seed"]).reset_index("seed").reset_index(drop=True)
