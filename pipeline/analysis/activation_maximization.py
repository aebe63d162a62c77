"""Activation maximization: images that make a network's filters respond, by gradient ascent.

Reference: Erhan et al., "Visualizing Higher-Layer Features of a Deep Network" (2009); Olah,
    Mordvintsev & Schubert, "Feature Visualization" (2017), https://distill.pub/2017/feature-visualization
"""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import keras
import numpy as np

from pipeline.analysis.layer_table import macs
from pipeline.analysis.network import CONVOLUTIONS, nodes, values_of
from pipeline.data.preprocessor import Preprocessor

# What bounds the cost, whatever the network and its images
SIDE = 32  # pixels of a picture; a larger image shows a filter no more
LAYERS = 12  # evenly spaced, the first and the last among them
FILTERS = 16  # of each layer: the strongest
MACS = 6 * 10**9  # multiply-accumulates of a step: fewer filters, then fewer layers, keep it

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
    """Return the convolutions to paint of a network of one level, from input to output.

    Args:
        images: `(n, h, w, c)` as the model takes them, to tell which filters are strong.
    """
    found = [
        (node.operation.name, _unactivated(node.operation, node.input_tensors[0]))
        for node in nodes(model)
        if isinstance(node.operation, CONVOLUTIONS)
    ]
    if not found:
        return []
    height, width = canvas_size(model, [tensor for _, tensor in found])
    part = height * width / math.prod(images.shape[1:3])
    costs = [part * _macs(keras.Model(model.inputs[0], tensor)) for _, tensor in found]
    rows, count = affordable(costs)
    found = [found[row] for row in rows]
    given = values_of(model, [tensor for _, tensor in found], images)
    result = []
    for (name, tensor), values in zip(found, given, strict=True):
        strength = np.maximum(values, 0).mean(axis=(0, 1, 2))  # (filters,)
        strongest = np.argsort(-strength, kind="stable")[:count]
        spread = values.std(axis=(0, 1, 2))[strongest] + 1e-6
        result.append(Convolution(name, tensor, strongest, spread))
    return result


