"""Create the optimizer, learning-rate schedule, loss and augmentation that params.yaml sets."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from pipeline.config.schema import Augment, Train
from pipeline.core.errors import PipelineError, first_few
from pipeline.data.preprocessor import Preprocessor
from pipeline.training.augmentation import Crop, OnPixels, RandAugment, ResizedCrop
from pipeline.training.extended_optimizer import extended

# One-cycle: initial learning rate as a share of the peak, and length of the warm-up as a share of
# all steps (Smith 2018, with the values of fastai and PyTorch).
ONE_CYCLE_START = 1 / 25
ONE_CYCLE_WARMUP = 0.3
# Triangular: the same, and the final learning rate as a share of the peak (Jordan 2024).
TRIANGULAR_START = 0.2
TRIANGULAR_WARMUP = 0.23
TRIANGULAR_END = 0.07


def optimizer(
    settings: Train, steps_per_epoch: int, whitening_bias: keras.Variable | None = None
) -> keras.Optimizer:
    """Return the optimizer, with its schedule and all other settings.

    Args:
        settings: Section `train` of params.yaml.
        steps_per_epoch: Number of batches.
        whitening_bias: A variable that is only trained in the first `whiten_bias_epochs` epochs.
    """
    config: dict[str, Any] = {"learning_rate": learning_rate_schedule(settings, steps_per_epoch)}
    if settings.momentum:
        config["momentum"] = settings.momentum
    if settings.nesterov:
        config["nesterov"] = True
    if settings.ema_momentum is not None:
        config |= {"use_ema": True, "ema_momentum": settings.ema_momentum}
    if settings.weight_decay is not None:
        config["weight_decay"] = settings.weight_decay
    if settings.gradient_clip:
        keys = {"norm": "clipnorm", "global_norm": "global_clipnorm", "value": "clipvalue"}
        config[keys[settings.gradient_clip]] = settings.gradient_clip_at
    optimizer_class = type(keras.optimizers.get(settings.optimizer))
    factor, lookahead = settings.batch_norm_beta_learning_rate, settings.lookahead
    muon = settings.muon_learning_rate
    if factor != 1 or lookahead or muon or whitening_bias is not None:
        optimizer_class = extended(optimizer_class)
        steps = settings.epochs * steps_per_epoch
        config |= {"beta_factor": factor, "lookahead": lookahead, "steps": steps}
        config["muon_factor"] = muon and muon / settings.learning_rate
        if whitening_bias is not None:
            config["frozen_from"] = {
                whitening_bias.path: settings.whiten_bias_epochs * steps_per_epoch
            }
    optimizer = optimizer_class(**config)
    names = "|".join(settings.weight_decay_exclude)
    # with TensorFlow, names of variables end in :0 here
    optimizer.exclude_from_weight_decay(var_names=[rf"(^|/)({names})(:\d+)?$"])
    return optimizer


def learning_rate_at(settings: Train, steps_per_epoch: int) -> Callable[[int], float]:
    """Return a function from a step, counted from 0 over all epochs, to its learning rate."""
    schedule = learning_rate_schedule(settings, steps_per_epoch)
    return lambda step: float(schedule(step)) if callable(schedule) else schedule


def learning_rate_schedule(
    settings: Train, steps_per_epoch: int
) -> float | keras.optimizers.schedules.LearningRateSchedule:
    """Return the learning-rate schedule, or the learning rate if it is constant.

    Reference: Loshchilov & Hutter, "SGDR" (2017), https://arxiv.org/abs/1608.03983; Smith &
        Topin, "Super-Convergence" (2018), https://arxiv.org/abs/1708.07120; Jordan, "94% on
        CIFAR-10 in 3.29 Seconds" (2024), https://arxiv.org/abs/2404.00498
    """
    peak, steps = settings.learning_rate, settings.epochs * steps_per_epoch
    start, warmup, end = 0.0, round(settings.warmup_epochs * steps_per_epoch), 0.0
    if settings.schedule == "one_cycle":
        start, warmup = peak * ONE_CYCLE_START, round(ONE_CYCLE_WARMUP * steps)
    if settings.schedule == "triangular":
        start, warmup = peak * TRIANGULAR_START, round(TRIANGULAR_WARMUP * steps)
        end = peak * TRIANGULAR_END
    warmup = min(warmup, steps - 1)
    if settings.schedule in ("linear", "triangular"):
        return LinearDecay(start, peak, end, warmup, steps)
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
class LinearDecay(keras.optimizers.schedules.LearningRateSchedule):
    """Rise linearly from `start` to `peak`, then decay linearly to `end`."""

    def __init__(self, start: float, peak: float, end: float, warmup_steps: int, steps: int):
        """Args:
        start: Learning rate at step 0, if the rise has any steps.
        peak: Learning rate at step `warmup_steps`.
        end: Learning rate at step `steps`.
        warmup_steps: Steps of the rise, in [0, steps).
        steps: Steps of the whole training.
        """
        self.start, self.peak, self.end = start, peak, end
        self.warmup_steps, self.steps = warmup_steps, steps

    def __call__(self, step):
        steps_after_peak = ops.cast(step, "float32") - self.warmup_steps
        rise = self.peak + steps_after_peak * (self.peak - self.start) / max(self.warmup_steps, 1)
        decay_steps = self.steps - self.warmup_steps
        decay = self.peak - steps_after_peak * (self.peak - self.end) / decay_steps
        return ops.minimum(rise, decay)

    def get_config(self) -> dict[str, Any]:
        return dict(vars(self))


def loss(settings: Train) -> keras.Loss:
    """Return the loss between one-hot labels and logits, in nats."""
    loss_class = {
        "cross_entropy": keras.losses.CategoricalCrossentropy,
        "focal": keras.losses.CategoricalFocalCrossentropy,
    }[settings.loss]
    return loss_class(from_logits=True, label_smoothing=settings.label_smoothing)


def class_weights(settings: Train, labels: np.ndarray, classes: list[str]) -> dict | None:
    """Return the weight of each class by its label, or None if all weigh the same.

    Raises:
        PipelineError: The weights do not name exactly the classes of the data set.
    """
    configured = settings.class_weights
    if configured is None:
        return None
    if configured == "balanced":
        # as in scikit-learn, which takes a second to import
        present, counts = np.unique(labels, return_counts=True)
        weights = len(labels) / (len(present) * counts)
        return dict(zip(present.tolist(), weights.tolist(), strict=True))
    if set(configured) != set(classes):
        missing = first_few([name for name in classes if name not in configured]) or "none"
        unknown = first_few([name for name in configured if name not in classes]) or "none"
        raise PipelineError(
            "params.yaml: train.class_weights must name every class, and no other. "
            f"Missing: {missing}. Unknown: {unknown}"
        )
    return {label: configured[name] for label, name in enumerate(classes)}


def augmentation_layers(
    settings: Augment, image_shape: tuple[int, ...], preprocessor: Preprocessor | None = None
) -> list[keras.Layer]:
    """Return the augmentation layers, which change images `(n, h, w, c)` in training only.

    `flip: alternating` is not among them: it is not random, so Batches marks the images to mirror.

    Args:
        settings: Section `train.augment` of params.yaml.
        image_shape: h, w and c.
        preprocessor: Normalization of the images; None: their pixels are in [0, 1].

    Raises:
        PipelineError: `crop` is not smaller than the height and width of the images, or grayscale
            images cannot be changed as the settings say.

    Reference: crop: He et al. (2016), https://arxiv.org/abs/1512.03385; cutout: DeVries &
        Taylor (2017), https://arxiv.org/abs/1708.04552; rand_augment: Cubuk et al. (2020),
        https://arxiv.org/abs/1909.13719
    """
    layers = keras.layers
    augmentation: list[keras.Layer] = []
    if settings.flip and not settings.alternates:
        # separate layers: Keras's "horizontal_and_vertical" flips both ways or not at all
        for direction in ("horizontal", "vertical"):
            if settings.flip in (direction, "both"):
                augmentation.append(layers.RandomFlip(direction))
    if settings.resized_crop:
        augmentation.append(ResizedCrop(settings.resized_crop))
    if settings.crop:
        if settings.crop >= min(image_shape[:2]):
            raise PipelineError(
                "params.yaml: train.augment.crop must be less than the images' "
                f"{' × '.join(map(str, image_shape[:2]))} pixels. Got {settings.crop}"
            )
        augmentation.append(Crop(settings.crop, settings.crop_fill))
    if settings.shift:
        augmentation.append(layers.RandomTranslation(settings.shift, settings.shift, "nearest"))
    if settings.rotation:
        # Keras expects a share of a full turn
        augmentation.append(layers.RandomRotation(settings.rotation / 360, "nearest"))
    if on_pixels := _pixel_layers(settings, image_shape):
        shift, scale = preprocessor.shift_and_scale() if preprocessor else (0.0, 1.0)
        augmentation.append(OnPixels(on_pixels, shift, scale))
    if settings.cutout:
        share = (settings.cutout, settings.cutout)
        augmentation.append(layers.RandomErasing((1.0, 1.0), scale=share, fill_value=0.0))
    return augmentation


def _pixel_layers(settings: Augment, image_shape: tuple[int, ...]) -> list[keras.Layer]:
    """Return the augmentation layers that need pixels in [0, 1]."""
    layers: list[keras.Layer] = []
    colors: dict[str, Any] = {}
    if settings.brightness:
        colors["brightness_factor"] = settings.brightness
    if settings.contrast:
        # a single number would only increase the contrast
        colors["contrast_factor"] = (settings.contrast, settings.contrast)
    if (settings.saturation or settings.hue) and image_shape[2] == 1:
        raise PipelineError(
            "params.yaml: train.augment.saturation and hue need color images. Got grayscale "
            "images. Set both to 0"
        )
    if settings.saturation:
        # a factor f multiplies the saturation by f / (1 - f)
        multipliers = (1 - settings.saturation, 1 + settings.saturation)
        colors["saturation_factor"] = tuple(m / (1 + m) for m in multipliers)
    if settings.hue:
        colors["hue_factor"] = (0.0, 2 * settings.hue)  # Keras expects a share of half a turn
    if colors:
        layers.append(keras.layers.RandomColorJitter((0, 1), **colors))
    if settings.rand_augment:
        layers.append(RandAugment(settings.rand_augment))
    return layers
