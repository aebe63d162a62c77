"""Evaluate: measure all trainings of one model on the test images.

Reads   models/MODEL/SEED.keras, data/arrays/test/{images,labels}.npy, data/arrays/info.json
Writes  metrics/test/MODEL.json        mean accuracy over the trainings with its interval, other
                                       mean metrics, and the accuracy of the ensemble; the metrics
                                       of each training, and which images it classified correctly
        plots/predictions/MODEL.csv    seed, actual, predicted, confidence: a row for each training
                                       and test image
Params  evaluate, backend, seeds, threads
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.special import log_softmax, softmax
from sklearn.metrics import precision_recall_fscore_support

from pipeline.config.params import load
from pipeline.core.batching import batch_size
from pipeline.core.errors import PipelineError, run
from pipeline.core.files import atomic_path, read_json, require_file, sha256, write_json
from pipeline.core.text import counted
from pipeline.data import arrays
from pipeline.runtime import select_backend
from pipeline.stats import correctness, crossed

if TYPE_CHECKING:
    import keras

CALIBRATION_BINS = 15  # as Guo et al.


def calibration_error(confidence: np.ndarray, correct: np.ndarray) -> float:
    """Return the expected calibration error, in [0, 1].

    It is the mean gap between confidence and accuracy over bins of equal width, weighted by the
    number of images in each.

    Args:
        confidence: `(n,)` probability of the predicted class, in [0, 1].
        correct: `(n,)` bool.

    Reference: Guo et al., "On Calibration of Modern Neural Networks" (2017),
        https://arxiv.org/abs/1706.04599
    """
    # bins are open on the left, (0, 1/15], as in the paper
    bins = np.ceil(confidence * CALIBRATION_BINS).astype(int)
    gaps = np.bincount(bins, weights=confidence - correct)  # (bins,) summed gap in each bin
    return float(np.abs(gaps).sum() / len(confidence))


def measure(logits: np.ndarray, labels: np.ndarray, classes: list[str]) -> tuple[dict, dict]:
    """Compute the metrics of one training from its logits.

    Args:
        logits: `(n, k)`.
        labels: `(n,)` int64, in [0, k).
        classes: k names.

    Returns:
        The metrics, and the columns actual, predicted and confidence, each `(n,)`.
    """
    log_probabilities = log_softmax(logits.astype(np.float64), axis=1)  # (n, k)
    predicted = log_probabilities.argmax(axis=1)
    confidence = np.exp(log_probabilities.max(axis=1))
    correct = predicted == labels
    label_log_probability = np.take_along_axis(log_probabilities, labels[:, None], axis=1)  # (n, 1)
    rank = (log_probabilities > label_log_probability).sum(axis=1)
    all_labels = np.arange(len(classes))
    scores = precision_recall_fscore_support(labels, predicted, labels=all_labels, zero_division=0)
    precision, recall, f1 = (float(score.mean()) for score in scores[:3])
    names = np.array(classes)
    metrics = {
        "accuracy": float(correct.mean()),
        "loss": float(-label_log_probability.mean()),
        "precision": precision,
        "recall": recall,
        "f1": f1,
        "top3_accuracy": float((rank < 3).mean()),
        "calibration_error": calibration_error(confidence, correct),
        "classes": [
            {
                "class": name,
                "precision": float(p),
                "recall": float(r),
                "f1": float(f),
                "images": int(n),
            }
            for name, p, r, f, n in zip(classes, *scores, strict=True)
        ],
        "correct": correctness.pack(correct, names[labels]),
    }
    columns = {
        "actual": names[labels], "predicted": names[predicted], "confidence": confidence.round(6)
    }  # fmt: skip
    return metrics, columns


def summarize(trainings: list[dict], ensemble_accuracy: float) -> dict:
    """Summarize the metrics of all trainings of a model.

    Args:
        trainings: Of each training its seed and the metrics of `measure`.
        ensemble_accuracy: Accuracy of the mean of all probabilities.

    Returns:
        The mean accuracy, its standard deviation over the trainings (unless there is only one) and
        its interval, and means of other metrics. Also two lists, which `dvc metrics show` leaves
        out: `classes`, the mean scores of each class, and `seeds`, the metrics of each training.
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
        "classes": [
            {
                "class": rows[0]["class"],
                "precision": mean(rows, "precision"),
                "recall": mean(rows, "recall"),
                "f1": mean(rows, "f1"),
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
    path: Path, image_shape: tuple[int, ...], num_classes: int, precision: str, mirror: bool
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
    accelerated = acceleration.accelerate(model, precision)
    return average_over_mirror(accelerated) if mirror else accelerated


def average_over_mirror(model: "keras.Model") -> "keras.Model":
    """Return a model that averages a model's logits over each image and its mirror image."""
    import keras

    images = keras.Input(model.input_shape[1:])
    logits = [model(images), model(keras.ops.flip(images, axis=2))]
    return keras.Model(images, keras.layers.average(logits))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a name in `compare` of params.yaml")
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--arrays", type=Path, required=True)
    parser.add_argument("--metrics", type=Path, required=True)
    parser.add_argument("--predictions", type=Path, required=True)
    args = parser.parse_args(argv)
    params = load()

    files = {seed: require_file(args.models / f"{seed}.keras") for seed in params.seeds}
    classes = read_json(args.arrays / "info.json")["classes"]
    images, labels = arrays.load(args.arrays / "test")

    select_backend.use(params.backend, params.threads)
    from pipeline.runtime import acceleration
    from pipeline.runtime.input_pipeline import Batches, Subset

    subset = Subset(images, labels, np.arange(len(labels)))
    batches = Batches(subset, len(classes), batch_size(images.shape[1:]))
    dataset = acceleration.as_dataset(batches)
    precision = acceleration.resolve_precision(params.evaluate.precision)
    trainings, tables = [], []
    total = np.zeros((len(labels), len(classes)))  # sum of the probabilities
    for seed, path in files.items():
        model = load_model(path, images.shape[1:], len(classes), precision, params.evaluate.mirror)
        logits = model.predict(dataset, verbose=int(sys.stdout.isatty()))
        metrics, columns = measure(logits, labels, classes)
        # compare checks the champion's file against it
        trainings.append({"seed": seed, "sha256": sha256(path), **metrics})
        tables.append(pd.DataFrame({"seed": seed, **columns}))
        total += softmax(logits.astype(np.float64), axis=1)
    ensemble_accuracy = float((total.argmax(axis=1) == labels).mean())
    metrics = summarize(trainings, ensemble_accuracy)
    metrics["computed"] = [{"precision": precision, "mirror": params.evaluate.mirror}]
    write_json(args.metrics, metrics)
    with atomic_path(args.predictions) as path:
        pd.concat(tables).to_csv(path, index=False)
    count = len(trainings)
    trained = "one training" if count == 1 else f"mean of {count} trainings"
    print(
        f"evaluate: {args.model}: test accuracy {metrics['accuracy']:.4f} "
        f"[{metrics['accuracy_low']:.4f}, {metrics['accuracy_high']:.4f}], {trained}, "
        f"{counted(len(labels), 'image')} -> {args.metrics}"
    )


if __name__ == "__main__":
    run(main)
