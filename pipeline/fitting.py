"""Fitting: a network trained as params.yaml says."""

import math
import sys
from collections.abc import Sequence
from typing import Any

import keras

from pipeline import augmentation, hosts, recipe, speed, whitening
from pipeline.batches import Batches, Part
from pipeline.errors import PipelineError
from pipeline.schema import Augment, Train

COLUMNS = ("loss", "accuracy", "val_loss", "val_accuracy", "learning_rate")


class Diverged(PipelineError):
    """The loss is not finite: an error of a training, a result of a study."""


class StopWhenNotFinite(keras.callbacks.Callback):
    def __init__(self, name: str, learning_rate: float):
        super().__init__()
        self.name, self.learning_rate = name, learning_rate

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        if not math.isfinite(logs["loss"] + logs["val_loss"]):
            raise Diverged(
                f"{self.name}: epoch {epoch + 1}: loss must be finite. "
                f"Got {logs['loss']}, {logs['val_loss']} in validation. "
                f"Lower train.learning_rate ({self.learning_rate})"
            )


class LineAnEpoch(keras.callbacks.Callback):
    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        values = "  ".join(f"{name} {value:.4f}" for name, value in logs.items())
        print(f"epoch {epoch + 1}/{self.params['epochs']}: {values}", flush=True)


class LearningRate(keras.callbacks.Callback):
    """Keep the learning rate that an epoch ends with among the epoch's numbers."""

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        logs["learning_rate"] = float(self.model.optimizer.learning_rate)


class KeepAverage(keras.callbacks.Callback):
    """Put the moving average of the weights in their place from validation to the next epoch.

    So what is measured, what early stopping restores and what is kept are the same weights.
    Keras's own SwapEMAWeights swaps by adding and subtracting, which rounds both, and where
    training stops early it leaves the wrong ones.
    """

    def on_train_begin(self, logs: dict | None = None) -> None:
        self.own: list[Any] = []

    def on_test_begin(self, logs: dict | None = None) -> None:
        weights = self.model.trainable_variables
        self.own = [keras.ops.copy(weight) for weight in weights]
        self.model.optimizer.finalize_variable_values(weights)
        for weight in weights:
            # JAX shares the average's memory, and evaluation gives away that of the weights
            weight.assign(keras.ops.copy(weight))

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        for weight, own in zip(self.model.trainable_variables, self.own, strict=bool(self.own)):
            weight.assign(own)


def fit(
    model: keras.Model,
    train: Part,
    validation: Part,
    settings: Train,
    classes: list[str],
    seed: int,
    verbose: bool = True,
    watch: Sequence[keras.callbacks.Callback] = (),
) -> list[dict[str, float]]:
    """Train a model in place.

    Args:
        model: Uncompiled, from images to logits.
        train: Images and labels to learn from, augmented as the settings say.
        validation: Held out rows of the same images, never augmented.
        settings: Of optimizer, loss, augmentation and length.
        classes: Names of the k classes.
        seed: Of the order of the images.
        verbose: Whether to show progress.
        watch: More callbacks, as one that measures.

    Returns:
        One row an epoch: epoch (from 1), loss, accuracy, val_loss, val_accuracy,
        learning_rate. The losses hold what the settings add to cross-entropy.

    Raises:
        Diverged: The loss is not finite.
        PipelineError: Class weights name other classes; the first layer cannot be whitened.
    """
    weights = recipe.class_weights(settings, train.labels[train.rows], classes)
    if settings.whiten:
        whitening.whiten(model, train)
    trained = speed.faster(model, speed.resolve(settings.precision))
    lookup = validation.images is train.images and speed.fit_in_memory(train.images)
    whole = _around(trained, settings.augment, train.images if lookup else None)
    size, mirror = (len(classes), settings.batch_size), settings.augment.alternates
    batches = Batches(train, *size, seed, lookup, mirror)
    verbose = verbose and hosts.first()
    terminal = verbose and sys.stdout.isatty()
    # the first two see each epoch's numbers before they are printed and kept
    callbacks: list[keras.callbacks.Callback] = [
        StopWhenNotFinite(model.name, settings.learning_rate),
        LearningRate(),
    ]
    if verbose and not terminal:
        callbacks.append(LineAnEpoch())
    if settings.early_stopping is not None:
        callbacks.append(
            keras.callbacks.EarlyStopping(
                "val_accuracy",
                patience=settings.early_stopping,
                mode="max",
                restore_best_weights=True,
            )
        )
    if settings.ema_momentum is not None:
        callbacks.append(KeepAverage())
    callbacks.extend(watch)  # last, to see the weights that are kept
    optimizer = recipe.optimizer(settings, len(batches))
    # with all variables there, TensorFlow traces the first step once and not twice
    optimizer.build(whole.trainable_variables)
    whole.compile(
        optimizer,
        recipe.loss(settings),
        metrics=[keras.metrics.CategoricalAccuracy("accuracy")],
        steps_per_execution=speed.STEPS_PER_EXECUTION,
    )
    steps = {"train_step": len(train.rows), "test_step": len(validation.rows)}
    hosts.leave_out_padding(whole, steps, settings.batch_size)
    history = whole.fit(
        speed.feed(batches),
        validation_data=speed.feed(Batches(validation, *size, rows_only=lookup, mirror=mirror)),
        epochs=settings.epochs,
        shuffle=False,  # Batches does it, image by image
        class_weight=weights,
        callbacks=callbacks,
        verbose=int(terminal),  # a progress bar
    )
    model.set_weights(trained.get_weights())
    columns = [history.history[name] for name in COLUMNS]
    return [
        {"epoch": epoch, **dict(zip(COLUMNS, values, strict=True))}
        for epoch, values in enumerate(zip(*columns, strict=True), start=1)
    ]


def _around(trained: keras.Model, augment: Augment, images: Any | None) -> keras.Model:
    """Return augmentation and then the model, which so stays uncompiled.

    Nothing of training is saved with it. The input is as Batches yields it: row numbers of
    `images`, where these are given.
    """
    shape = trained.input_shape[1:]
    if images is None:
        inputs = x = keras.Input(shape)
    else:
        inputs = keras.Input((), dtype="int32")
        x = speed.Lookup(images)(inputs)
    if augment.alternates:
        mirrored = keras.Input((), dtype="bool")
        inputs, x = (inputs, mirrored), augmentation.mirror(x, mirrored)
    for layer in recipe.augmentation(augment, shape):
        x = layer(x)
    return keras.Model(inputs, trained(x))
