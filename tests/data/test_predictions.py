"""Predictions: the Parquet files of logits, read by this pipeline and by other libraries."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from pipeline.core.errors import PipelineError
from pipeline.data import predictions
from pipeline.data.predictions import Predictions

LOGITS = np.array([[0, 1, 2], [3, -0.5, 0], [0, 0, 1 / 3]], np.float32)


@pytest.fixture
def written(tmp_path) -> Path:
    """Predictions of one validation image and two test images, at a temperature of 2."""
    path = tmp_path / "model/7.parquet"
    predictions.write(
        path,
        Predictions(
            classes=["NA", "7", "é"],
            splits=np.array(["validation", "test", "test"]),
            ids=np.array(["train/é/1.png", "b", "c"]),
            labels=np.array([2, 0, 1]),
            logits=LOGITS,
            temperature=2.0,
        ),
    )
    return path


def test_predictions_are_read_as_written(written):
    table = predictions.read(written)
    assert table.classes == ["NA", "7", "é"]
    assert table.splits.tolist() == ["validation", "test", "test"]
    assert table.ids.tolist() == ["train/é/1.png", "b", "c"]
    assert table.labels.tolist() == [2, 0, 1]
    assert (table.logits.dtype, table.logits.tolist()) == (np.float32, LOGITS.tolist())
    assert table.predicted.tolist() == [2, 0, 2]
    assert table.correct.tolist() == [True, True, False]


def test_probabilities_are_those_of_the_logits_divided_by_the_temperature(written):
    test = predictions.read(written).of("test")
    exponentials = np.exp([[1.5, -0.25, 0], [0, 0, float(LOGITS[2, 2]) / 2]])
    expected = exponentials / exponentials.sum(axis=1, keepdims=True)
    assert test.ids.tolist() == ["b", "c"]
    assert np.allclose(test.probabilities, expected, rtol=1e-12)
    assert np.allclose(test.confidence, expected.max(axis=1), rtol=1e-12)


def test_test_images_of_all_trainings_become_one_table(written):
    shutil.copy(written, written.with_name("3.parquet"))
    table = predictions.read_table(written.parent, [7, 3])
    assert table.drop(columns="confidence").to_dict("list") == {
        "seed": [7, 7, 3, 3], "id": ["b", "c"] * 2,
        "actual": ["NA", "7"] * 2, "predicted": ["NA", "é"] * 2,
    }  # fmt: skip


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(PipelineError, match=r"8\.parquet: no such file\. Run `dvc repro`"):
        predictions.read_table(tmp_path, [8])


def test_pandas_and_hugging_face_datasets_get_columns_with_their_types(written):
    table = pd.read_parquet(written)
    assert table.columns.tolist() == ["split", "id", "label", "logits"]
    assert np.array_equal(np.stack(table["logits"].to_list()), LOGITS)
    features = json.loads(pq.read_schema(written).metadata[b"huggingface"])["info"]["features"]
    assert features["label"] == {"_type": "ClassLabel", "names": ["NA", "7", "é"]}


def test_polars_reads_predictions(written):
    polars = pytest.importorskip("polars")
    table = polars.read_parquet(written)
    assert table["label"].to_list() == [2, 0, 1]
    assert np.array_equal(table["logits"].to_numpy(), LOGITS)


def test_duckdb_reads_predictions(written):
    duckdb = pytest.importorskip("duckdb")
    query = f"select id, logits[3] from '{written}' where split = 'test' and label = 1"
    assert duckdb.sql(query).fetchall() == [("c", LOGITS[2, 2])]


def test_hugging_face_datasets_reads_predictions(written, tmp_path):
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_parquet(str(written), cache_dir=str(tmp_path / "cache"))
    assert table.features["label"].names == ["NA", "7", "é"]
    assert np.array_equal(table.with_format("numpy")["logits"][:], LOGITS)
