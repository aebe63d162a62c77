"""Batchnorm: three blocks of two convolutions, each followed by batch normalization.

Reference: Ioffe & Szegedy, "Batch Normalization" (2015), https://arxiv.org/abs/1502.03167
"""

from collections.abc import Sequence
from typing import Annotated

import keras
from annotated_types import Interval, Len
from keras import layers


def build(
    image_shape: tuple[int, int, int],
    num_classes: int,
    *,
    dropout: Annotated[Sequence[Annotated[float, Interval(ge=0, lt=1)]], Len(3, 3)] = (
        0.2,
        0.25,
        0.35,
    ),
    dense_dropout: Annotated[float, Interval(ge=0, lt=1)] = 0.5,
) -> keras.Model:
    """Build the network; 1,517,450 parameters at 32×32×3 and 10 classes, 1,792 non-trainable.

    Args:
        image_shape: `(h, w, c)`, at least 8×8 for the three poolings.
        num_classes: Number of outputs.
        dropout: Dropout rate after each of the three blocks.
        dense_dropout: Dropout rate after the hidden dense layer.

    Returns:
        Uncompiled model from images `(n, h, w, c)` to logits `(n, num_classes)`.
    """
    images = keras.Input(image_shape)
    x = images
    for filters, rate in zip((64, 128, 128), dropout, strict=True):
        for _ in range(2):
            x = layers.Conv2D(filters, 4, padding="same", activation="relu")(x)
            x = layers.BatchNormalization()(x)
        x = layers.MaxPooling2D(2)(x)
        x = layers.Dropout(rate)(x)
    x = layers.Flatten()(x)  # (n, h/8 * w/8 * 128)
    x = layers.Dense(256, activation="relu")(x)
    x = layers.BatchNormalization()(x)
    x = layers.Dropout(dense_dropout)(x)
    return keras.Model(images, layers.Dense(num_classes)(x), name="batchnorm")