def affordable(costs: list[float]) -> tuple[list[int], int]:
    """Return which layers to paint, and how many filters of each, within MACS a step.

    Args:
        costs: Multiply-accumulates of one picture, layer by layer.
    """
    rows: list[int] = []
    for layers in range(min(LAYERS, len(costs)), 0, -1):
        rows = [int(row) for row in np.linspace(0, len(costs) - 1, layers).round()]
        if count := int(MACS // sum(costs[row] for row in rows)):
            return rows, min(count, FILTERS)
    return rows, 1


def _macs(model: keras.Model) -> int:
    calls = [node for node in nodes(model) if node.input_tensors]
    return sum(
        macs(node.operation, node.input_tensors[0].shape, node.output_tensors[0].shape)
        for node in calls
    )


def canvas_size(model: keras.Model, tensors: list[keras.KerasTensor]) -> tuple[int, int]:
    """Return the smallest height and width, from SIDE on, of which a network makes all of these.

    Args:
        model: Of one level.
        tensors: Of its inside, `(None, h, w, c)`.
    """
    height, width, channels = model.input_shape[1:]
    side = SIDE
    while side < max(height, width):
        size = min(side, height), min(side, width)
        picture = keras.KerasTensor((1, *size, channels))
        network = Prefixes(model, tensors, [(0, 1)] * len(tensors))
        try:  # small for unpadded convolutions, or a layer may need one size
            made = network(picture)
        except (TypeError, ValueError):
            made = []
        if made and all(min(each.shape[1:3]) > 0 for each in made):
            return size
        side *= 2
    return height, width


def _unactivated(layer: keras.Layer, inputs: keras.KerasTensor) -> keras.KerasTensor:
    """Return a convolution's output before its activation, where no gradient is cut off."""
    own = {"activation": "linear", "name": f"{layer.name}_response"}
    twin = type(layer).from_config(layer.get_config() | own)
    output = twin(inputs)
    twin.set_weights(layer.get_weights())
    return output


class Canvas(keras.Layer):
    """From row numbers `(b,)` int32 to pictures `(b, h, w, c)` as the model takes them."""

    def __init__(self, count: int, size: tuple[int, int], preprocessing: Preprocessor, seed: int):
        super().__init__()
        noise = keras.initializers.RandomNormal(stddev=NOISE, seed=seed)
        shape = (count, *size, preprocessing.image_shape[2])
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


class Prefixes(keras.Layer):
    """Tensors inside of a network in use, of some of the pictures each.

    A picture goes no further than its tensor needs.
    """

    def __init__(
        self,
        model: keras.Model,
        tensors: list[keras.KerasTensor],
        rows: list[tuple[int, int]],
    ):
        """Args:
        model: Of one level.
        tensors: Of its inside.
        rows: From which picture to which each of them is wanted.
        """
        super().__init__()
        self.model = keras.Model(model.inputs[0], tensors)
        self.rows = rows
        self.wanted = {id(x): own for x, own in zip(self.model.outputs, rows, strict=True)}
        for node in reversed(list(nodes(self.model))):
            own = _union(self.wanted[id(x)] for x in node.output_tensors if id(x) in self.wanted)
            for x in node.input_tensors:
                self.wanted[id(x)] = _union([own, self.wanted.get(id(x), own)])

    def call(self, pictures):
        values = {id(self.model.inputs[0]): pictures}
        for node in nodes(self.model):
            if not node.input_tensors:
                continue
            start, stop = _union(
                self.wanted[id(x)] for x in node.output_tensors if id(x) in self.wanted
            )
            given = {}
            for x in node.input_tensors:
                first = self.wanted[id(x)][0]
                given[id(x)] = values[id(x)][start - first : stop - first]
            args, kwargs = node.arguments.fill_in(given)
            if getattr(node.operation, "_call_has_training_arg", False):
                kwargs["training"] = False
            made = keras.tree.flatten(node.operation(*args, **kwargs))
            values |= {id(x): value for x, value in zip(node.output_tensors, made, strict=True)}
        made = []
        for x, (start, stop) in zip(self.model.outputs, self.rows, strict=True):
            first = self.wanted[id(x)][0]
            made.append(values[id(x)][start - first : stop - first])
        return made


def _union(ranges: Iterable[tuple[int, int]]) -> tuple[int, int]:
    starts, stops = zip(*ranges, strict=True)
    return min(starts), max(stops)


class Response(keras.Layer):
    """Adds the mean response of each picture's own filter to what training makes large."""

    def __init__(self, convolution: Convolution, **kwargs: Any):
        super().__init__(**kwargs)
        count = len(convolution.strongest)
        self.own = np.zeros((count, 1, 1, convolution.response.shape[-1]), np.float32)
        self.own[np.arange(count), 0, 0, convolution.strongest] = 1 / convolution.spread

    def call(self, responses):
        own = keras.ops.mean(responses * self.own, axis=(1, 2))  # (k, filters)
        self.add_loss(-keras.ops.sum(own))
        return keras.ops.sum(own)


def paint(
    model: keras.Model, every: list[Convolution], preprocessing: Preprocessor, seed: int
) -> list[np.ndarray]:
    """Return for each convolution pictures `(k, h, w, c)` in [0, 1] that its filters respond to.

    Args:
        model: Of one level; it is frozen.
        every: Of `convolutions`.
        preprocessing: How the model takes its images.
        seed: Of the noise to start from.
    """
    if not every:
        return []
    model.trainable = False
    tensors = [convolution.response for convolution in every]
    ends = np.cumsum([len(convolution.strongest) for convolution in every]).tolist()
    starts, count = [0, *ends[:-1]], ends[-1]
    prefixes = Prefixes(model, tensors, list(zip(starts, ends, strict=True)))
    prefixes.trainable = False
    canvas = Canvas(count, canvas_size(model, tensors), preprocessing, seed)
    rows = keras.Input(batch_shape=(count,), dtype="int32")
    outputs = [
        Response(convolution)(values)
        for convolution, values in zip(every, prefixes(canvas(rows)), strict=True)
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
    return np.split(keras.ops.convert_to_numpy(canvas.pictures()), ends[:-1])
