"""Network: expand nested models, and read the activations of inner layers."""

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
    """Return the same layers as one functional model without nested models.

    Every intermediate tensor can then be an output of a new `keras.Model`. The weights are shared
    with `model`. A functional model without nested models is returned as it is.

    Args:
        model: Functional or Sequential, possibly with models as layers. Layers of a nested model
            are renamed, for example `dense` of `body` to `body.dense`, so that names stay unique.
    """
    has_nested = any(isinstance(layer, keras.Model) for layer in model.layers)
    if not has_nested and not isinstance(model, keras.Sequential):
        return model
    images = keras.Input(model.input_shape[1:], dtype=model.inputs[0].dtype)
    return keras.Model(images, _replay("", model, images), name=model.name)


def _replay(prefix: str, operation: Any, *args: Any, **kwargs: Any) -> Any:
    """Call an operation; if it is a model, call its layers one by one, with prefixed names."""
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
    """Yield the layer calls of a model as Keras nodes, from input to output.

    A node has an `operation`, `input_tensors` and `output_tensors`.
    """
    for depth in sorted(model._nodes_by_depth, reverse=True):
        yield from model._nodes_by_depth[depth]


class InferenceMode(keras.Layer):
    """Run a model in inference mode, even while an outer model is trained.

    Dropout is off and batch normalization uses its moving averages. Passing `training=False` when
    the model is called is not enough: the outer model overrides it.
    """

    def __init__(self, model: keras.Model):
        super().__init__()
        self.model = model

    def call(self, inputs):
        return self.model(inputs, training=False)


def activations(
    model: keras.Model, tensors: list[keras.KerasTensor], images: np.ndarray
) -> list[np.ndarray]:
    """Return the values of intermediate tensors for a batch of images, in inference mode.

    The model is called directly: for a single batch, `predict` would spend more time on compiling
    the graph than on computing.

    Args:
        model: Without nested models.
        tensors: Intermediate tensors of `model`.
        images: `(n, h, w, c)`, preprocessed as for the model.

    Returns:
        One array per tensor, the first axis of length n.
    """
    if not tensors:
        return []
    outputs = keras.Model(model.inputs[0], tensors)(images, training=False)
    return [keras.ops.convert_to_numpy(values) for values in keras.tree.flatten(outputs)]
