"""Evaluate: predict validation and test images with all trainings of one model, and measure them.

Reads   models/MODEL/SEED.keras, data/arrays/…, data/split/SEED.npz
Writes  metrics/test/MODEL.json        mean accuracy over the trainings with its interval, other
                                       mean metrics, and the accuracy of the ensemble; the metrics
                                       of each training, and which images it classified correctly;
                                       the accuracy on each slice of the test images
        data/predictions/MODEL/SEED.parquet
                                       split, id, label, logits: a row for each validation and test
                                       image (see pipeline/data/predictions.py)
        plots/predictions/MODEL.csv    actual, predicted: a row for each training and test image
Params  evaluate, backend, seeds, threads
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import log_softmax
from sklearn.metrics import (
    average_precision_score,
    brier_score_loss,
    cohen_kappa_score,
    precision_recall_fscore_support,
)

from pipeline.config.params import load
from pipeline.core.batching import batch_size
from pipeline.core.errors import PipelineError, first_few, one_line, run
from pipeline.core.files import atomic_path, read_json, require_file, sha256, write_json
from pipeline.core.progress import Progress
from pipeline.core.text import counted, decimal
from pipeline.data import arrays, calibration, predictions, rows
from pipeline.data.calibration import Calibration
from pipeline.data.predictions import SPLITS, Predictions
from pipeline.runtime import select_backend
from pipeline.stats import correctness, crossed, slices
from pipeline.stats.confidence import binomial_interval, calibration_error, choose_threshold

if TYPE_CHECKING:
    import keras

    from pipeline.runtime.input_pipeline import Subset

REQUIRED_ACCURACIES = (0.9, 0.95, 0.98, 0.99)  # that `selective_accuracies` reports
MORE_METRICS = (
    "balanced_accuracy", "precision", "kappa", "brier_score", "temperature", "loss_uncalibrated",
    "calibration_error_uncalibrated",
)  # fmt: skip
CLASS_METRICS = ("precision", "recall", "f1", "average_precision")


def measure(
    logits: np.ndarray,
    labels: np.ndarray,
    classes: list[str],
    calibrated: Calibration,
) -> dict:
    """Compute the metrics of one training from its logits.

    Args:
        logits: `(n, k)`.
        labels: `(n,)` int64, in [0, k).
        classes: k names.
        calibrated: Temperature of the probabilities, but for the metrics named `uncalibrated`, and
            results on the validation images.
    """
    logits = logits.astype(np.float64)
    uncalibrated = log_softmax(logits, axis=1)  # (n, k)
    log_probabilities = log_softmax(logits / calibrated.temperature, axis=1)  # (n, k)
    probabilities = np.exp(log_probabilities)
    predicted = logits.argmax(axis=1)
    correct = predicted == labels
    confidence = probabilities.max(axis=1)
    label_log_probability = np.take_along_axis(log_probabilities, labels[:, None], axis=1)  # (n, 1)
    rank = (log_probabilities > label_log_probability).sum(axis=1)
    all_labels = np.arange(len(classes))
    precision, recall, f1, images = precision_recall_fscore_support(
        labels, predicted, labels=all_labels, zero_division=0
    )
    return {
        "accuracy": float(correct.mean()),
        "loss": log_loss(log_probabilities, labels),
        "precision": float(precision.mean()),
        "balanced_accuracy": float(recall.mean()),
        "f1": float(f1.mean()),
        "top3_accuracy": float((rank < 3).mean()),
        "calibration_error": calibration_error(confidence, correct),
        "temperature": calibrated.temperature,
        "loss_uncalibrated": log_loss(uncalibrated, labels),
        "calibration_error_uncalibrated": calibration_error(
            np.exp(uncalibrated.max(axis=1)), correct
        ),
        "kappa": float(cohen_kappa_score(labels, predicted, labels=all_labels)),
        "brier_score": float(brier_score_loss(labels, probabilities, labels=all_labels)),
        "classes": [
            {
                "class": name,
                "precision": float(precision[label]),
                "recall": float(recall[label]),
                "f1": float(f1[label]),
                "average_precision": average_precision(labels == label, probabilities[:, label]),
                "images": int(images[label]),
            }
            for label, name in enumerate(classes)
        ],
        "selective": selective_accuracies(calibrated, confidence, correct),
        "correct": correctness.pack(correct, np.array(classes)[labels]),
    }


def log_loss(log_probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean negative log-likelihood, in nats, of labels `(n,)` under `(n, k)`."""
    return float(-np.take_along_axis(log_probabilities, labels[:, None], axis=1).mean())


