"""Logistic_bn: logistic regression on batch-normalized pixels, the simplest baseline.

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
    """Build the network; 301,070 parameters at 224×224×3 and 2 classes, 6 non-trainable.

    Args:
        image_shape: `(h, w, c)`.
        num_classes: Number of outputs.
        dropout: Dropout rate of the pixels.

    Returns:
        Uncompiled model from images `(n, h, w, c)` to logits `(n, num_classes)`.
    """
    images = keras.Input(image_shape)
    x = layers.BatchNormalization()(images)
    if dropout:
        x = layers.Dropout(dropout)(x)
    x = layers.Flatten()(x)  # (n, h * w * c)
    return keras.Model(images, layers.Dense(num_classes)(x), name="logistic_bn")
