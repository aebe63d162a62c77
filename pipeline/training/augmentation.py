"""Augmentation layers that Keras lacks or implements more slowly.

They run in the graph on any backend and have no weights.
"""

from typing import Any, Literal

import keras
from keras import ops


class Crop(keras.layers.Layer):
    """Pad each image and crop it to its original size at random: a shift by whole pixels.

    It is a single gather, which takes half the time of Keras's RandomTranslation, a projective
    transform. Keras's RandomCrop crops all images of a batch at the same position.
    """

    def __init__(self, pad: int, fill: Literal["zeros", "reflect"], **config: Any):
        """Args:
        pad: Pixels per side, less than height and width.
        fill: zeros, or reflect: mirror the image at its edge without repeating the edge.
        """
        super().__init__(**config)
        self.pad, self.fill = pad, fill
        self.seed_generator = keras.random.SeedGenerator()

    def call(self, images, training=False):
        """Args: images: `(n, h, w, c)`."""
        if not training:
            return images
        n, (height, width, channels) = ops.shape(images)[0], images.shape[1:]
        y, x = self._places(n, height), self._places(n, width)  # (n, h), (n, w)
        if self.fill == "zeros":
            around = (self.pad, self.pad)
            images = ops.pad(images, ((0, 0), around, around, (0, 0)))
            height, width = images.shape[1:3]
        pixels = (ops.arange(n)[:, None, None] * height + y[:, :, None]) * width + x[:, None, :]
        return ops.take(ops.reshape(images, (-1, channels)), pixels, axis=0)  # (n, h, w, c)

    def _places(self, n: Any, side: int) -> Any:
        """Return the row or column `(n, side)` of the image that each pixel is taken from."""
        shift = keras.random.randint((n, 1), -self.pad, self.pad + 1, seed=self.seed_generator)
        places = ops.arange(side)[None, :] + shift
        if self.fill == "zeros":
            return places + self.pad  # in the padded image
        last = side - 1
        return last - ops.abs(last - ops.abs(places))


def mirror(images: Any, chosen: Any) -> Any:
    """Mirror left to right those of the images `(n, h, w, c)` that are chosen `(n,)` bool."""
    return ops.where(chosen[:, None, None, None], ops.flip(images, axis=2), images)
