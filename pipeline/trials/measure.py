"""Measure: run one training of a study, and measure its gradients before training."""

import time

import keras
import numpy as np

from pipeline.config.schema import Model, Train
from pipeline.data.preprocessor import Preprocessor
from pipeline.runtime import acceleration
from pipeline.runtime.input_pipeline import Batches, Subset
from pipeline.stats import correctness
from pipeline.training import building, loop, optim
from pipeline.training.callbacks import Diverged
from pipeline.training.gradients import gradients, l2_norm


def gradient_norms(
    model: keras.Model, images: np.ndarray, labels: np.ndarray, loss: keras.Loss
) -> list[float]:
    """Return the L2 norm of the gradient of each trainable kernel.

    Args:
        model: Uncompiled; compiled here, and its moving averages are updated once.
        images: `(b, h, w, c)`, one batch.
        labels: `(b, k)` one-hot.
        loss: Between labels and logits.

    Returns:
        One norm per trainable kernel, from input to output.
    """
    pairs = zip(model.trainable_variables, gradients(model, images, labels, loss), strict=True)
    return [l2_norm(g) for weight, g in pairs if weight.name.endswith("kernel")]


class EpochTimer(keras.callbacks.Callback):
    """Record the duration of each epoch in seconds, including validation."""

    def __init__(self):
        super().__init__()
        self.seconds: list[float] = []

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        self.start = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        self.seconds.append(time.perf_counter() - self.start)


def measure(
    model: Model, train: Subset, validation: Subset, settings: Train, info: dict, seed: int
) -> dict:
    """Build and train a model once, and measure it.

    Args:
        model: Architecture and settings, as in params.yaml.
        train: Training images.
        validation: Validation images.
        settings: Training settings.
        info: Contents of data/arrays/info.json.
        seed: Seed of the initial weights and of the order of the images.

    Returns:
        seed; gradients: gradient norms on the first batch, before training, None if not finite;
        of the final weights: accuracy (on the training images), val_accuracy, gap (their
        difference) and correct (which validation images were classified correctly, as
        `correctness.pack` returns it); seconds_per_epoch: the median without the first epoch, which
        includes compilation. If the training diverged, only seed and gradients.
    """
    keras.utils.clear_session()
    classes = info["classes"]
    network = building.build(model, info["image_shape"], len(classes), seed)
    first = Batches(train, len(classes), settings.batch_size, seed)[0]
    norms = gradient_norms(
        acceleration.accelerate(network, "float32"), *first, optim.loss(settings)
    )
    run = {"seed": seed, "gradients": [norm if np.isfinite(norm) else None for norm in norms]}
    # rebuild, since measuring the gradients changed moving averages and dropout's random state
    network = building.build(model, info["image_shape"], len(classes), seed)
    timer = EpochTimer()
    try:
        loop.fit(
            network, train, validation, settings, classes, seed, verbose=False, watch=[timer],
            preprocessor=Preprocessor.of(info),
        )  # fmt: skip
    except Diverged:
        return run
    # The history has no training accuracy of the final weights: it averages over an epoch, with
    # dropout.
    final = acceleration.accelerate(network, acceleration.resolve_precision(settings.precision))
    correct, val_correct = (
        correct_images(final, subset, len(classes), settings.batch_size)
        for subset in (train, validation)
    )
    accuracy, val_accuracy = float(correct.mean()), float(val_correct.mean())
    actual = np.array(classes)[validation.labels[validation.rows]]
    return {
        **run,
        "accuracy": accuracy,
        "val_accuracy": val_accuracy,
        "gap": accuracy - val_accuracy,
        "seconds_per_epoch": float(np.median(timer.seconds[1:] or timer.seconds)),
        "correct": correctness.pack(val_correct, actual),
    }


def correct_images(
    model: keras.Model, subset: Subset, num_classes: int, batch_size: int
) -> np.ndarray:
    """Return which images of a subset a model classifies correctly: `(m,)` bool."""
    batches = Batches(subset, num_classes, batch_size)
    logits = model.predict(acceleration.as_dataset(batches), verbose=0)
    return logits.argmax(axis=1) == subset.labels[subset.rows]
