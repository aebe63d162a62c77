"""Wide_bn: one wide convolution with a small kernel, then max pooling over large patches.

Reference: Ioffe & Szegedy, "Batch Normalization" (2015), https://arxiv.org/abs/1502.03167
"""

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
    """Build the network; 35,114 parameters at 224×224×3 and 2 classes, 6 non-trainable.

    Args:
        image_shape: `(h, w, c)`, at least 17×17 for the pooling.
        num_classes: Number of outputs.
        dropout: Dropout rate before Flatten.

    Returns:
        Uncompiled model from images `(n, h, w, c)` to logits `(n, num_classes)`.
    """
    images = keras.Input(image_shape)
    x = layers.BatchNormalization()(images)
    x = layers.Conv2D(100, 2, activation="relu")(x)
    x = layers.MaxPooling2D(16)(x)
    if dropout:
        x = layers.Dropout(dropout)(x)
    x = layers.Flatten()(x)  # (n, 13 * 13 * 100) at 224×224
    return keras.Model(images, layers.Dense(num_classes)(x), name="wide_bn")
