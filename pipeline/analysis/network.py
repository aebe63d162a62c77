"""Network: one of networks within networks as one level, and the numbers inside of it."""

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

CONVOLUTIONS = (
    keras.layers.Conv2D,
    keras.layers.DepthwiseConv2D,
    keras.layers.SeparableConv2D,
)


def unnested(model: keras.Model) -> keras.Model:
    """Return the same layers as a network of one level, whose every tensor can be asked for.

    One that is of one level comes back as it is.

    Args:
        model: Functional or Sequential, which may hold others of these as layers. The layers of
            these are called `body.dense` from then on: both networks may have a `dense`.
    """
    nested = any(isinstance(layer, keras.Model) for layer in model.layers)
    if not nested and not isinstance(model, keras.Sequential):
        return model
    images = keras.Input(model.input_shape[1:], dtype=model.inputs[0].dtype)
    return keras.Model(images, _replay("", model, images), name=model.name)


def _replay(prefix: str, operation: Any, *args: Any, **kwargs: Any) -> Any:
    """Call an operation; of a network, its layers one by one, their names behind the prefix."""
    if isinstance(operation, keras.Sequential):
        operation = operation._functional
    if not isinstance(operation, keras.Model):
        return operation(*args, **kwargs)
    inputs = args[0] if len(args) == 1 else args

    def replay(inner: Any) -> Any:
        if prefix and not inner.name.startswith(prefix):
            inner.name = prefix + inner.name
        return lambda *args, **kwargs: _replay(f"{inner.name}.", inner, *args, **kwargs)

    return operation._run_through_graph(inputs, operation_fn=replay)


def nodes(model: keras.Model) -> Iterator[Any]:
    """Yield the calls of layers from input to output: operation, input and output tensors."""
    for depth in sorted(model._nodes_by_depth, reverse=True):
        yield from model._nodes_by_depth[depth]


class InUse(keras.Layer):
    """A network as it is used, also where what stands before it is trained.

    Without dropout, and with the moving averages of batch normalization. `training=False` in the
    call of a model would not do: a model that holds it passes its own down.
    """

    def __init__(self, model: keras.Model):
        super().__init__()
        self.model = model

    def call(self, inputs):
        return self.model(inputs, training=False)


def values_of(model: keras.Model, tensors: list, images: np.ndarray) -> list[np.ndarray]:
    """Return what a network of one level makes of images, in use, at each of some tensors.

    In one piece and not by `predict`: for one batch the graph would take longer than the numbers.
    """
    if not tensors:
        return []
    given = keras.Model(model.inputs[0], tensors)(images, training=False)
    return [keras.ops.convert_to_numpy(values) for values in keras.tree.flatten(given)]
