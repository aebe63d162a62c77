"""Evaluate: metrics of a few predictions, computed by hand."""

import json
import math
from hashlib import sha256
from itertools import pairwise

import keras
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import sklearn.metrics

from pipeline import evaluate
from pipeline.core.errors import PipelineError
from pipeline.data import calibration, predictions, rows
from pipeline.data.arrays import write_split
from pipeline.data.calibration import Calibration, Threshold
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
    return evaluate.measure(np.log(PROBABILITIES) + 3, LABELS, CLASSES, Calibration())


def test_accuracy_and_loss_are_means_over_the_images(measured):
    assert measured["accuracy"] == 0.75
    assert measured["loss"] == pytest.approx(-np.log([0.7, 0.7, 0.5, 0.3]).mean())


def test_scores_are_averaged_over_classes_that_may_be_absent(measured):
    # a: precision 1/1, recall 1/2, f1 2/3; b: precision 2/3, recall 2/2, f1 4/5; c, d: 0
    assert measured["precision"] == pytest.approx((1 + 2 / 3) / 4)
    assert measured["balanced_accuracy"] == pytest.approx((1 / 2 + 1) / 4)
    assert measured["f1"] == pytest.approx((2 / 3 + 4 / 5) / 4)
    # average precision of b, images by their probability of b: 0.7, 0.6 (an a), 0.5, 0.1
    assert measured["classes"][1] == {
        "class": "b", "precision": pytest.approx(2 / 3), "recall": 1.0, "f1": pytest.approx(0.8),
        "average_precision": pytest.approx((1 + 2 / 3) / 2), "images": 2,
    }  # fmt: skip
    assert measured["classes"][3]["average_precision"] == 0


def test_kappa_is_agreement_beyond_chance_and_the_brier_score_a_sum_of_squares(measured):
    # a is predicted once and true twice of 4, b three times and twice: chance 1/4 * 1/2 + 3/4 * 1/2
    assert measured["kappa"] == pytest.approx((0.75 - 0.5) / (1 - 0.5))
    errors = PROBABILITIES - np.eye(4)[LABELS]
    assert measured["brier_score"] == pytest.approx((errors**2).sum() / 4)


def test_top_three_accuracy_counts_classes_up_to_the_third():
    logits = np.array([[4.0, 3, 2, 1], [4, 3, 2, 1]])
    metrics = evaluate.measure(logits, np.array([2, 3]), CLASSES, Calibration())
    assert metrics["top3_accuracy"] == 0.5


def test_two_classes_are_always_among_the_top_three():
    metrics = evaluate.measure(np.array([[1.0, 0.0]]), np.array([1]), ["a", "b"], Calibration())
    assert (metrics["accuracy"], metrics["top3_accuracy"]) == (0.0, 1.0)


def test_loss_and_calibration_error_are_those_of_the_temperature_and_of_1():
    # at a temperature of 2, 4 to 1 becomes 2 to 1: logits (2 log 2, 0)
    logits, labels = np.log([[4.0, 1.0]] * 3), np.array([0, 0, 1])
    metrics = evaluate.measure(logits, labels, ["a", "b"], Calibration(temperature=2.0))
    assert metrics["temperature"] == 2
    assert metrics["loss"] == pytest.approx((2 * math.log(3 / 2) + math.log(3)) / 3)
    assert metrics["loss_uncalibrated"] == pytest.approx((2 * math.log(5 / 4) + math.log(5)) / 3)
    assert metrics["calibration_error"] == pytest.approx(0, abs=1e-9)  # 2/3 of 3 are correct
    assert metrics["calibration_error_uncalibrated"] == pytest.approx(0.8 - 2 / 3)


def test_test_images_above_the_threshold_of_a_required_accuracy_are_measured():
    # 1,000 of 1,000 show 99.6 % at an error of 2.5 %, 1,850 of 2,000 show 91.3 %
    validated = Calibration(1.0, 2000, [Threshold(0.8, 1000, 1000), Threshold(0.4, 2000, 1850)])
    confidence = np.array([0.9] * 10 + [0.5] * 10 + [0.3] * 5)
    correct = np.array([True] * 19 + [False] * 6)
    by_accuracy = {
        row.pop("required"): row
        for row in evaluate.selective_accuracies(validated, confidence, correct)
    }
    high = {"threshold": 0.8, "coverage": 0.4, "accuracy": 1.0, "high": 1.0,
            "low": pytest.approx(0.025 ** (1 / 10))}  # fmt: skip
    assert by_accuracy[0.95] == by_accuracy[0.99] == high
    assert (by_accuracy[0.9]["threshold"], by_accuracy[0.9]["coverage"]) == (0.4, 0.8)
    assert by_accuracy[0.9]["accuracy"] == pytest.approx(0.95)
    rows = evaluate.selective_accuracies(Calibration(), confidence, correct)
    assert rows[0] == {"required": 0.9, "threshold": None}


