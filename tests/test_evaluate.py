"""Evaluate: metrics of a few predictions, computed by hand."""

import json

import keras
import numpy as np
import pytest

from pipeline import evaluate
from pipeline.core.errors import PipelineError
from pipeline.stats.correctness import pack, same_images, unpack
from tests.conftest import task, write_arrays

CLASSES = ["a", "b", "c", "d"]
# probabilities of four images; the last is misclassified, with its class in second place
PROBABILITIES = np.array(
    [[0.7, 0.1, 0.1, 0.1], [0.1, 0.7, 0.1, 0.1], [0.4, 0.5, 0.06, 0.04], [0.3, 0.6, 0.08, 0.02]]
)
LABELS = np.array([0, 1, 1, 0])


@pytest.fixture
def measured():
    return evaluate.measure(np.log(PROBABILITIES) + 3, LABELS, CLASSES)


def test_accuracy_and_loss_are_means_over_the_images(measured):
    metrics, _ = measured
    assert metrics["accuracy"] == 0.75
    assert metrics["loss"] == pytest.approx(-np.log([0.7, 0.7, 0.5, 0.3]).mean())


def test_accuracy_has_the_wilson_interval(measured):
    # Wilson 1927, n 4, p 0.75, z 1.96: center (0.75 + 0.4802) / 1.9604, half width
    # 1.96 / 1.9604 * sqrt(0.75 * 0.25 / 4 + 3.8416 / 64)
    metrics, _ = measured
    assert metrics["accuracy_low"] == pytest.approx(0.3006, abs=1e-4)
    assert metrics["accuracy_high"] == pytest.approx(0.9544, abs=1e-4)


def test_scores_are_averaged_over_classes_that_may_be_absent(measured):
    # a: precision 1/1, recall 1/2, f1 2/3; b: precision 2/3, recall 2/2, f1 4/5; c, d: 0
    metrics, _ = measured
    assert metrics["precision"] == pytest.approx((1 + 2 / 3) / 4)
    assert metrics["recall"] == pytest.approx((1 / 2 + 1) / 4)
    assert metrics["f1"] == pytest.approx((2 / 3 + 4 / 5) / 4)
    assert metrics["classes"][1] == {
        "class": "b", "precision": pytest.approx(2 / 3), "recall": 1.0,
        "f1": pytest.approx(0.8), "images": 2,
    }  # fmt: skip


def test_top_three_accuracy_counts_classes_up_to_the_third():
    logits = np.array([[4.0, 3, 2, 1], [4, 3, 2, 1]])
    metrics, _ = evaluate.measure(logits, np.array([2, 3]), CLASSES)
    assert metrics["top3_accuracy"] == 0.5


def test_two_classes_are_always_among_the_top_three():
    metrics, _ = evaluate.measure(np.array([[1.0, 0.0]]), np.array([1]), ["a", "b"])
    assert (metrics["accuracy"], metrics["top3_accuracy"]) == (0.0, 1.0)


def test_calibration_error_is_the_weighted_gap_of_the_bins():
    # 15 bins of 1/15: 0.91 and 0.92 share (0.867, 0.933], 0.55 lies in (0.533, 0.6]
    confidence = np.array([0.91, 0.92, 0.55])
    correct = np.array([True, False, False])
    # |0.91 + 0.92 - 1| + |0.55| of 3 images
    assert evaluate.calibration_error(confidence, correct) == pytest.approx((0.83 + 0.55) / 3)


def test_certain_and_correct_predictions_have_no_calibration_error():
    assert evaluate.calibration_error(np.ones(3), np.ones(3, bool)) == 0


def test_metrics_contain_the_correct_images_in_a_list(measured):
    metrics, _ = measured
    (answers,) = metrics["answers"]  # a list, which `dvc metrics show` leaves out
    assert unpack(answers).tolist() == [True, True, True, False]
    assert same_images(answers, pack(np.full(4, True), np.array(["a", "b", "b", "a"])))


def test_the_table_of_predictions_has_class_names(measured):
    _, table = measured
    assert table.columns.tolist() == ["actual", "predicted", "confidence"]
    assert table["actual"].tolist() == ["a", "b", "b", "a"]
    assert table["predicted"].tolist() == ["a", "b", "b", "b"]
    assert table["confidence"].tolist() == [0.7, 0.7, 0.5, 0.6]


def test_logits_are_averaged_over_the_mirror_image():
    # picks the left column of each channel: 1 and 10; 3 and 30 in the mirror image
    left_column = keras.Sequential(
        [
            keras.Input((1, 3, 2)),
            keras.layers.Cropping2D(((0, 0), (0, 2))),
            keras.layers.Flatten(),
        ]
    )
    image = np.array([[[[1.0, 10.0], [2.0, 20.0], [3.0, 30.0]]]])
    averaged = evaluate.average_over_mirror(left_column)
    assert left_column.predict(image, verbose=0).tolist() == [[1.0, 10.0]]
    assert averaged.predict(image, verbose=0).tolist() == [[2.0, 20.0]]


def assert_refused(project, message: str) -> None:
    """Evaluate model.keras, which must be refused, and keep the outputs of the last run."""
    for name in ("test.json", "predictions.csv"):
        (project / name).write_text("last run")
    argv = "--model model.keras --arrays arrays --metrics test.json --predictions predictions.csv"
    with pytest.raises(PipelineError, match=message):
        evaluate.main(argv.split())
    for name in ("test.json", "predictions.csv"):
        assert (project / name).read_text() == "last run"
    assert not list(project.glob(".*"))


@pytest.fixture
def arrays(project, monkeypatch):
    """Write twenty test images, 8×8×1, of two classes."""
    monkeypatch.setenv("KERAS_BACKEND", "tensorflow")  # which the stage sets
    images, labels = task(20)
    write_arrays(project / "arrays/test", images, labels)
    (project / "arrays/info.json").write_text(json.dumps({"classes": ["dark", "bright"]}))
    return project


@pytest.mark.parametrize(("shape", "classes"), [((9, 8, 1), 2), ((8, 8, 3), 2), ((8, 8, 1), 3)])
def test_a_model_for_other_images_or_classes_is_refused(arrays, shape, classes):
    images = keras.Input(shape)
    logits = keras.layers.Dense(classes)(keras.layers.Flatten()(images))
    keras.Model(images, logits).save(arrays / "model.keras")
    assert_refused(arrays, rf"model\.keras: must take \(8, 8, 1\) images of 2 classes\. Got "
            rf"\({shape[0]}, 8, {shape[2]}\) and {classes}\. Run `dvc repro`")  # fmt: skip


def test_a_model_that_is_truncated_or_contains_code_is_refused(arrays):
    images = keras.Input((8, 8, 1))
    x = keras.layers.Lambda(lambda x: x)(keras.layers.Flatten()(images))
    keras.Model(images, keras.layers.Dense(2)(x)).save(arrays / "model.keras")
    assert_refused(arrays, r"model\.keras: cannot be loaded: .*[Ll]ambda")
    intact = (arrays / "model.keras").read_bytes()
    (arrays / "model.keras").write_bytes(intact[: len(intact) // 2])
    assert_refused(
        arrays, r"model\.keras: cannot be loaded: not a complete archive\. Run `dvc repro`"
    )
