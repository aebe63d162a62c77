"""Calibration: what a model's file says about its probabilities."""

import zipfile

import numpy as np
import pytest

from pipeline.core.errors import PipelineError
from pipeline.data import calibration
from pipeline.data.calibration import Calibration, Threshold


@pytest.fixture
def model(tmp_path):
    """A file without a calibration."""
    path = tmp_path / "model.keras"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", "{}")
    return path


def test_a_model_without_a_calibration_has_a_temperature_of_1(model):
    assert calibration.read(model) == Calibration(1.0, 0, [])


def test_a_stored_calibration_is_read_again(model):
    stored = Calibration(1.75, 20, [Threshold(0.9, 15, 14), Threshold(0.5, 20, 17)])
    calibration.store(model, stored)
    assert calibration.read(model) == stored


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"thresholds": [{"images": 1}]}'])
def test_a_damaged_calibration_is_refused(model, content):
    with zipfile.ZipFile(model, "a") as archive:
        archive.writestr(calibration.MEMBER, content)
    with pytest.raises(PipelineError, match=r"model\.keras: must be a \.keras file that this pipe"):
        calibration.read(model)


def test_the_temperature_divides_the_logits():
    # e^(4/2) / (e^(4/2) + e^0)
    (row,) = Calibration(2.0).probabilities(np.array([[0.0, 4.0]], np.float32))
    assert row == pytest.approx([0.119203, 0.880797], abs=1e-6)


@pytest.mark.parametrize("temperature", [0.01, 0.37, 1.0, 3.7, 1000.0])
def test_no_temperature_changes_a_class_not_even_of_nearly_equal_logits(temperature):
    values = np.array([-300, -5, -0.01, 0.1, 1.0, 3.0, 17.0, 300, 30_000], np.float32)
    above = np.nextafter(values, np.float32(np.inf))
    logits = np.stack([values, above, values - 1], axis=1)  # (9, 3)
    probabilities = Calibration(temperature).probabilities(logits)
    assert probabilities.argmax(axis=1).tolist() == [1] * 9
    # of equal logits the first class is predicted, as without a temperature
    tied = np.stack([values, values], axis=1)
    assert Calibration(temperature).probabilities(tied).argmax(axis=1).tolist() == [0] * 9


def test_thresholds_count_the_images_that_reach_a_confidence():
    confidence = np.arange(100) / 100 + 0.0000005  # 0, 0.01, …, 0.99, a little more
    correct = np.arange(100) >= 7  # the seven least confident are wrong
    rows = calibration.thresholds(confidence[::-1], correct[::-1])
    assert len(rows) == 20
    assert rows[0] == Threshold(0.95, 5, 5)  # 5 % of 100 images, rounded down to six decimals
    assert rows[9] == Threshold(0.5, 50, 50)
    assert rows[18] == Threshold(0.05, 95, 93)
    assert rows[19] == Threshold(0.0, 100, 93)


def test_all_images_of_the_same_confidence_are_on_one_side_of_a_threshold():
    confidence = np.array([1.0] * 8 + [0.6] * 2)
    rows = calibration.thresholds(confidence, np.array([True] * 9 + [False]))
    assert {(row.confidence, row.images, row.correct) for row in rows} == {(1, 8, 8), (0.6, 10, 9)}
