"""Fitting: a network trained as params.yaml says."""

import math
import sys
from collections.abc import Sequence

import keras
import pandas as pd

from pipeline import hosts, recipe, speed
from pipeline.batches import Batches, Part
from pipeline.errors import PipelineError
from pipeline.schema import Train


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


def fit(
    model: keras.Model,
    train: Part,
    validation: Part,
    settings: Train,
    classes: list[str],
    seed: int,
    verbose: bool = True,
    watch: Sequence[keras.callbacks.Callback] = (),
) -> pd.DataFrame:
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
        PipelineError: Class weights name other classes.
    """
    weights = recipe.class_weights(settings, train.labels[train.rows], classes)
    trained = speed.faster(model, speed.resolve(settings.precision))
    # around the model, which so stays uncompiled: nothing of training is saved with it
    shape = model.input_shape[1:]
    layers = recipe.augmentation(settings.augment, shape)
    lookup = validation.images is train.images and speed.fit_in_memory(train.images)
    if lookup:
        start = [keras.Input((), dtype="int32"), speed.Lookup(train.images)]
    else:
        start = [keras.Input(shape)]
    whole = keras.Sequential([*start, *layers, trained])
    size = len(classes), settings.batch_size
    batches = Batches(train, *size, seed, rows_only=lookup)
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
    callbacks.extend(watch)  # last, to see the weights that are kept
    whole.compile(
        recipe.optimizer(settings, len(batches)),
        recipe.loss(settings),
        metrics=["accuracy"],
        steps_per_execution=speed.STEPS_PER_EXECUTION,
    )
    steps = {"train_step": len(train.rows), "test_step": len(validation.rows)}
    hosts.leave_out_padding(whole, steps, settings.batch_size)
    history = whole.fit(
        batches,
        validation_data=Batches(validation, *size, rows_only=lookup),
        epochs=settings.epochs,
        shuffle=False,  # Batches does it, image by image
        class_weight=weights,
        callbacks=callbacks,
        verbose=int(terminal),  # a progress bar
    )
    model.set_weights(trained.get_weights())
    table = pd.DataFrame(history.history)
    table = table[["loss", "accuracy", "val_loss", "val_accuracy", "learning_rate"]]
    table.insert(0, "epoch", range(1, len(table) + 1))
    return table