def test_metrics_contain_the_correct_images(measured):
    assert unpack(measured["correct"]).tolist() == [True, True, True, False]
    assert same_images(measured["correct"], pack(np.full(4, True), np.array(["a", "b", "b", "a"])))


def training(seed: int, logits: np.ndarray) -> dict:
    return {"seed": seed, **evaluate.measure(logits, LABELS, CLASSES, Calibration())}


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
        "recall": pytest.approx((1 / 2 + 1) / 2), "f1": pytest.approx(2 / 3),
        # a first: 0.7, 0.4 (a b), 0.3; then always 0.49
        "average_precision": pytest.approx(((1 + 2 / 3) / 2 + 1 / 2) / 2), "images": 2,
    }  # fmt: skip
    assert summary["more"][0]["kappa"] == pytest.approx((0.5 + 0) / 2)
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
    averaged = evaluate.average_over_views(left_column, mirror=True, shift=0)
    assert left_column.predict(image, verbose=0).tolist() == [[1.0, 10.0]]
    assert averaged.predict(image, verbose=0).tolist() == [[2.0, 20.0]]


def test_logits_are_averaged_over_shifted_images():
    # the pixels of an image, whose edge is mirrored where it is shifted:
    # 1 2 3    5 4 5    5 6 5
    # 4 5 6    2 1 2    8 9 8
    # 7 8 9    5 4 5    5 6 5
    pixels = keras.Sequential([keras.Input((3, 3, 1)), keras.layers.Flatten()])
    image = np.arange(1.0, 10).reshape(1, 3, 3, 1)
    averaged = evaluate.average_over_views(pixels, mirror=False, shift=1)
    expected = [(2 * a + b + c) / 4 for a, b, c in zip(
        [1, 2, 3, 4, 5, 6, 7, 8, 9], [5, 4, 5, 2, 1, 2, 5, 4, 5], [5, 6, 5, 8, 9, 8, 5, 6, 5],
        strict=True,
    )]  # fmt: skip
    assert averaged.predict(image, verbose=0).tolist() == [expected]
    # each of the three counts as much as its mirror image
    mirrored = np.array(expected).reshape(3, 3)[:, ::-1].ravel()
    both = evaluate.average_over_views(pixels, mirror=True, shift=1).predict(image, verbose=0)
    assert both.tolist() == [((np.array(expected) + mirrored) / 2).tolist()]


def test_a_shift_as_large_as_the_images_is_refused():
    model = keras.Sequential([keras.Input((1, 3, 2)), keras.layers.Flatten()])
    with pytest.raises(PipelineError, match=r"evaluate\.shift must be less than .* 1 × 3 pixels"):
        evaluate.average_over_views(model, mirror=False, shift=1)


ARGUMENTS = (
    "baseline --models models --arrays arrays --split split --metrics test.json "
    "--predictions predictions --confusion confusion.csv"
).split()


@pytest.fixture
def trained(project, edit):
    """Two trainings, and three images of the class `b`, each a row with a single bright pixel.

    The trainings give `b` the probabilities 0.9, 0.4, 0.4 and 0.4, 0.9, 0.4. The training images
    are the same, and the last one or two are for validation.
    """
    edit("seeds: [0]", "seeds: [8, 2]")
    edit("precision: auto\n  # true", "precision: float32\n  # true")  # under evaluate
    images = np.eye(3, dtype=np.float32).reshape(3, 1, 3, 1)
    for split in ("train", "test"):
        write_arrays(project / "arrays" / split, images, np.array([1, 1, 1]))
    for seed, first in {8: 2, 2: 1}.items():
        write_split(project / f"split/{seed}.npz", np.arange(first), np.arange(first, 3))
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
    assert metrics["computed"] == [{"precision": "float32", "mirror": False, "shift": 0}]
    for row in metrics["seeds"]:
        model = (trained / f"models/{row['seed']}.keras").read_bytes()
        assert row["sha256"] == sha256(model).hexdigest()
    assert "evaluate: baseline: test accuracy 0.3333 [0." in capsys.readouterr().out