def selective_accuracies(
    calibrated: Calibration, confidence: np.ndarray, correct: np.ndarray
) -> list[dict]:
    """Measure what `predict --accuracy` reaches on the test images, for REQUIRED_ACCURACIES.

    Args:
        calibrated: From the model's file, with the results on the validation images.
        confidence: `(n,)` probability of the predicted class of each test image.
        correct: `(n,)` bool.

    Returns:
        For each required accuracy the threshold of confidence, the share of the images that reach
        it, and their accuracy with its interval. The threshold is None if the validation images do
        not show the required accuracy, and the accuracy is None if no image reaches the threshold.
    """
    rows = []
    for required in REQUIRED_ACCURACIES:
        threshold = choose_threshold(calibrated.thresholds, required)
        row: dict[str, float | None] = {"required": required, "threshold": None}
        if threshold:
            above = confidence >= threshold.confidence
            low, high = binomial_interval(above.sum(), correct[above].sum())
            row |= {
                "threshold": threshold.confidence,
                "coverage": float(above.mean()),
                "accuracy": float(correct[above].mean()) if above.any() else None,
                "low": low,
                "high": high,
            }
        rows.append(row)
    return rows


def average_precision(is_class: np.ndarray, probability: np.ndarray) -> float:
    """Return the average precision of one class; 0 if it has no images, as for other scores.

    Args:
        is_class: `(n,)` bool, whether an image is of the class.
        probability: `(n,)` of the class, in [0, 1].
    """
    return float(average_precision_score(is_class, probability)) if is_class.any() else 0.0


def summarize(trainings: list[dict], ensemble_accuracy: float) -> dict:
    """Summarize the metrics of all trainings of a model.

    Args:
        trainings: Of each training its seed and the metrics of `measure`.
        ensemble_accuracy: Accuracy of the mean of all probabilities.

    Returns:
        The mean accuracy, its standard deviation over the trainings (unless there is only one) and
        its interval, and means of other metrics. Also lists, which `dvc metrics show` leaves out:
        `more`, means of further metrics; `classes`, the mean scores of each class; `seeds`, the
        metrics of each training.
    """
    accuracy = crossed.mean_interval(correctness.correct_table(trainings))
    summary = {"accuracy": float(accuracy.mean)}
    if accuracy.standard_deviation is not None:
        summary["accuracy_sd"] = float(accuracy.standard_deviation)
    summary |= {
        "accuracy_low": float(accuracy.low),
        "accuracy_high": float(accuracy.high),
        "trainings": len(trainings),
        "ensemble_accuracy": ensemble_accuracy,
    }
    for name in ("loss", "f1", "top3_accuracy", "calibration_error"):
        summary[name] = mean(trainings, name)
    by_class = zip(*(training["classes"] for training in trainings), strict=True)
    return {
        **summary,
        "more": [{name: mean(trainings, name) for name in MORE_METRICS}],
        "classes": [
            {
                "class": rows[0]["class"],
                **{name: mean(rows, name) for name in CLASS_METRICS},
                "images": rows[0]["images"],
            }
            for rows in by_class
        ],
        "seeds": [
            {name: value for name, value in training.items() if name != "classes"}
            for training in trainings
        ],
    }


def mean(rows: Sequence[dict], name: str) -> float:
    """Return the mean of a metric."""
    return float(np.mean([row[name] for row in rows]))


def load_model(
    path: Path, image_shape: tuple[int, ...], num_classes: int, precision: str
) -> "keras.Model":
    """Load a model to predict with.

    Raises:
        PipelineError: It takes other images, or has other classes.
    """
    from pipeline.runtime import acceleration, backend

    model = backend.load(path)
    expected, received = (image_shape, num_classes), (model.input_shape[1:], model.output_shape[-1])
    if received != expected:
        raise PipelineError(
            f"{path}: must take {expected[0]} images of {expected[1]} classes. "
            f"Got {received[0]} and {received[1]}. Run `dvc repro`"
        )
    return acceleration.accelerate(model, precision)


def average_over_views(model: "keras.Model", mirror: bool, shift: int) -> "keras.Model":
    """Return a model that averages a model's logits over several views of each image.

    Args:
        model: From images `(n, h, w, c)` to logits.
        mirror: Whether to include the mirror image of each view.
        shift: Pixels by which the image is shifted, up and left, and down and right; what is new
            mirrors the edge. Each of both counts half as much as the image itself. 0: none.

    Raises:
        PipelineError: The images are not larger than the shift.

    Reference: Jordan (2024), https://arxiv.org/abs/2404.00498, section 3.5
    """
    import keras
    from keras import ops

    images = keras.Input(model.input_shape[1:])
    height, width = images.shape[1:3]
    if shift >= min(height, width):
        raise PipelineError(
            f"params.yaml: evaluate.shift must be less than the images' {height} × {width} pixels. "
            f"Got {shift}"
        )
    views = [(2, images)]  # weight and view
    if shift:
        padding = ((0, 0), (shift, shift), (shift, shift), (0, 0))
        padded = ops.pad(images, padding, mode="reflect")
        views += [(1, padded[:, i : i + height, i : i + width]) for i in (0, 2 * shift)]
    if mirror:
        views += [(weight, ops.flip(view, axis=2)) for weight, view in views]
    total = sum(weight for weight, _ in views)
    return keras.Model(images, sum(weight * model(view) for weight, view in views) / total)


