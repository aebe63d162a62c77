"""Evaluate: measure one trained model on the test images.

Reads   models/MODEL.keras, data/arrays/test/{images,labels}.npy, data/arrays/info.json
Writes  metrics/test/MODEL.json           accuracy with its interval, loss, precision, …; and
                                          which images it classified correctly
        plots/predictions/MODEL.csv       actual, predicted, confidence: one row a test image
Params  evaluate, backend
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.special import log_softmax
from scipy.stats import binomtest
from sklearn.metrics import precision_recall_fscore_support

from pipeline.config.params import load
from pipeline.core.batching import batch_size
from pipeline.core.errors import PipelineError, run
from pipeline.core.files import atomic_path, read_json, require_file, sha256, write_json
from pipeline.data import arrays
from pipeline.runtime import select_backend
from pipeline.stats import correctness

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


def measure(
    logits: np.ndarray, labels: np.ndarray, classes: list[str]
) -> tuple[dict, pd.DataFrame]:
    """Compute the metrics of a model from its logits.

    Args:
        logits: `(n, k)`.
        labels: `(n,)` int64, in [0, k).
        classes: k names.

    Returns:
        The metrics, and a table with one row per image: actual, predicted, confidence.
    """
    log_probabilities = log_softmax(logits.astype(np.float64), axis=1)  # (n, k)
    predicted = log_probabilities.argmax(axis=1)
    confidence = np.exp(log_probabilities.max(axis=1))
    correct = predicted == labels
    label_log_probability = np.take_along_axis(log_probabilities, labels[:, None], axis=1)  # (n, 1)
    rank = (log_probabilities > label_log_probability).sum(axis=1)
    interval = binomtest(int(correct.sum()), len(labels)).proportion_ci(0.95, method="wilson")
    all_labels = np.arange(len(classes))
    scores = precision_recall_fscore_support(labels, predicted, labels=all_labels, zero_division=0)
    precision, recall, f1 = (float(score.mean()) for score in scores[:3])
    metrics = {
        "accuracy": float(correct.mean()),
        "accuracy_low": interval.low,
        "accuracy_high": interval.high,
        "loss": float(-label_log_probability.mean()),
        "precision": precision,
        "recall": recall,
        "f1": f1,
        "top3_accuracy": float((rank < 3).mean()),
        "calibration_error": calibration_error(confidence, correct),
        # a list: `dvc metrics show` leaves lists out of its table
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
    }
    names = np.array(classes)
    metrics["answers"] = [correctness.pack(correct, names[labels])]
    table = pd.DataFrame(
        {"actual": names[labels], "predicted": names[predicted], "confidence": confidence.round(6)}
    )
    return metrics, table


def average_over_mirror(model: "keras.Model") -> "keras.Model":
    """Return a model that averages a model's logits over each image and its mirror image."""
    import keras

    images = keras.Input(model.input_shape[1:])
    logits = [model(images), model(keras.ops.flip(images, axis=2))]
    return keras.Model(images, keras.layers.average(logits))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--arrays", type=Path, required=True)
    parser.add_argument("--metrics", type=Path, required=True)
    parser.add_argument("--predictions", type=Path, required=True)
    args = parser.parse_args(argv)
    params = load()

    require_file(args.model)
    classes = read_json(args.arrays / "info.json")["classes"]
    images, labels = arrays.load(args.arrays / "test")

    select_backend.use(params.backend)
    from pipeline.runtime import acceleration, backend
    from pipeline.runtime.input_pipeline import Batches, Subset

    model = backend.load(args.model)
    expected = ((*images.shape[1:],), len(classes))
    if (model.input_shape[1:], model.output_shape[-1]) != expected:
        raise PipelineError(
            f"{args.model}: must take {expected[0]} images of {expected[1]} classes. Got "
            f"{model.input_shape[1:]} and {model.output_shape[-1]}. Run `dvc repro`"
        )
    test = Subset(images, labels, np.arange(len(labels)))
    precision = acceleration.resolve_precision(params.evaluate.precision)
    accelerated = acceleration.accelerate(model, precision)
    if params.evaluate.mirror:
        accelerated = average_over_mirror(accelerated)
    batches = acceleration.as_dataset(Batches(test, len(classes), batch_size(images.shape[1:])))
    logits = accelerated.predict(batches, verbose=int(sys.stdout.isatty()))
    metrics, predictions = measure(logits, labels, classes)
    metrics["computed_in"] = precision
    # identifies the evaluated file and how it was evaluated; compare checks the champion against it
    metrics["model"] = [{"sha256": sha256(args.model), "mirror": params.evaluate.mirror}]
    write_json(args.metrics, metrics)
    with atomic_path(args.predictions) as path:
        predictions.to_csv(path, index=False)
    print(
        f"evaluate: {args.model.stem}: test accuracy {metrics['accuracy']:.4f} "
        f"[{metrics['accuracy_low']:.4f}, {metrics['accuracy_high']:.4f}], {len(labels)} images "
        f"-> {args.metrics}"
    )


if __name__ == "__main__":
    run(main)
