"""Augmentation layers that Keras lacks, implements more slowly, or does not apply to each image.

They run in the graph on any backend and have no weights.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

import keras
from keras import ops

MAX_STRETCH = 4 / 3  # of the aspect ratio of a resized crop
OPERATIONS_PER_IMAGE = 2  # of RandAugment


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


class ResizedCrop(keras.layers.Layer):
    """Crop each image at random, and resize the crop to the size of the image (bilinear).

    The crop is stretched by up to MAX_STRETCH. Keras has no such layer.

    Reference: Szegedy et al., "Going Deeper with Convolutions" (2015),
        https://arxiv.org/abs/1409.4842
    """

    def __init__(self, smallest_share: float, **config: Any):
        """Args:
        smallest_share: Smallest share of the area, in (0, 1).
        """
        super().__init__(**config)
        self.smallest_share = smallest_share
        self.seed_generator = keras.random.SeedGenerator()

    def call(self, images, training=False):
        """Args: images: `(n, h, w, c)`."""
        if not training:
            return images
        n, (height, width) = ops.shape(images)[0], images.shape[1:3]
        area = self._uniform(n, self.smallest_share, 1.0)
        limit = math.log(MAX_STRETCH)
        stretch = ops.exp(self._uniform(n, -limit, limit))
        zero = ops.zeros((n,))
        rows = []
        for side, share in ((width, area * stretch), (height, area / stretch)):
            share = ops.minimum(ops.sqrt(share), 1.0)
            start = self._uniform(n, 0.0, 1.0) * (1 - share) * side
            # pixel i covers [i, i + 1) and is sampled at its center
            rows.append((share, start + (share - 1) / 2))
        (scale_x, shift_x), (scale_y, shift_y) = rows
        transforms = [scale_x, zero, shift_x, zero, scale_y, shift_y, zero, zero]
        return ops.image.affine_transform(
            images,
            ops.stack(transforms, axis=1),
            fill_mode="nearest",
            data_format="channels_last",
        )

    def _uniform(self, n: Any, low: float, high: float) -> Any:
        return keras.random.uniform((n,), low, high, seed=self.seed_generator)


class RandAugment(keras.layers.Layer):
    """Change each image by two operations, sampled for each image; one of them is no change.

    Keras's RandAugment samples the operations once for a batch, and some of its operations are
    weaker at a higher strength. Its layers are used here. Solarization is left out, since Keras's
    cannot be weak.

    Reference: Cubuk et al., "RandAugment" (2020), https://arxiv.org/abs/1909.13719
    """

    def __init__(self, strength: float, **config: Any):
        """Args:
        strength: In (0, 1]. 1: the largest of the paper's implementations, with rotations by 30
            degrees; torchvision's default is 0.3.
        """
        super().__init__(**config)
        layers, pixels = keras.layers, {"value_range": (0, 1)}
        shift, color = 0.45 * strength, 0.9 * strength
        bits = 8 - round(4 * strength)
        self.operations = [
            layers.RandomShear(0.3 * strength, 0.0, fill_mode="nearest"),
            layers.RandomShear(0.0, 0.3 * strength, fill_mode="nearest"),
            layers.RandomTranslation(shift, 0.0, "nearest"),
            layers.RandomTranslation(0.0, shift, "nearest"),
            layers.RandomRotation(strength * 30 / 360, "nearest"),
            # added to pixels of 0.5 on average, so half of the share that would multiply them
            layers.RandomBrightness(color / 2, **pixels),
            layers.RandomContrast((color, color), **pixels),  # a number would only increase it
            layers.RandomColorDegeneration(color, **pixels),
            layers.RandomSharpness((0.5 - color / 2, 0.5 + color / 2), **pixels),
            layers.RandomPosterization((bits, bits), **pixels),
            layers.AutoContrast(**pixels),
            layers.Equalization(**pixels),
        ]
        self.seed_generator = keras.random.SeedGenerator()

    def build(self, input_shape):
        for operation in self.operations:
            operation.build(input_shape)

    def call(self, images, training=False):
        """Args: images: `(n, h, w, c)` in [0, 1]."""
        if not training:
            return images
        shape = (OPERATIONS_PER_IMAGE, ops.shape(images)[0], 1, 1, 1)
        # the number after the last operation is identity
        chosen = keras.random.randint(shape, 0, len(self.operations) + 1, seed=self.seed_generator)
        for round_ in range(OPERATIONS_PER_IMAGE):
            changed = images
            for number, operation in enumerate(self.operations):
                changed = ops.where(
                    chosen[round_] == number, operation(images, training=True), changed
                )
            images = changed
        return images


class OnPixels(keras.layers.Layer):
    """Undo the normalization of images, apply layers to their pixels in [0, 1], and normalize."""

    def __init__(self, layers: Sequence[keras.Layer], shift: Any, scale: Any, **config: Any):
        """Args:
        layers: Each maps images in [0, 1] to images in [0, 1].
        shift: `(c,)`; images are (pixel - shift) / scale.
        scale: `(c,)`.
        """
        super().__init__(**config)
        self.layers, self.shift, self.scale = list(layers), shift, scale

    def build(self, input_shape):
        for layer in self.layers:
            layer.build(input_shape)

    def call(self, images, training=False):
        """Args: images: `(n, h, w, c)`, normalized."""
        if not training:
            return images
        pixels = ops.clip(images * self.scale + self.shift, 0, 1)
        for layer in self.layers:
            pixels = layer(pixels, training=True)
        return (pixels - self.shift) / self.scale


def mirror(images: Any, mirrored: Any) -> Any:
    """Flip some images of a batch horizontally.

    Args:
        images: `(n, h, w, c)`.
        mirrored: `(n,)` bool, true for the images to flip.
    """
    return ops.where(mirrored[:, None, None, None], ops.flip(images, axis=2), images)