def test_the_time_left_is_estimated_from_the_images_of_all_trainings(trained, estimates):
    evaluate.main(ARGUMENTS)
    # 3 test images and 1 for validation, then 3 and 2
    assert estimates == [("evaluate: baseline", 9, done) for done in (3, 4, 7, 9)]


def test_the_table_has_the_predictions_of_one_training_after_the_other(trained):
    evaluate.main(ARGUMENTS)
    table = pd.read_csv(trained / "confusion.csv")
    assert table.columns.tolist() == ["actual", "predicted"]
    assert set(table["actual"]) == {"b"}
    assert table["predicted"].tolist() == ["b", "a", "a", "a", "b", "a"]


def test_predictions_are_those_of_the_validation_images_of_a_seed_and_of_the_test_images(
    trained, edit
):
    evaluate.main(ARGUMENTS)
    one, two = (predictions.read(trained / f"predictions/{seed}.parquet") for seed in (8, 2))
    assert one.splits.tolist() == ["validation", "test", "test", "test"]
    assert one.ids.tolist() == ["train/2.png", "test/0.png", "test/1.png", "test/2.png"]
    assert one.probabilities[:, 1] == pytest.approx([0.4, 0.9, 0.4, 0.4], abs=1e-6)
    assert two.ids.tolist()[:3] == ["train/1.png", "train/2.png", "test/0.png"]
    assert two.probabilities[:, 1] == pytest.approx([0.9, 0.4, 0.4, 0.9, 0.4], abs=1e-6)
    # of test images alone, averaged over the mirror image, whose bright pixel is the other one
    edit("mirror: false", "mirror: true")
    evaluate.main(ARGUMENTS)
    mirrored = predictions.read(trained / "predictions/8.parquet")
    assert mirrored.of("validation").logits.tolist() == one.of("validation").logits.tolist()
    expected = (one.of("test").logits + one.of("test").logits[::-1]) / 2
    assert np.allclose(mirrored.of("test").logits, expected)


def test_every_metric_can_be_computed_from_the_predictions(project, edit):
    """With formulas, or functions of scikit-learn, that evaluate does not use."""
    edit("seeds: [0]", "seeds: [0, 1, 2]")
    rng = np.random.default_rng(0)
    for split, count in (("train", 20), ("test", 150)):
        images = rng.random((count, 2, 2, 1)).astype(np.float32)
        write_arrays(project / "arrays" / split, images, np.arange(count) % 4)
    (project / "arrays/info.json").write_text(json.dumps({"classes": CLASSES}))
    (project / "models").mkdir()
    for seed in range(3):
        write_split(project / f"split/{seed}.npz", np.arange(12), np.arange(12, 20))
        keras.utils.set_random_seed(seed)
        pixels = keras.Input((2, 2, 1))
        logits = keras.layers.Dense(4)(keras.layers.Flatten()(pixels))
        path = project / f"models/{seed}.keras"
        keras.Model(pixels, logits).save(path)
        # all of 100 validation images correct: with 95 % confidence, an accuracy of 0.97
        calibrated = Calibration([0.5, 1.0, 2.0][seed], 100, [Threshold(0.4, 100, 100)])
        calibration.store(path, calibrated)
    evaluate.main(ARGUMENTS)
    metrics = json.loads((project / "test.json").read_text())

    tables = [predictions.read(project / f"predictions/{seed}.parquet").of("test")
              for seed in range(3)]  # fmt: skip
    for row, table in zip(metrics["seeds"], tables, strict=True):
        labels, predicted = table.labels, table.logits.argmax(axis=1)
        uncalibrated, p = (
            exponentials / exponentials.sum(axis=1, keepdims=True)
            for temperature in (1, table.temperature)
            for exponentials in [np.exp(table.logits.astype(float) / temperature)]
        )
        # (n, k): agreement by chance is the sum over classes of the products of shares
        chance = (np.bincount(labels) * np.bincount(predicted, minlength=4)).sum() / 150**2
        agreement = (labels == predicted).mean()
        error, error_uncalibrated = (
            sum(
                abs((confidence[inside] - (labels == predicted)[inside]).sum())
                for low, high in pairwise(np.arange(16) / 15)
                for inside in [(confidence > low) & (confidence <= high)]
            )
            / 150
            for confidence in (p.max(axis=1), uncalibrated.max(axis=1))
        )
        sure = p.max(axis=1) >= 0.4
        reached = {"threshold": 0.4, "coverage": sure.mean(),
                   "accuracy": (labels == predicted)[sure].mean()}  # fmt: skip
        assert [
            {key: selective[key] for key in reached} if selective["threshold"] else None
            for selective in row["selective"]
        ] == [reached, reached, None, None]  # for 0.9, 0.95, 0.98 and 0.99
        assert unpack(row["correct"]).tolist() == (labels == predicted).tolist()
        assert row["accuracy"] == agreement
        assert {key: row[key] for key in (
            "loss", "precision", "balanced_accuracy", "f1", "top3_accuracy", "calibration_error",
            "kappa", "brier_score", "temperature", "loss_uncalibrated",
            "calibration_error_uncalibrated",
        )} == pytest.approx({
            "loss": sklearn.metrics.log_loss(labels, p),
            "precision": sklearn.metrics.precision_score(
                labels, predicted, average="macro", zero_division=0
            ),
            "balanced_accuracy": sklearn.metrics.balanced_accuracy_score(labels, predicted),
            "f1": sklearn.metrics.f1_score(labels, predicted, average="macro"),
            "top3_accuracy": sklearn.metrics.top_k_accuracy_score(labels, p, k=3),
            "calibration_error": error,
            "temperature": [0.5, 1.0, 2.0][row["seed"]],
            "loss_uncalibrated": sklearn.metrics.log_loss(labels, uncalibrated),
            "calibration_error_uncalibrated": error_uncalibrated,
            "kappa": (agreement - chance) / (1 - chance),
            "brier_score": ((p - np.eye(4)[labels]) ** 2).sum(axis=1).mean(),
        }, rel=1e-12)  # fmt: skip
    accuracies = [table.correct.mean() for table in tables]
    mean_probabilities = np.mean([table.probabilities for table in tables], axis=0)
    assert metrics["accuracy"] == pytest.approx(np.mean(accuracies), rel=1e-12)
    assert metrics["accuracy_sd"] == pytest.approx(np.std(accuracies, ddof=1), rel=1e-12)
    assert metrics["ensemble_accuracy"] == (mean_probabilities.argmax(axis=1) == labels).mean()
    for name in ("balanced_accuracy", "kappa", "brier_score", "precision"):
        assert metrics["more"][0][name] == np.mean([row[name] for row in metrics["seeds"]])
    for label, row in enumerate(metrics["classes"]):
        by_rank = [table.labels[np.argsort(-table.probabilities[:, label])] == label
                   for table in tables]  # fmt: skip
        precision = [np.mean(((np.cumsum(hits)) / np.arange(1, 151))[hits]) for hits in by_rank]
        assert row["average_precision"] == pytest.approx(np.mean(precision), rel=1e-12)
        recalls = [(table.predicted[table.labels == label] == label).mean() for table in tables]
        assert row["recall"] == pytest.approx(np.mean(recalls), rel=1e-12)


