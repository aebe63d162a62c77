"""Run one training of a study, and measure its initial gradients."""

import time
from operator import itemgetter

import keras
import numpy as np

from pipeline.config.schema import Model, Train
from pipeline.runtime import acceleration
from pipeline.runtime.input_pipeline import Batches, Subset
from pipeline.training import building, loop, optim
from pipeline.training.callbacks import Diverged
from pipeline.training.gradients import gradients


def gradient_norms(
    model: keras.Model, images: np.ndarray, labels: np.ndarray, loss: keras.Loss
) -> list[float]:
    """Return the L2 norm of the gradient of the loss in each layer's kernel.

    Args:
        model: Uncompiled; compiled here, and its moving averages take a step.
        images: `(b, h, w, c)`, one batch.
        labels: `(b, k)` one-hot.
        loss: Between labels and logits.

    Returns:
        One number a kernel that is trained, from input to output.
    """
    pairs = zip(model.trainable_variables, gradients(model, images, labels, loss), strict=True)
    return [float(np.linalg.norm(g)) for weight, g in pairs if weight.name.endswith("kernel")]


class Watch(keras.callbacks.Callback):
    """Time each epoch."""

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
    """Build and train a model once.

    Args:
        model: As in params.yaml.
        train: Training images.
        validation: Validation images.
        settings: Training settings.
        info: The classes and the image_shape.
        seed: Seed of initial weights and of the order of the images.

    Returns:
        seed; gradients: norms before training, on the first batch; and of the weights that
        are kept accuracy (on the training images), val_accuracy, gap (their difference) and
        val_loss; seconds_per_epoch: the median, without the first, which compiles. All but
        seed and gradients are None where the loss was not finite.
    """
    keras.utils.clear_session()
    classes = info["classes"]
    network = building.build(model, info["image_shape"], len(classes), seed)
    first = Batches(train, len(classes), settings.batch_size, seed)[0]
    norms = gradient_norms(
        acceleration.accelerate(network, "float32"), *first, optim.loss(settings)
    )
    # rebuilt, since the step above changed moving averages and the state of dropout's generator
    network = building.build(model, info["image_shape"], len(classes), seed)
    watch = Watch()
    run = {"seed": seed, "gradients": [norm if np.isfinite(norm) else None for norm in norms]}
    measures = ("accuracy", "val_accuracy", "gap", "val_loss", "seconds_per_epoch")
    try:
        history = loop.fit(
            network, train, validation, settings, classes, seed, verbose=False, watch=[watch]
        ).rows
    except Diverged:
        return run | dict.fromkeys(measures)
    # the accuracy in the history is an average over changing weights, with dropout
    batches = Batches(train, len(classes), settings.batch_size)
    logits = network.predict(acceleration.as_dataset(batches), verbose=0)
    accuracy = float((logits.argmax(axis=1) == train.labels[train.rows]).mean())
    best = max(history, key=itemgetter("val_accuracy"))
    kept = best if settings.early_stopping else history[-1]
    seconds = float(np.median(watch.seconds[1:] or watch.seconds))
    values = (
        accuracy,
        kept["val_accuracy"],
        accuracy - kept["val_accuracy"],
        kept["val_loss"],
        seconds,
    )
    return run | {key: float(value) for key, value in zip(measures, values, strict=True)}
