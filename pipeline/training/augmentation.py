"""Augmentation layers that Keras lacks or implements more slowly.

They run in the graph on any backend and have no weights.
"""

from typing import Any, Literal

import keras
from keras import ops


class Crop(keras.layers.Layer):
    """Pad each image, then crop it to its original size at a random position.

    This shifts the image by whole pixels in a single gather, which takes half the time of Keras's
    RandomTranslation, a projective transform. Keras's RandomCrop crops all images of a batch at the
    same position.
    """

    def __init__(self, pad: int, fill: Literal["zeros", "reflect"], **config: Any):
        """Args:
        pad: Pixels per side, less than height and width.
        fill: zeros, or reflect, which mirrors the image at its edge without repeating the edge.
        """
        super().__init__(**config)
        self.pad, self.fill = pad, fill
        self.seed_generator = keras.random.SeedGenerator()

    def call(self, images, training=False):
        """Args: images: `(n, h, w, c)`."""
        if not training:
            return images
        n, (height, width, channels) = ops.shape(images)[0], images.shape[1:]
        y, x = self._source_indices(n, height), self._source_indices(n, width)  # (n, h), (n, w)
        if self.fill == "zeros":
            padding = (self.pad, self.pad)
            images = ops.pad(images, ((0, 0), padding, padding, (0, 0)))
            height, width = images.shape[1:3]
        pixels = (ops.arange(n)[:, None, None] * height + y[:, :, None]) * width + x[:, None, :]
        return ops.take(ops.reshape(images, (-1, channels)), pixels, axis=0)  # (n, h, w, c)

    def _source_indices(self, n: Any, side: int) -> Any:
        """Return the row or column `(n, side)` of the image that each pixel is copied from."""
        shift = keras.random.randint((n, 1), -self.pad, self.pad + 1, seed=self.seed_generator)
        indices = ops.arange(side)[None, :] + shift
        if self.fill == "zeros":
            return indices + self.pad  # in the padded image
        last = side - 1
        return last - ops.abs(last - ops.abs(indices))


def mirror(images: Any, mirrored: Any) -> Any:
    """Flip some images of a batch horizontally.

    Args:
        images: `(n, h, w, c)`.
        mirrored: `(n,)` bool, true for the images to flip.
    """
    return ops.where(mirrored[:, None, None, None], ops.flip(images, axis=2), images)