def test_a_slice_that_is_less_accurate_than_the_rest_is_reported(trained, capsys):
    images = np.tile(np.eye(3, dtype=np.float32), (40, 1)).reshape(120, 1, 3, 1)
    write_arrays(trained / "arrays/test", images, np.ones(120, int))
    ids = [f"{row}.png" for row in range(120)]
    # every third image has the bright pixel that both trainings misclassify
    metadata = [{"camera": "B\n" if row % 3 == 2 else "A", "name": str(row)} for row in range(120)]
    rows.write(trained / "arrays", "test", pa.table({"id": ids, "metadata": metadata}))
    evaluate.main(ARGUMENTS)
    metrics = json.loads((trained / "test.json").read_text())
    assert [(row["value"], row["accuracy"]) for row in metrics["slices"]] == [
        ("A", 0.5), ("B\n", 0)
    ]  # fmt: skip
    assert metrics["metadata"] == [
        {"column": "camera", "values": 2}, {"column": "name", "values": 120}
    ]  # fmt: skip
    assert capsys.readouterr().out.endswith(
        "warning: less accurate than on the rest of the test images: camera B by 50.0 points\n"
    )


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
    outputs = ("test.json", "confusion.csv", "predictions/0.parquet")
    (project / "predictions").mkdir(exist_ok=True)
    for name in outputs:
        (project / name).write_text("last run")
    with pytest.raises(PipelineError, match=message):
        evaluate.main(ARGUMENTS)
    for name in outputs:
        assert (project / name).read_text() == "last run"
    assert not list(project.glob(".*"))


@pytest.fixture
def arrays(project):
    """Write twenty test images, 8×8×1, of two classes."""
    (project / "models").mkdir()
    for split in ("train", "test"):
        write_arrays(project / "arrays" / split, *task(20))
    write_split(project / "split/0.npz", np.arange(15), np.arange(15, 20))
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
