"""Airnet: a small-kernel convolution and blocks of 3×3 convolutions, for training in few epochs.

Designed for `train.whiten`, which sets the first convolution to whitening filters and freezes it,
so that the blocks receive decorrelated pixels from the first step. Without it, the first
convolution is trained like the others.

Reference: Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU" (2024),
    https://arxiv.org/abs/2404.00498
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
    widths: Annotated[Sequence[Annotated[int, Interval(ge=1)]], Len(1)] = (64, 128, 128),
    depth: Annotated[int, Interval(ge=1)] = 2,
    patch: Annotated[int, Interval(ge=1)] = 2,
    scale: Annotated[float, Interval(gt=0)] = 0.125,
    dropout: Annotated[float, Interval(ge=0, lt=1)] = 0.0,
) -> keras.Model:
    """Build the network; 570,946 parameters at 32×32×3 and 10 classes.

    With `widths: [64, 256, 256]` and `activation: gelu` it has the layers of the published
    network. The default, relu, takes less time on CPUs.

    Args:
        image_shape: `(h, w, c)`, at least 9×9 for the three poolings.
        num_classes: Number of outputs.
        widths: Number of filters of each block. Each block halves the feature map.
        depth: Number of convolutions in each block.
        patch: Kernel size of the first layer. It has 2 * patch² * c filters: each whitening
            filter and its negative.
        scale: Factor on the features before the last layer. It keeps the initial logits small,
            so that a high learning rate is stable.
        dropout: Dropout rate of the features before the last layer.

    Returns:
        Uncompiled model from images `(n, h, w, c)` to logits `(n, num_classes)`.
    """
    images = keras.Input(image_shape)
    x = layers.Conv2D(2 * patch**2 * image_shape[-1], patch)(images)
    x = layers.Activation("relu")(x)  # (n, h - patch + 1, w - patch + 1, 2 * patch² * c)
    for filters in widths:
        for index in range(depth):
            x = layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
            if index == 0:
                x = layers.MaxPooling2D(2)(x)
            # training takes few steps, so the moving averages must adapt quickly
            x = layers.BatchNormalization(momentum=0.6)(x)
            x = layers.Activation("relu")(x)
    x = layers.GlobalMaxPooling2D()(x)  # (n, widths[-1])
    x = layers.Rescaling(scale)(x)
    x = layers.Dropout(dropout)(x)
    return keras.Model(images, layers.Dense(num_classes)(x), name="airnet")
