"""Fitting: a network built, and trained, as params.yaml says."""

import importlib
import math
import re
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
from sklearn.utils.class_weight import compute_class_weight

from pipeline import backend
from pipeline.batches import Batches, Part
from pipeline.errors import PipelineError
from pipeline.knobs import turn
from pipeline.params import split_build
from pipeline.schema import Augment, Finetuned, Model, Train

# One-cycle: where the climb begins, as a share of the peak, and how long it takes (Smith 2018,
# in the numbers of fastai and PyTorch).
ONE_CYCLE_START = 1 / 25
ONE_CYCLE_CLIMB = 0.3
SECONDS_TO_ANSWER = 10
LARGEST_SIDE = 512  # pixels; where the search for an image size that fits ends


def build(model: Model, image_shape: tuple[int, ...], num_classes: int, seed: int) -> keras.Model:
    """Build a model of params.yaml, uncompiled, with the same initial weights every time.

    Raises:
        PipelineError: It cannot be built; for images too small, names the smallest that fit.
    """
    try:
        return _build(model, image_shape, num_classes, seed)
    except (KeyError, IndexError):  # LookupErrors too, but bugs
        raise
    except (LookupError, OSError) as error:
        raise PipelineError(f"{model.architecture}: {error}") from error
    except ValueError as error:
        # Keras sets its reason in bold, between the layer and a dump of the layer's arguments
        bold = re.search(r"\x1b\[1m(.*?)\x1b\[0m", str(error), re.DOTALL)
        message = f"{model.architecture}: cannot be built for {' × '.join(map(str, image_shape))} "
        message += f"images and {num_classes} classes: {bold[1] if bold else error}"
        if side := _smallest_side(model, image_shape, num_classes):
            message += f" The smallest that fits is preprocess.image_size: [{side}, {side}]"
        raise PipelineError(message) from error


def _build(model: Model, image_shape: tuple[int, ...], num_classes: int, seed: int) -> keras.Model:
    if isinstance(model, Finetuned) and not Path(model.from_model).is_file():
        raise FileNotFoundError(f"{model.from_model}: no such file. Mend from_model")
    module = importlib.import_module(f"pipeline.architectures.{model.architecture}")
    own, knobs = split_build(model)
    backend.make_repeatable(seed)
    # Keras may fetch weights, and a server that never answers must not hold up a run
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SECONDS_TO_ANSWER)
    try:
        network = module.build(tuple(image_shape), num_classes, **own)
    finally:
        socket.setdefaulttimeout(before)
    if knobs.model_dump(exclude_none=True):
        # from the seed again: a knob must not also change the initial weights it leaves alone
        backend.make_repeatable(seed)
        network = turn(network, knobs)
    return network


def _smallest_side(model: Model, image_shape: tuple[int, ...], num_classes: int) -> int | None:
    """Return the side of the smallest square that the model can be built for, if any can."""

    def fits(side: int) -> bool:
        try:
            _build(model, (side, side, image_shape[2]), num_classes, seed=0)
        except ValueError:
            return False
        except OSError:  # of weights, which are loaded into what fits
            return True
        return True

    low, high = min(image_shape[:2]), 2 * min(image_shape[:2])
    while not fits(high):
        low, high = high, 2 * high
        if high > LARGEST_SIDE:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


def optimizer(settings: Train, steps_per_epoch: int) -> keras.Optimizer:
    """Return the optimizer with its schedule, momentum, weight decay and clipping."""
    config: dict[str, Any] = {"learning_rate": schedule(settings, steps_per_epoch)}
    if settings.momentum:
        config["momentum"] = settings.momentum
    if settings.weight_decay is not None:
        config["weight_decay"] = settings.weight_decay
    if settings.gradient_clip:
        name = {"norm": "clipnorm", "global_norm": "global_clipnorm", "value": "clipvalue"}
        config[name[settings.gradient_clip]] = settings.gradient_clip_at
    return keras.optimizers.get({"class_name": settings.optimizer, "config": config})


