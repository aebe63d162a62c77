"""Activation maximization: generate images that filters respond to, by gradient ascent.

Reference: Erhan et al., "Visualizing Higher-Layer Features of a Deep Network" (2009); Olah,
    Mordvintsev & Schubert, "Feature Visualization" (2017), https://distill.pub/2017/feature-visualization
"""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import keras
import numpy as np

from pipeline.analysis.layer_table import macs
from pipeline.analysis.network import CONVOLUTIONS, activations, nodes
from pipeline.core.progress import Progress
from pipeline.data.preprocessor import Preprocessor

# Limits that bound the cost for any network and image size
SIDE = 32  # pixels of a picture; larger pictures show no more of a filter
LAYERS = 12  # evenly spaced, including the first and the last
FILTERS = 16  # per layer, those with the strongest responses
MACS = 6 * 10**9  # multiply-accumulates per step; to stay below, drop filters, then layers

STEPS = 48
LEARNING_RATE = 0.2  # of Adam, in logits of the pixel value: a step of 1 takes 50 % grey to 73 %
NOISE = 0.1  # standard deviation of the initial picture around 50 % grey, in logits
# Weight of the squared differences between neighboring pixels. Without it, the result is
# high-frequency noise that excites the filter and shows nothing.
SMOOTHNESS = 6.0
# Each step shifts the pictures randomly by up to 1 / JITTER of their side, so that no position is
# special.
JITTER = 16


class Convolution(NamedTuple):
    """A convolution, its output before the activation, and its strongest filters."""

    name: str
    response: keras.KerasTensor
    strongest: np.ndarray
    """Filters `(k,)` int, sorted by their mean rectified response to the images, descending"""
    spread: np.ndarray
    """Standard deviation of the response of each of these filters, `(k,)`"""


def select_convolutions(model: keras.Model, images: np.ndarray) -> list[Convolution]:
    """Select the convolutions and filters to visualize, from input to output.

    Args:
        model: Without nested models.
        images: `(n, h, w, c)`, preprocessed as for the model; used to rank the filters.
    """
    responses = [
        (node.operation.name, _without_activation(node.operation, node.input_tensors[0]))
        for node in nodes(model)
        if isinstance(node.operation, CONVOLUTIONS)
    ]
    if not responses:
        return []
    height, width = picture_size(model, [tensor for _, tensor in responses])
    share = height * width / math.prod(images.shape[1:3])
    costs = [share * _macs(keras.Model(model.inputs[0], tensor)) for _, tensor in responses]
    layers, filters = select_within_budget(costs)
    responses = [responses[layer] for layer in layers]
    outputs = activations(model, [tensor for _, tensor in responses], images)
    selected = []
    for (name, tensor), values in zip(responses, outputs, strict=True):
        strength = np.maximum(values, 0).mean(axis=(0, 1, 2))  # (filters,)
        strongest = np.argsort(-strength, kind="stable")[:filters]
        spread = values.std(axis=(0, 1, 2))[strongest] + 1e-6
        selected.append(Convolution(name, tensor, strongest, spread))
    return selected


