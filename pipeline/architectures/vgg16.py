"""VGG16: the thirteen 3×3 convolutions of configuration D, trained from scratch.

Reference: Simonyan & Zisserman, "Very Deep Convolutional Networks" (2015),
    https://arxiv.org/abs/1409.1556
"""

from collections.abc import Sequence
from typing import Annotated

import keras
from annotated_types import Interval
from keras import layers


def build(
    image_shape: tuple[int, int, int],
    num_classes: int,
    *,
    dense: Sequence[Annotated[int, Interval(ge=1)]] = (512,),
    dropout: Annotated[float, Interval(ge=0, lt=1)] = 0.5,
) -> keras.Model:
    """Build the network; 14,982,474 parameters at 32×32×3 and 10 classes.

    14,714,688 of them are in the convolutions. With `dense: [4096, 4096]` it is the published
    network, which has 138,357,544 parameters at 224×224×3 and 1,000 classes. Without batch
    normalization (`batch_norm: true`), training starts only with a carefully chosen learning rate.

    Args:
        image_shape: `(h, w, c)`, at least 32×32 for the five poolings.
        num_classes: Number of outputs.
        dense: Number of units of each hidden dense layer.
        dropout: Dropout rate after each hidden dense layer.

    Returns:
        Uncompiled model from images `(n, h, w, c)` to logits `(n, num_classes)`.
    """
    images = keras.Input(image_shape)
    x = images
    for filters, depth in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(depth):
            x = layers.Conv2D(filters, 3, padding="same", activation="relu")(x)
        x = layers.MaxPooling2D(2)(x)
    x = layers.Flatten()(x)  # (n, h/32 * w/32 * 512)
    for units in dense:
        x = layers.Dense(units, activation="relu")(x)
        x = layers.Dropout(dropout)(x)
    return keras.Model(images, layers.Dense(num_classes)(x), name="vgg16")
