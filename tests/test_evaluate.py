"""Evaluate: metrics of a few predictions, computed by hand."""

import json
import math
from hashlib import sha256

import keras
import numpy as np
import pandas as pd
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


def test_metrics_contain_the_correct_images(measured):
    metrics, _ = measured
    assert unpack(metrics["correct"]).tolist() == [True, True, True, False]
    assert same_images(metrics["correct"], pack(np.full(4, True), np.array(["a", "b", "b", "a"])))


def test_predictions_have_class_names(measured):
    _, columns = measured
    assert list(columns) == ["actual", "predicted", "confidence"]
    assert columns["actual"].tolist() == ["a", "b", "b", "a"]
    assert columns["predicted"].tolist() == ["a", "b", "b", "b"]
    assert columns["confidence"].tolist() == [0.7, 0.7, 0.5, 0.6]


def training(seed: int, logits: np.ndarray) -> dict:
    return {"seed": seed, **evaluate.measure(logits, LABELS, CLASSES)[0]}


def test_metrics_are_means_over_the_trainings():
    # the second training predicts class a for every image, with a probability of nearly 1/2
    always_a = np.tile(np.log([0.49, 0.17, 0.17, 0.17]), (4, 1))
    summary = evaluate.summarize(
        [training(7, np.log(PROBABILITIES)), training(3, always_a)], ensemble_accuracy=0.75
    )
    assert summary["accuracy"] == pytest.approx((0.75 + 0.5) / 2)
    # of two numbers, their difference divided by the square root of 2
    assert summary["accuracy_sd"] == pytest.approx(0.25 / math.sqrt(2))
    assert summary["accuracy_low"] < 0.5
    assert summary["accuracy_high"] > 0.75
    assert (summary["trainings"], summary["ensemble_accuracy"]) == (2, 0.75)
    first = -np.log([0.7, 0.7, 0.5, 0.3]).mean()
    second = -np.log([0.49, 0.17, 0.17, 0.49]).mean()
    assert summary["loss"] == pytest.approx((first + second) / 2)
    # f1: a 2/3, b 4/5 in the first training; a 2/3 in the second, with precision 1/2 and recall 1
    assert summary["f1"] == pytest.approx(((2 / 3 + 4 / 5) / 4 + 2 / 3 / 4) / 2)
    # the correct class of the second and third image is one of three with the same probability
    assert summary["top3_accuracy"] == 1.0
    assert summary["classes"][0] == {
        "class": "a", "precision": pytest.approx((1 + 1 / 2) / 2),
        "recall": pytest.approx((1 / 2 + 1) / 2), "f1": pytest.approx(2 / 3), "images": 2,
    }  # fmt: skip
    assert [each["seed"] for each in summary["seeds"]] == [7, 3]
    assert [each["accuracy"] for each in summary["seeds"]] == [0.75, 0.5]
    assert "classes" not in summary["seeds"][0]


def test_one_training_has_the_wilson_interval_and_no_standard_deviation():
    # Wilson 1927, n 4, p 0.75, z 1.96: center (0.75 + 0.4802) / 1.9604, half width
    # 1.96 / 1.9604 * sqrt(0.75 * 0.25 / 4 + 3.8416 / 64)
    summary = evaluate.summarize([training(0, np.log(PROBABILITIES))], ensemble_accuracy=0.75)
    assert (summary["accuracy"], summary["trainings"]) == (0.75, 1)
    assert summary["accuracy_low"] == pytest.approx(0.3006, abs=1e-4)
    assert summary["accuracy_high"] == pytest.approx(0.9544, abs=1e-4)
    assert "accuracy_sd" not in summary


def test_few_metrics_are_columns_of_dvc():
    summary = evaluate.summarize([training(s, np.log(PROBABILITIES)) for s in (0, 1)], 0.75)
    assert [name for name, value in summary.items() if not isinstance(value, list)] == [
        "accuracy", "accuracy_sd", "accuracy_low", "accuracy_high", "trainings",
        "ensemble_accuracy", "loss", "f1", "top3_accuracy", "calibration_error",
    ]  # fmt: skip


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


ARGUMENTS = (
    "baseline --models models --arrays arrays --metrics test.json --predictions predictions.csv"
).split()


@pytest.fixture
def trained(project, edit):
    """Two trainings, and three images of the class `b`, each a row with a single bright pixel.

    The trainings give `b` the probabilities 0.9, 0.4, 0.4 and 0.4, 0.9, 0.4.
    """
    edit("seeds: [0]", "seeds: [8, 2]")
    edit("precision: auto\n  # true", "precision: float32\n  # true")  # under evaluate
    images = np.eye(3, dtype=np.float32).reshape(3, 1, 3, 1)
    write_arrays(project / "arrays/test", images, np.array([1, 1, 1]))
    (project / "arrays/info.json").write_text(json.dumps({"classes": ["a", "b"]}))
    (project / "models").mkdir()
    for seed, probabilities in {8: [0.9, 0.4, 0.4], 2: [0.4, 0.9, 0.4]}.items():
        inputs = keras.Input((1, 3, 1))
        dense = keras.layers.Dense(2, use_bias=False)
        model = keras.Model(inputs, dense(keras.layers.Flatten()(inputs)))
        dense.set_weights([np.log([[1 - p, p] for p in probabilities])])
        model.save(project / f"models/{seed}.keras")
    return project


