"""Plain: a stack of equal 3×3 convolutions of any depth, without pooling or shortcuts.

He et al. call this a plain network. It shows how gradients vanish with depth.

Reference: He et al., "Deep Residual Learning" (2016), https://arxiv.org/abs/1512.03385
"""

from typing import Annotated

import keras
from annotated_types import Interval
from keras import layers


def build(
    image_shape: tuple[int, int, int],
    num_classes: int,
    *,
    depth: Annotated[int, Interval(ge=1)] = 8,
    filters: Annotated[int, Interval(ge=1)] = 16,
    dropout: Annotated[float, Interval(ge=0, lt=1)] = 0.0,
) -> keras.Model:
    """Build the network; 180,586 parameters at 32×32×3 and 10 classes.

    Args:
        image_shape: `(h, w, c)`.
        num_classes: Number of outputs.
        depth: Number of convolutions.
        filters: Number of filters of each convolution.
        dropout: Dropout rate before Flatten.

    Returns:
        Uncompiled model from images `(n, h, w, c)` to logits `(n, num_classes)`.
    """
    images = keras.Input(image_shape)
    x = images
    for _ in range(depth):
        x = layers.Conv2D(filters, 3, padding="same", activation="relu")(x)
    if dropout:
        x = layers.Dropout(dropout)(x)
    x = layers.Flatten()(x)  # (n, h * w * filters)
    return keras.Model(images, layers.Dense(num_classes)(x), name="plain")
