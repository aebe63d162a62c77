"""Tutorial: the convolutional network of TensorFlow's CIFAR-10 tutorial.

Reference: TensorFlow, "Convolutional Neural Network (CNN)",
https://www.tensorflow.org/tutorials/images/cnn
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
    """Build the network; 122,570 parameters at 32×32×3 and 10 classes.

    56,320 of them are in the convolutions.

    Args:
        image_shape: `(h, w, c)`, at least 18×18 for the valid convolutions.
        num_classes: Number of outputs.
        dropout: Dropout rate before Flatten.

    Returns:
        Uncompiled model from images `(n, h, w, c)` to logits `(n, num_classes)`.
    """
    images = keras.Input(image_shape)
    x = layers.Conv2D(32, 3, activation="relu")(images)
    x = layers.MaxPooling2D(2)(x)
    x = layers.Conv2D(64, 3, activation="relu")(x)
    x = layers.MaxPooling2D(2)(x)
    x = layers.Conv2D(64, 3, activation="relu")(x)
    if dropout:
        x = layers.Dropout(dropout)(x)
    x = layers.Flatten()(x)  # (n, 1024) at 32×32
    x = layers.Dense(64, activation="relu")(x)
    return keras.Model(images, layers.Dense(num_classes)(x), name="tutorial")
