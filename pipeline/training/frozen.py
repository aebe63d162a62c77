"""Frozen: split a network after the layers that training cannot change.

The output of these layers, the features of an image, is the same in every epoch and with every
seed. It can be computed once, and the rest of the network can be trained on it.

Reference: Chollet, "Transfer learning & fine-tuning" (2020),
    https://keras.io/guides/transfer_learning
"""

import hashlib
import inspect
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import keras

from pipeline.core.errors import PipelineError, first_few

# Features may have this many values, or as many as the image. Larger ones, such as the output of a
# first convolution, would take more disk space and time to read than they save.
MAX_VALUES = 4096


class Split(NamedTuple):
    """A network in two parts, which share its layers and weights."""

    body: keras.Model
    """From images to features, frozen"""
    head: keras.Model
    """From features to logits"""


def split(model: keras.Model) -> Split | None:
    """Split a network after its frozen layers, at a single tensor.

    The body ends before the first layer that has trainable weights or is random in training, such
    as dropout. Layers without weights belong to the body, such as pooling after a frozen base. A
    nested model that is frozen in part is split, too.

    Args:
        model: From images to logits, functional or Sequential.

    Returns:
        The parts; None if the body has no weights, or if the features are too large.
    """
    parts = _split(model, {id(weight) for weight in model.trainable_weights})
    if not parts.body.weights:
        return None
    image, features = (math.prod(part.input_shape[1:]) for part in parts)
    return parts if features <= max(image, MAX_VALUES) else None


def layers_to_unfreeze(model: keras.Model, last_frozen: str) -> list[keras.Layer]:
    """Return the frozen layers after a layer or block, except batch normalization.

    Batch normalization keeps the statistics of the images that it was trained with: those of small
    batches of new images would destroy what the layers have learned (Chollet 2020).

    Args:
        model: With frozen layers, possibly in nested models.
        last_frozen: Name of the last layer that stays frozen, or the beginning of its name, such as
            block_3 for block_3_project; none: no layer.

    Raises:
        PipelineError: There is no such layer, or none to train after it.
    """
    layers = [layer for layer in _unnested_layers(model) if layer.weights and not layer.trainable]
    names = [layer.name for layer in layers]
    ends = [end for end, name in enumerate(names, 1) if name == last_frozen] or [
        end for end, name in enumerate(names, 1) if name.startswith(f"{last_frozen}_")
    ]
    if last_frozen == "none":
        ends = [0]
    norm = keras.layers.BatchNormalization
    unfrozen = (
        [layer for layer in layers[ends[-1] :] if not isinstance(layer, norm)] if ends else []
    )
    if not unfrozen:
        raise PipelineError(
            f"{model.name}: train.fine_tune.freeze must be none, or a frozen layer with others to "
            f"train after it. Got {last_frozen}. Frozen layers: {first_few(names) or 'none'}"
        )
    return unfrozen


def _unnested_layers(model: keras.Model) -> Iterator[keras.Layer]:
    """Yield the layers of a model and of its nested models, from input to output."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _unnested_layers(layer)
        else:
            yield layer


def has_body(model: keras.Model, weights: str) -> bool:
    """Return whether `split` finds a body with these weights, given by their hash."""
    parts = split(model)
    return parts is not None and weights_hash(parts.body) == weights


def weights_hash(model: keras.Model) -> str:
    """Return the SHA-256 of all weights of a model."""
    digest = hashlib.sha256()
    for weight in model.get_weights():
        digest.update(f"{weight.dtype} {weight.shape} ".encode() + weight.tobytes())
    return digest.hexdigest()


def _split(model: keras.Model, trained: set[int]) -> Split:
    """Split a network; the body may be empty.

    Args:
        model: With one input and one output.
        trained: Ids of the weights that training changes.
    """
    if isinstance(model, keras.Sequential):
        model = keras.Model(model.inputs, model.outputs)
    images, logits = model.inputs[0], model.outputs[0]
    by_depth = model._nodes_by_depth
    nodes = [node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth]]
    constant, tensors = {id(images)}, [images]  # those that training does not change
    for node in nodes:
        if {id(tensor) for tensor in node.input_tensors} <= constant and (
            _is_constant(node.operation, trained)
        ):
            tensors += node.output_tensors
            constant |= {id(tensor) for tensor in node.output_tensors}
    features = next(tensor for tensor in reversed(tensors) if _separates(tensor, logits, images))
    following = [node for node in nodes if any(tensor is features for tensor in node.input_tensors)]
    if len(following) != 1 or not isinstance(following[0].operation, keras.Model):
        return Split(keras.Model(images, features), keras.Model(features, logits, name=model.name))
    inner = _split(following[0].operation, trained)
    inputs = keras.Input(inner.head.input_shape[1:])
    x = inner.head(inputs)
    if (output := following[0].output_tensors[0]) is not logits:
        x = keras.Model(output, logits)(x)
    return Split(keras.Model(images, inner.body(features)), keras.Model(inputs, x, name=model.name))


def _is_constant(operation: Any, trained: set[int]) -> bool:
    """Return whether an operation computes the same before, during and after training."""
    if not isinstance(operation, keras.Layer):
        return True  # an operation of keras.ops
    layers = [x for x in operation._flatten_layers() if not isinstance(x, keras.Model)]
    return not any(_changes(layer, trained) for layer in layers)


def _changes(layer: keras.Layer, trained: set[int]) -> bool:
    """Return whether training changes what a layer computes, or may change it."""
    if any(id(weight) in trained for weight in layer.weights):
        return True
    if isinstance(layer, keras.layers.BatchNormalization):
        return layer.trainable  # otherwise it is in inference mode
    return "training" in inspect.signature(layer.call).parameters


def _separates(tensor: Any, output: Any, source: Any) -> bool:
    """Return whether every path from `source` to `output` passes through a tensor."""
    pending, seen = [output], {id(tensor)}
    while pending:
        current = pending.pop()
        if id(current) in seen:
            continue
        if current is source:
            return False
        seen.add(id(current))
        history = current._keras_history
        pending += history.operation._inbound_nodes[history.node_index].input_tensors
    return True
