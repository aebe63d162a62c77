"""Deep_bn: seven narrow convolutions, each followed by max pooling.

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
    """Build the network; 10,034 parameters at 224×224×3 and 2 classes, 6 non-trainable.

    Args:
        image_shape: `(h, w, c)`, at least 128×128 for the seven poolings.
        num_classes: Number of outputs.
        dropout: Dropout rate before Flatten.

    Returns:
        Uncompiled model from images `(n, h, w, c)` to logits `(n, num_classes)`.
    """
    images = keras.Input(image_shape)
    x = layers.BatchNormalization()(images)
    for _ in range(7):
        x = layers.Conv2D(20, 2, padding="same", activation="relu")(x)
        x = layers.MaxPooling2D(2)(x)
    if dropout:
        x = layers.Dropout(dropout)(x)
    x = layers.Flatten()(x)  # (n, 20) at 224×224
    return keras.Model(images, layers.Dense(num_classes)(x), name="deep_bn")