def schedule(
    settings: Train, steps_per_epoch: int
) -> float | keras.optimizers.schedules.LearningRateSchedule:
    """Return the learning rate, or what it is at each step.

    Reference: Loshchilov & Hutter, "SGDR" (2017), https://arxiv.org/abs/1608.03983; Smith &
        Topin, "Super-Convergence" (2018), https://arxiv.org/abs/1708.07120
    """
    peak, steps = settings.learning_rate, settings.epochs * steps_per_epoch
    start, warmup = 0.0, round(settings.warmup_epochs * steps_per_epoch)
    if settings.schedule == "one_cycle":
        start, warmup = peak * ONE_CYCLE_START, round(ONE_CYCLE_CLIMB * steps)
    warmup = min(warmup, steps - 1)
    if settings.schedule == "constant" and not warmup:
        return peak
    return keras.optimizers.schedules.CosineDecay(
        start if warmup else peak,
        decay_steps=steps - warmup,
        alpha=1.0 if settings.schedule == "constant" else 0.0,
        warmup_target=peak if warmup else None,
        warmup_steps=warmup,
    )


def loss(settings: Train) -> keras.Loss:
    """Return the loss between one-hot labels and logits, in nats."""
    kind = {
        "cross_entropy": keras.losses.CategoricalCrossentropy,
        "focal": keras.losses.CategoricalFocalCrossentropy,
    }[settings.loss]
    return kind(from_logits=True, label_smoothing=settings.label_smoothing)


def class_weights(settings: Train, labels: np.ndarray, classes: list[str]) -> dict | None:
    """Return the weight of each label `(m,)`, or None where all count alike.

    Raises:
        PipelineError: Weights are given for other classes than the data set has.
    """
    given = settings.class_weights
    if given is None:
        return None
    if given == "balanced":
        found = np.unique(labels)
        weights = compute_class_weight("balanced", classes=found, y=labels)
        return dict(zip(found.tolist(), weights.tolist(), strict=True))
    if set(given) != set(classes):
        raise PipelineError(
            f"params.yaml: train.class_weights must name every class, {', '.join(classes)}. "
            f"Got {', '.join(given)}"
        )
    return {label: given[name] for label, name in enumerate(classes)}


def augmentation(settings: Augment, image_shape: tuple[int, ...]) -> list[keras.Layer]:
    """Return the layers that change images `(n, h, w, c)` at random, in training only.

    Reference: crop: He et al. (2016), https://arxiv.org/abs/1512.03385; cutout: DeVries &
        Taylor (2017), https://arxiv.org/abs/1708.04552
    """
    layers = keras.layers
    found: list[keras.Layer] = []
    if settings.flip:
        # one after the other: Keras's own "horizontal_and_vertical" does both or neither
        both = ["horizontal", "vertical"]
        found += [layers.RandomFlip(f) for f in both if settings.flip in (f, "both")]
    if settings.crop:
        # as a shift by whole pixels; Keras's RandomCrop cuts a whole batch at one place
        height, width = image_shape[:2]
        shift = settings.crop / height, settings.crop / width
        found.append(layers.RandomTranslation(*shift, "constant", interpolation="nearest"))
    if settings.shift:
        found.append(layers.RandomTranslation(settings.shift, settings.shift, "nearest"))
    if settings.rotation:
        # as a share of a full turn
        found.append(layers.RandomRotation(settings.rotation / 360, "nearest"))
    if settings.cutout:
        share = (settings.cutout, settings.cutout)
        found.append(layers.RandomErasing((1.0, 1.0), scale=share, fill_value=0.0))
    return found


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
        validation: Held out, never augmented.
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
    weights = class_weights(settings, train.labels[train.rows], classes)
    batches = Batches(train, len(classes), settings.batch_size, seed)
    trained = backend.repeatable(model)
    # around the model, which so stays uncompiled: nothing of training is saved with it
    shape = model.input_shape[1:]
    whole = keras.Sequential([keras.Input(shape), *augmentation(settings.augment, shape), trained])
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
    whole.compile(optimizer(settings, len(batches)), loss(settings), metrics=["accuracy"])
    history = whole.fit(
        batches,
        validation_data=Batches(validation, len(classes), settings.batch_size),
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