def test_all_trainings_and_their_ensemble_are_evaluated(trained, capsys):
    evaluate.main(ARGUMENTS)
    metrics = json.loads((trained / "test.json").read_text())
    assert [row["seed"] for row in metrics["seeds"]] == [8, 2]  # as in params.yaml
    assert [unpack(row["correct"]).tolist() for row in metrics["seeds"]] == [
        [True, False, False], [False, True, False]
    ]  # fmt: skip
    assert metrics["accuracy"] == pytest.approx(1 / 3)
    assert metrics["accuracy_sd"] == 0
    # mean probabilities of b: 0.65, 0.65, 0.4
    assert metrics["ensemble_accuracy"] == pytest.approx(2 / 3)
    assert metrics["computed"] == [{"precision": "float32", "mirror": False}]
    for row in metrics["seeds"]:
        model = (trained / f"models/{row['seed']}.keras").read_bytes()
        assert row["sha256"] == sha256(model).hexdigest()
    assert "evaluate: baseline: test accuracy 0.3333 [0." in capsys.readouterr().out


def test_the_table_has_the_predictions_of_one_training_after_the_other(trained):
    evaluate.main(ARGUMENTS)
    table = pd.read_csv(trained / "predictions.csv")
    assert table.columns.tolist() == ["seed", "actual", "predicted", "confidence"]
    assert table["seed"].tolist() == [8, 8, 8, 2, 2, 2]
    assert set(table["actual"]) == {"b"}
    assert table["predicted"].tolist() == ["b", "a", "a", "a", "b", "a"]
    assert table["confidence"].tolist() == pytest.approx([0.9, 0.6, 0.6, 0.6, 0.9, 0.6], abs=1e-6)


def test_an_ensemble_of_one_is_as_accurate_as_its_training(trained, edit):
    edit("seeds: [8, 2]", "seeds: [8]")
    evaluate.main(ARGUMENTS)
    metrics = json.loads((trained / "test.json").read_text())
    assert metrics["ensemble_accuracy"] == metrics["accuracy"] == pytest.approx(1 / 3)
    assert "accuracy_sd" not in metrics


def test_a_missing_training_is_refused(trained):
    (trained / "models/2.keras").unlink()
    with pytest.raises(PipelineError, match=r"models/2\.keras: no such file\. Run `dvc repro`"):
        evaluate.main(ARGUMENTS)


def assert_refused(project, message: str) -> None:
    """Evaluate models/0.keras, which must be refused, and keep the outputs of the last run."""
    for name in ("test.json", "predictions.csv"):
        (project / name).write_text("last run")
    with pytest.raises(PipelineError, match=message):
        evaluate.main(ARGUMENTS)
    for name in ("test.json", "predictions.csv"):
        assert (project / name).read_text() == "last run"
    assert not list(project.glob(".*"))


@pytest.fixture
def arrays(project):
    """Write twenty test images, 8×8×1, of two classes."""
    (project / "models").mkdir()
    images, labels = task(20)
    write_arrays(project / "arrays/test", images, labels)
    (project / "arrays/info.json").write_text(json.dumps({"classes": ["dark", "bright"]}))
    return project


@pytest.mark.parametrize(("shape", "classes"), [((9, 8, 1), 2), ((8, 8, 3), 2), ((8, 8, 1), 3)])
def test_a_model_for_other_images_or_classes_is_refused(arrays, shape, classes):
    images = keras.Input(shape)
    logits = keras.layers.Dense(classes)(keras.layers.Flatten()(images))
    keras.Model(images, logits).save(arrays / "models/0.keras")
    assert_refused(arrays, rf"models/0\.keras: must take \(8, 8, 1\) images of 2 classes\. Got "
            rf"\({shape[0]}, 8, {shape[2]}\) and {classes}\. Run `dvc repro`")  # fmt: skip


def test_a_model_that_is_truncated_or_contains_code_is_refused(arrays):
    images = keras.Input((8, 8, 1))
    x = keras.layers.Lambda(lambda x: x)(keras.layers.Flatten()(images))
    keras.Model(images, keras.layers.Dense(2)(x)).save(arrays / "models/0.keras")
    assert_refused(arrays, r"models/0\.keras: cannot be loaded: .*[Ll]ambda")
    intact = (arrays / "models/0.keras").read_bytes()
    (arrays / "models/0.keras").write_bytes(intact[: len(intact) // 2])
    assert_refused(
        arrays, r"models/0\.keras: cannot be loaded: not a complete archive\. Run `dvc repro`"
    )