def select_within_budget(costs: list[float]) -> tuple[list[int], int]:
    """Return which layers to visualize, and how many filters of each, within MACS per step.

    Args:
        costs: Multiply-accumulates of one picture for each layer.

    Returns:
        The indices of the layers, ascending, and the number of filters, at least 1.
    """
    layers: list[int] = []
    for count in range(min(LAYERS, len(costs)), 0, -1):
        layers = [int(layer) for layer in np.linspace(0, len(costs) - 1, count).round()]
        if filters := int(MACS // sum(costs[layer] for layer in layers)):
            return layers, min(filters, FILTERS)
    return layers, 1


def _macs(model: keras.Model) -> int:
    return sum(
        macs(node.operation, node.input_tensors[0].shape, node.output_tensors[0].shape)
        for node in nodes(model)
        if node.input_tensors
    )


def picture_size(model: keras.Model, tensors: list[keras.KerasTensor]) -> tuple[int, int]:
    """Return the smallest height and width, at least SIDE, for which all tensors are not empty.

    SIDE is that of the first convolution's input, which is smaller than the picture if the images
    are downscaled before. The picture is never larger than the images of the model.

    Args:
        model: Without nested models.
        tensors: Intermediate tensors of `model`, `(None, h, w, c)`.
    """
    height, width, channels = model.input_shape[1:]
    first = next(node for node in nodes(model) if isinstance(node.operation, CONVOLUTIONS))
    side = SIDE * max(1, height // first.input_tensors[0].shape[1])
    while side < max(height, width):
        size = min(side, height), min(side, width)
        picture = keras.KerasTensor((1, *size, channels))
        prefixes = Prefixes(model, tensors, [(0, 1)] * len(tensors))
        try:  # fails if an unpadded convolution gets too few pixels, or a layer has a fixed size
            outputs = prefixes(picture)
        except (TypeError, ValueError):
            outputs = []
        if outputs and all(min(output.shape[1:3]) > 0 for output in outputs):
            return size
        side *= 2
    return height, width


def _without_activation(layer: keras.Layer, inputs: keras.KerasTensor) -> keras.KerasTensor:
    """Return a convolution's output before its activation, which could have a zero gradient."""
    linear = {"activation": "linear", "name": f"{layer.name}_response"}
    copy = type(layer).from_config(layer.get_config() | linear)
    output = copy(inputs)
    copy.set_weights(layer.get_weights())
    return output


class TrainablePictures(keras.Layer):
    """Map row numbers `(b,)` int32 to pictures `(b, h, w, c)`, preprocessed as for the model.

    The pictures are weights. Each call shifts them randomly and adds their roughness to the loss.
    """

    def __init__(self, count: int, size: tuple[int, int], preprocessor: Preprocessor, seed: int):
        super().__init__()
        noise = keras.initializers.RandomNormal(stddev=NOISE, seed=seed)
        shape = (count, *size, preprocessor.image_shape[2])
        self.logits = self.add_weight(shape=shape, initializer=noise)
        self.shift, self.scale = preprocessor.shift_and_scale()
        self.seed_generator = keras.random.SeedGenerator(seed)

    def pixels(self):
        """Return the pictures in [0, 1]."""
        return keras.ops.sigmoid(self.logits)

    def call(self, rows):
        pixels = keras.ops.take(self.pixels(), rows, axis=0)
        vertical, horizontal = pixels[:, 1:] - pixels[:, :-1], pixels[:, :, 1:] - pixels[:, :, :-1]
        for differences in (vertical, horizontal):
            roughness = keras.ops.mean(keras.ops.square(differences), axis=(1, 2, 3))
            self.add_loss(SMOOTHNESS * keras.ops.sum(roughness))
        for axis in (1, 2):
            if limit := pixels.shape[axis] // JITTER:
                shift = keras.random.randint((), -limit, limit + 1, seed=self.seed_generator)
                pixels = keras.ops.roll(pixels, shift, axis=axis)
        return (pixels - self.shift) / self.scale


class Prefixes(keras.Layer):
    """Compute intermediate tensors of a model in inference mode, each for some of the pictures.

    A picture passes only the layers that its tensor depends on.
    """

    def __init__(
        self,
        model: keras.Model,
        tensors: list[keras.KerasTensor],
        rows: list[tuple[int, int]],
    ):
        """Initialize the layer.

        Args:
            model: Without nested models.
            tensors: Intermediate tensors of `model`.
            rows: For each tensor, the range of pictures `(start, stop)` to compute it for.
        """
        super().__init__()
        self.model = keras.Model(model.inputs[0], tensors)
        self.rows = rows
        self.needed = {id(x): needed for x, needed in zip(self.model.outputs, rows, strict=True)}
        for node in reversed(list(nodes(self.model))):
            output_rows = self._output_rows(node)
            for x in node.input_tensors:
                self.needed[id(x)] = _union([output_rows, self.needed.get(id(x), output_rows)])

    def _output_rows(self, node: Any) -> tuple[int, int]:
        """Return the range of pictures for which a layer call is needed."""
        return _union(self.needed[id(x)] for x in node.output_tensors if id(x) in self.needed)

    def call(self, pictures):
        values = {id(self.model.inputs[0]): pictures}

        def select(tensor: keras.KerasTensor, start: int, stop: int):
            first = self.needed[id(tensor)][0]
            return values[id(tensor)][start - first : stop - first]

        for node in nodes(self.model):
            if not node.input_tensors:
                continue
            start, stop = self._output_rows(node)
            inputs = {id(x): select(x, start, stop) for x in node.input_tensors}
            args, kwargs = node.arguments.fill_in(inputs)
            if getattr(node.operation, "_call_has_training_arg", False):
                kwargs["training"] = False
            outputs = keras.tree.flatten(node.operation(*args, **kwargs))
            values |= {id(x): value for x, value in zip(node.output_tensors, outputs, strict=True)}
        return [select(x, *rows) for x, rows in zip(self.model.outputs, self.rows, strict=True)]


def _union(ranges: Iterable[tuple[int, int]]) -> tuple[int, int]:
    """Return the smallest range that contains all ranges."""
    starts, stops = zip(*ranges, strict=True)
    return min(starts), max(stops)


class Response(keras.Layer):
    """Add the negative mean response of each picture's filter to the loss.

    Responses are in standard deviations, so that all filters count the same.
    """

    def __init__(self, convolution: Convolution, **kwargs: Any):
        super().__init__(**kwargs)
        count = len(convolution.strongest)
        # picture i is for filter strongest[i]: (k, 1, 1, filters)
        self.weighting = np.zeros((count, 1, 1, convolution.response.shape[-1]), np.float32)
        self.weighting[np.arange(count), 0, 0, convolution.strongest] = 1 / convolution.spread

    def call(self, responses):
        means = keras.ops.mean(responses * self.weighting, axis=(1, 2))  # (k, filters)
        self.add_loss(-keras.ops.sum(means))
        return keras.ops.sum(means)


def maximize(
    model: keras.Model, convolutions: list[Convolution], preprocessor: Preprocessor, seed: int
) -> list[np.ndarray]:
    """Return pictures that the strongest filters of each convolution respond to.

    Args:
        model: Without nested models. It is frozen.
        convolutions: As returned by `select_convolutions`.
        preprocessor: The preprocessor of the model.
        seed: Seed of the initial noise and of the random shifts.

    Returns:
        Pictures `(k, h, w, c)` in [0, 1] for each convolution, one per filter.
    """
    if not convolutions:
        return []
    model.trainable = False
    tensors = [convolution.response for convolution in convolutions]
    stops = np.cumsum([len(convolution.strongest) for convolution in convolutions]).tolist()
    starts, count = [0, *stops[:-1]], stops[-1]
    prefixes = Prefixes(model, tensors, list(zip(starts, stops, strict=True)))
    prefixes.trainable = False
    pictures = TrainablePictures(count, picture_size(model, tensors), preprocessor, seed)
    rows = keras.Input(batch_shape=(count,), dtype="int32")
    outputs = [
        Response(convolution)(values)
        for convolution, values in zip(convolutions, prefixes(pictures(rows)), strict=True)
    ]
    trainer = keras.Model(rows, outputs)
    trainer.compile(keras.optimizers.Adam(LEARNING_RATE))
    with Progress("filters", STEPS, "step") as shown:
        counter = keras.callbacks.LambdaCallback(
            on_train_batch_end=lambda step, logs: shown.advance()
        )
        # one epoch of STEPS batches, each with all rows
        trainer.fit(
            np.tile(np.arange(count, dtype=np.int32), STEPS),
            batch_size=count,
            shuffle=False,
            verbose=0,
            callbacks=[counter],
        )
    return np.split(keras.ops.convert_to_numpy(pictures.pixels()), stops[:-1])
