"""Ascent: what the filters of a network respond to, painted by gradient ascent on the image.

Reference: Erhan et al., "Visualizing Higher-Layer Features of a Deep Network" (2009); Olah,
    Mordvintsev & Schubert, "Feature Visualization" (2017), https://distill.pub/2017/feature-visualization
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import keras
import numpy as np

from pipeline.network import CONVOLUTIONS, InUse, nodes, values_of
from pipeline.preprocessing import Preprocessing

FILTERS = 16  # of each layer: the strongest
TOGETHER = 128  # pictures painted at once
STEPS = 48
RATE = 0.2  # of Adam, on a scale where 1 is what takes middle grey to 73 %
NOISE = 0.1  # standard deviation of the grey that it starts from, on that scale
# What squared steps between neighbouring pixels cost, against a response in standard deviations:
# keeps a picture from noise that fools the filter and shows nothing.
SMOOTHNESS = 6.0
JITTER = 16  # moved at each step by up to this part of its side, so that no pixel is special


class Convolution(NamedTuple):
    """A convolution, and its output before the activation."""

    name: str
    response: keras.KerasTensor
    strongest: np.ndarray
    """Filters `(k,)` int by their mean rectified response to the images, strongest first"""
    spread: np.ndarray
    """Standard deviation of each filter's response, `(k,)`"""


def convolutions(model: keras.Model, images: np.ndarray) -> list[Convolution]:
    """Return the convolutions of a network of one level, from input to output.

    Args:
        images: `(n, h, w, c)` as the model takes them, to tell which filters are strong.
    """
    found = [
        (node.operation.name, _unactivated(node.operation, node.input_tensors[0]))
        for node in nodes(model)
        if isinstance(node.operation, CONVOLUTIONS)
    ]
    given = values_of(model, [tensor for _, tensor in found], images)
    result = []
    for (name, tensor), values in zip(found, given, strict=True):
        strength = np.maximum(values, 0).mean(axis=(0, 1, 2))  # (filters,)
        strongest = np.argsort(-strength, kind="stable")[:FILTERS]
        spread = values.std(axis=(0, 1, 2))[strongest] + 1e-6
        result.append(Convolution(name, tensor, strongest, spread))
    return result


def _unactivated(layer: keras.Layer, inputs: keras.KerasTensor) -> keras.KerasTensor:
    """Return a convolution's output before its activation, where no gradient is cut off."""
    own = {"activation": "linear", "name": f"{layer.name}_response"}
    twin = type(layer).from_config(layer.get_config() | own)
    output = twin(inputs)
    twin.set_weights(layer.get_weights())
    return output


class Canvas(keras.Layer):
    """From row numbers `(b,)` int32 to pictures `(b, h, w, c)` as the model takes them."""

    def __init__(self, count: int, preprocessing: Preprocessing, seed: int):
        super().__init__()
        noise = keras.initializers.RandomNormal(stddev=NOISE, seed=seed)
        shape = (count, *preprocessing.image_shape)
        self.paint = self.add_weight(shape=shape, initializer=noise)
        self.shift, self.scale = preprocessing.shift_and_scale()
        self.random = keras.random.SeedGenerator(seed)

    def pictures(self):
        return keras.ops.sigmoid(self.paint)  # in [0, 1], from middle grey

    def call(self, rows):
        pictures = keras.ops.take(self.pictures(), rows, axis=0)
        down, across = pictures[:, 1:] - pictures[:, :-1], pictures[:, :, 1:] - pictures[:, :, :-1]
        for steps in (down, across):
            rough = keras.ops.mean(keras.ops.square(steps), axis=(1, 2, 3))
            self.add_loss(SMOOTHNESS * keras.ops.sum(rough))
        for axis in (1, 2):
            if reach := pictures.shape[axis] // JITTER:
                by = keras.random.randint((), -reach, reach + 1, seed=self.random)
                pictures = keras.ops.roll(pictures, by, axis=axis)
        return (pictures - self.shift) / self.scale


class Response(keras.Layer):
    """Adds the mean response of each picture's own filter to what training makes large."""

    def __init__(self, start: int, convolution: Convolution, **kwargs: Any):
        super().__init__(**kwargs)
        count = len(convolution.strongest)
        self.rows = slice(start, start + count)
        self.own = np.zeros((count, 1, 1, convolution.response.shape[-1]), np.float32)
        self.own[np.arange(count), 0, 0, convolution.strongest] = 1 / convolution.spread

    def call(self, responses):
        own = keras.ops.mean(responses[self.rows] * self.own, axis=(1, 2))  # (k, filters)
        self.add_loss(-keras.ops.sum(own))
        return keras.ops.sum(own)


def paint(
    model: keras.Model, every: list[Convolution], preprocessing: Preprocessing, seed: int
) -> Iterator[np.ndarray]:
    """Yield for each convolution pictures `(k, h, w, c)` in [0, 1] that its filters respond to.

    Args:
        model: Of one level; it is frozen.
        every: Of `convolutions`.
        preprocessing: How the model takes its images.
        seed: Of the noise to start from.
    """
    model.trainable = False
    while every:
        ends = np.cumsum([len(convolution.strongest) for convolution in every])
        now = max(int((ends <= TOGETHER).sum()), 1)
        yield from _paint(model, every[:now], preprocessing, seed)
        every = every[now:]


def _paint(
    model: keras.Model, some: list[Convolution], preprocessing: Preprocessing, seed: int
) -> Iterator[np.ndarray]:
    responses = keras.Model(model.inputs[0], [convolution.response for convolution in some])
    responses.trainable = False
    count = sum(len(convolution.strongest) for convolution in some)
    canvas = Canvas(count, preprocessing, seed)
    rows = keras.Input(batch_shape=(count,), dtype="int32")  # each layer has its own part of them
    starts = np.cumsum([0] + [len(convolution.strongest) for convolution in some])
    given = keras.tree.flatten(InUse(responses)(canvas(rows)))
    outputs = [
        Response(int(start), convolution)(values)
        for start, convolution, values in zip(starts, some, given, strict=False)
    ]
    whole = keras.Model(rows, outputs)
    whole.compile(keras.optimizers.Adam(RATE), steps_per_execution=STEPS // 4)
    # all steps in one epoch: a pass over the same rows each
    whole.fit(
        np.tile(np.arange(count, dtype=np.int32), STEPS),
        batch_size=count,
        shuffle=False,
        verbose=0,
    )
    pictures = keras.ops.convert_to_numpy(canvas.pictures())
    yield from np.split(pictures, starts[1:-1])
