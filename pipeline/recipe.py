"""Recipe: the training settings of params.yaml as Keras's own objects."""

from typing import Any

import keras
import numpy as np

from pipeline.errors import PipelineError
from pipeline.schema import Augment, Train

# One-cycle: where the climb begins, as a share of the peak, and how long it takes (Smith 2018,
# in the numbers of fastai and PyTorch).
ONE_CYCLE_START = 1 / 25
ONE_CYCLE_CLIMB = 0.3


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
        # as scikit-learn's, which takes a second to import
        found, counts = np.unique(labels, return_counts=True)
        weights = len(labels) / (len(found) * counts)
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
