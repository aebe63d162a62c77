"""Baseline: three convolutions, each followed by max pooling, and one hidden dense layer."""

from typing import Annotated

import keras
from annotated_types import Interval
from keras import layers


def build(
    image_shape: tuple[int, int, int],
    num_classes: int,
    *,
    dropout: Annotated[float, Interval(ge=0, lt=1)] = 0.0,
) -> keras.Model:
    """Build the network; 156,074 parameters at 32×32×3 and 10 classes.

    Args:
        image_shape: `(h, w, c)`, at least 8×8 for the three poolings.
        num_classes: Number of outputs.
        dropout: Dropout rate before Flatten; the published network has none.

    Returns:
        Uncompiled model from images `(n, h, w, c)` to logits `(n, num_classes)`.
    """
    images = keras.Input(image_shape)
    x = images
    for filters in (16, 32, 64):
        x = layers.Conv2D(filters, 3, padding="same", activation="relu")(x)
        x = layers.MaxPooling2D(2)(x)
    if dropout:
        x = layers.Dropout(dropout)(x)
    x = layers.Flatten()(x)  # (n, h/8 * w/8 * 64)
    x = layers.Dense(128, activation="relu")(x)
    return keras.Model(images, layers.Dense(num_classes)(x), name="baseline")