def predict(
    model: "keras.Model", subset: "Subset", num_classes: int, shown: Progress
) -> np.ndarray:
    """Return the logits `(m, k)` of the images in a subset.

    Args:
        model: From images to logits.
        subset: Its images.
        num_classes: k.
        shown: Counts the images.
    """
    import keras

    from pipeline.runtime import acceleration
    from pipeline.runtime.input_pipeline import Batches

    if not len(subset.rows):
        return np.empty((0, num_classes), np.float32)
    batches = Batches(subset, num_classes, batch_size(subset.images.shape[1:]))
    counter = keras.callbacks.LambdaCallback(
        on_predict_batch_end=lambda batch, logs: shown.advance(len(logs["outputs"]))
    )
    return model.predict(acceleration.as_dataset(batches), verbose=0, callbacks=[counter])


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a name in `compare` of params.yaml")
    for name in ("models", "arrays", "split", "metrics", "predictions", "confusion"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    args = parser.parse_args(argv)
    params = load()

    files = {seed: require_file(args.models / f"{seed}.keras") for seed in params.seeds}
    classes = read_json(args.arrays / "info.json")["classes"]
    train_images, train_labels = arrays.load(args.arrays / "train")
    images, labels = arrays.load(args.arrays / "test")
    train_ids, ids = (np.array(rows.ids(args.arrays, s), object) for s in ("train", "test"))
    held_out = {
        seed: arrays.read_split(args.split / f"{seed}.npz", len(train_labels))[1]
        for seed in params.seeds
    }

    select_backend.use(params.backend, params.threads)
    from pipeline.runtime import acceleration
    from pipeline.runtime.input_pipeline import Subset

    test = Subset(images, labels, np.arange(len(labels)))
    precision = acceleration.resolve_precision(params.evaluate.precision)
    mirror, shift = params.evaluate.mirror, params.evaluate.shift
    trainings = []
    total = np.zeros((len(labels), len(classes)))  # sum of the probabilities
    predicted = sum(len(labels) + len(held_out[seed]) for seed in params.seeds)
    with (
        atomic_path(args.predictions) as folder,
        Progress(f"evaluate: {args.model}", predicted, "image") as shown,
    ):
        for seed, path in files.items():
            model = load_model(path, images.shape[1:], len(classes), precision)
            calibrated = calibration.read(path)
            test_model = average_over_views(model, mirror, shift) if mirror or shift else model
            logits = predict(test_model, test, len(classes), shown)
            validation = Subset(train_images, train_labels, held_out[seed])
            validation_logits = predict(model, validation, len(classes), shown)
            predictions.write(
                folder / f"{seed}.parquet",
                Predictions(
                    classes=classes,
                    splits=np.repeat(SPLITS, [len(validation.rows), len(labels)]),
                    ids=np.concatenate([train_ids[validation.rows], ids]),
                    labels=np.concatenate([train_labels[validation.rows], labels]),
                    logits=np.concatenate([validation_logits, logits]),
                    temperature=calibrated.temperature,
                ),
            )
            # compare checks the champion's file against the hash
            metrics = measure(logits, labels, classes, calibrated)
            trainings.append({"seed": seed, "sha256": sha256(path), **metrics})
            total += calibrated.probabilities(logits)
    ensemble_accuracy = float((total.argmax(axis=1) == labels).mean())
    metrics = summarize(trainings, ensemble_accuracy)
    metadata = rows.metadata(args.arrays, "test")
    metrics["slices"] = slices.compare_slices(correctness.correct_table(trainings), metadata)
    metrics["metadata"] = [
        {"column": column, "values": metadata[column].nunique()} for column in metadata
    ]
    metrics["computed"] = [{"precision": precision, "mirror": mirror, "shift": shift}]
    write_json(args.metrics, metrics)
    table = predictions.read_table(args.predictions, params.seeds)
    with atomic_path(args.confusion) as path:
        table[["actual", "predicted"]].to_csv(path, index=False)
    count = len(trainings)
    trained = "one training" if count == 1 else f"mean of {count} trainings"
    print(
        f"evaluate: {args.model}: test accuracy {metrics['accuracy']:.4f} "
        f"[{metrics['accuracy_low']:.4f}, {metrics['accuracy_high']:.4f}], {trained}, "
        f"{counted(len(labels), 'image')} -> {args.metrics}"
    )
    worse = [
        f"{row['column']} {row['value']} by {decimal(-100 * row['difference'])} points"
        for row in metrics["slices"]
        if row["p_holm"] <= crossed.ALPHA and row["difference"] < 0
    ]
    if worse:
        print(
            f"evaluate: {args.model}: warning: less accurate than on the rest of the test images: "
            f"{one_line(first_few(worse))}"
        )


if __name__ == "__main__":
    run(main)
