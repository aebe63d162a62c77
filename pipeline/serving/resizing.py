"""Resizing: a layer that resizes images in exported models as Pillow resizes them for training."""

from typing import Any

import keras
import tensorflow as tf


class Resize(keras.layers.Layer):
    """Resizes images of any size as `to_size` in preprocessor.py does with Pillow.

    It consists of basic operations, which every runtime has. Pillow's filter is separable: the
    result is rows · image · columnsᵀ, with one matrix per axis. As in Pillow, the width is resized
    first, and values are rounded after each axis. Pillow computes in integers, so sums that are
    halfway between two levels may be rounded differently: of random noise, 0.07 to 0.4 % of the
    values differ, by one level (100 images of 1 to 700 pixels a side for each of the three ways of
    resizing). ONNX's own Resize, with antialias, differs by up to 21 levels in ONNX Runtime.

    Args:
        size: Height and width of the resized images.
        resize: `stretch`, `crop` or `pad`, as in `to_size`.
    """

    def __init__(self, size: tuple[int, int], resize: str) -> None:
        super().__init__(name="resize")
        self.size = size
        self.resize = resize

    def call(self, images: Any) -> Any:
        """Resize images `(n, H, W, c)` uint8 to `(n, h, w, c)` float32, integers in [0, 255]."""
        height, width = tf.shape(images)[1], tf.shape(images)[2]
        scale = self._common_scale(height, width)
        rows = self._weights(height, self.size[0], scale)
        columns = self._weights(width, self.size[1], scale)
        # transposed before the conversion to float32, which takes four times the memory
        pixels = tf.cast(tf.transpose(images, (0, 3, 1, 2)), tf.float32)
        pixels = tf.floor(tf.matmul(pixels, columns, transpose_b=True) + 0.5)
        pixels = tf.floor(tf.matmul(rows, pixels) + 0.5)
        return tf.transpose(pixels, (0, 2, 3, 1))

    def _common_scale(self, height: Any, width: Any) -> tuple[Any, Any]:
        """Return the scale that keeps the aspect ratio, as in `_weights`.

        The image fills the size (crop) or fits into it (pad).
        """
        is_wider = width * self.size[0] > height * self.size[1]
        by_height = is_wider if self.resize == "crop" else tf.logical_not(is_wider)
        return tf.where(by_height, height, width), tf.where(by_height, *self.size)

    def _weights(self, length: Any, target: int, common_scale: tuple[Any, Any]) -> Any:
        """Return the weights of an axis, `(target, length)` float32.

        The filter is a triangle around the center of each output pixel. Its radius is one input
        pixel, or one output pixel if that is larger. Weights that do not extend beyond the image
        are divided by their sum.

        Args:
            length: Number of input pixels.
            target: Number of output pixels.
            common_scale: Number of input pixels per output pixel, as numerator and denominator.
                Integers: then the weights of an image that has the target's size are exactly 1
                and 0.
        """
        drawn = target  # number of output pixels that the image covers; the others are black
        numerator, denominator = common_scale
        if self.resize == "pad":
            drawn = tf.maximum(1, (2 * length * denominator + numerator) // (2 * numerator))
        if self.resize != "crop":
            numerator, denominator = length, drawn
        # in units of half an input pixel divided by the denominator
        output = tf.range(target)[:, None] - (target - drawn) // 2
        center = denominator * length + (2 * output + 1 - drawn) * numerator
        distance = tf.abs(center - denominator * (2 * tf.range(length) + 1))
        radius = 2 * tf.maximum(numerator, denominator)
        weights = tf.maximum(radius - distance, 0)
        weights *= tf.cast((output >= 0) & (output < drawn), tf.int32)
        weights = tf.cast(weights, tf.float32)
        # the sum is at least 1, unless an output pixel is black
        return weights / tf.maximum(tf.reduce_sum(weights, axis=1, keepdims=True), 1)
