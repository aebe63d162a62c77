"""Optim: the training settings of params.yaml as Keras's own objects."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from pipeline.config.schema import Augment, Train
from pipeline.core.errors import PipelineError, first_few
from pipeline.training.augmentation import Crop

# One-cycle: where the climb begins, as a share of the peak, and how long it takes (Smith 2018,
# in the numbers of fastai and PyTorch).
ONE_CYCLE_START = 1 / 25
ONE_CYCLE_CLIMB = 0.3
# Triangular: the same, and where the descent ends (Jordan 2024).
TRIANGULAR_START = 0.2
TRIANGULAR_CLIMB = 0.23
TRIANGULAR_END = 0.07


def optimizer(settings: Train, steps_per_epoch: int) -> keras.Optimizer:
    """Return the optimizer with its schedule, momentum, weight decay and clipping."""
    config: dict[str, Any] = {"learning_rate": schedule(settings, steps_per_epoch)}
    if settings.momentum:
        config["momentum"] = settings.momentum
    if settings.nesterov:
        config["nesterov"] = True
    if settings.ema_momentum is not None:
        config |= {"use_ema": True, "ema_momentum": settings.ema_momentum}
    if settings.weight_decay is not None:
        config["weight_decay"] = settings.weight_decay
    if settings.gradient_clip:
        name = {"norm": "clipnorm", "global_norm": "global_clipnorm", "value": "clipvalue"}
        config[name[settings.gradient_clip]] = settings.gradient_clip_at
    found = keras.optimizers.get({"class_name": settings.optimizer, "config": config})
    # He et al., "Bag of Tricks" (2019), https://arxiv.org/abs/1812.01187; on TensorFlow names
    # end in :0 here
    found.exclude_from_weight_decay(var_names=[r"(^|/)(bias|beta|gamma)(:\d+)?$"])
    return found


def rate(settings: Train, steps_per_epoch: int) -> Callable[[int], float]:
    """Return what the learning rate is at a step, counted from 0 through all epochs."""
    found = schedule(settings, steps_per_epoch)
    return lambda step: float(found(step)) if callable(found) else found


def schedule(
    settings: Train, steps_per_epoch: int
) -> float | keras.optimizers.schedules.LearningRateSchedule:
    """Return the learning rate, or what it is at each step.

    Reference: Loshchilov & Hutter, "SGDR" (2017), https://arxiv.org/abs/1608.03983; Smith &
        Topin, "Super-Convergence" (2018), https://arxiv.org/abs/1708.07120; Jordan, "94% on
        CIFAR-10 in 3.29 Seconds" (2024), https://arxiv.org/abs/2404.00498
    """
    peak, steps = settings.learning_rate, settings.epochs * steps_per_epoch
    if settings.schedule == "triangular":
        return Triangular(peak, min(round(TRIANGULAR_CLIMB * steps), steps - 1), steps)
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


@keras.saving.register_keras_serializable("cnn-pipeline")
class Triangular(keras.optimizers.schedules.LearningRateSchedule):
    """Up in a straight line, then down in one."""

    def __init__(self, peak: float, climb: int, steps: int):
        """Args:
        peak: The learning rate before step `climb`.
        climb: In [0, steps).
        steps: Of the whole training, counted from 0.
        """
        self.peak, self.climb, self.steps = peak, climb, steps

    def __call__(self, step):
        past = ops.cast(step, "float32") - self.climb
        up = 1 + past * (1 - TRIANGULAR_START) / max(self.climb, 1)
        down = 1 - past * (1 - TRIANGULAR_END) / (self.steps - self.climb)
        return self.peak * ops.minimum(up, down)

    def get_config(self) -> dict[str, Any]:
        return {"peak": self.peak, "climb": self.climb, "steps": self.steps}


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
        missing = first_few([name for name in classes if name not in given]) or "none"
        unknown = first_few([name for name in given if name not in classes]) or "none"
        raise PipelineError(
            "params.yaml: train.class_weights must name every class, and no other. "
            f"Missing: {missing}. Unknown: {unknown}"
        )
    return {label: given[name] for label, name in enumerate(classes)}


def augmentation(settings: Augment, image_shape: tuple[int, ...]) -> list[keras.Layer]:
    """Return the layers that change images `(n, h, w, c)` at random, in training only.

    All but `flip: alternating`, which is no matter of chance: batches say which to mirror.

    Raises:
        PipelineError: There are fewer pixels than a crop pads.

    Reference: crop: He et al. (2016), https://arxiv.org/abs/1512.03385; cutout: DeVries &
        Taylor (2017), https://arxiv.org/abs/1708.04552
    """
    layers = keras.layers
    found: list[keras.Layer] = []
    if settings.flip and not settings.alternates:
        # one after the other: Keras's own "horizontal_and_vertical" does both or neither
        both = ["horizontal", "vertical"]
        found += [layers.RandomFlip(f) for f in both if settings.flip in (f, "both")]
    if settings.crop:
        if settings.crop >= min(image_shape[:2]):
            raise PipelineError(
                "params.yaml: train.augment.crop must be less than the images' "
                f"{' × '.join(map(str, image_shape[:2]))} pixels. Got {settings.crop}"
            )
        found.append(Crop(settings.crop, settings.crop_fill))
    if settings.shift:
        found.append(layers.RandomTranslation(settings.shift, settings.shift, "nearest"))
    if settings.rotation:
        # as a share of a full turn
        found.append(layers.RandomRotation(settings.rotation / 360, "nearest"))
    if settings.cutout:
        share = (settings.cutout, settings.cutout)
        found.append(layers.RandomErasing((1.0, 1.0), scale=share, fill_value=0.0))
    return found
