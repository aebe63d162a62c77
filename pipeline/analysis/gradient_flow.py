"""Gradient flow: gradient and weight norms, inactive ReLUs and moving averages of each layer.

Vanishing gradients shrink towards the input, exploding gradients grow.

Reference: Glorot & Bengio, "Understanding the difficulty of training deep feedforward neural
    networks" (2010), https://proceedings.mlr.press/v9/glorot10a.html
"""

import keras
import numpy as np
import pandas as pd

from pipeline.analysis.network import activations, nodes, unnested
from pipeline.runtime import acceleration
from pipeline.training.gradients import gradients, l2_norm


def layers_with_weights(model: keras.Model) -> list[keras.Layer]:
    """Return the layers that have weights, from input to output, nested layers included."""
    return [layer for layer in model._flatten_layers(include_self=False) if _direct_weights(layer)]


def _direct_weights(layer: keras.Layer) -> list[keras.Variable]:
    """Return the weights of a layer without those of its sublayers."""
    nested = {id(weight) for sublayer in layer._layers for weight in sublayer.weights}
    return [weight for weight in layer.weights if id(weight) not in nested]


def norms(
    model: keras.Model, images: np.ndarray, labels: np.ndarray, loss: keras.Loss
) -> list[dict[str, float | None]]:
    """Return the L2 norms of each layer's gradient and weights.

    Args:
        model: Uncompiled; compiled here. Its weights stay as they are; its moving averages are
            updated once.
        images: `(b, h, w, c)`, one batch. As in training, dropout is active and batch
            normalization uses the statistics of the batch.
        labels: `(b, k)` one-hot.
        loss: Between labels and logits.

    Returns:
        For each of `layers_with_weights`: gradient, the norm over its trainable weights, None if
        it has none; weights, the norm of its trainable weights, or of all if the layer is frozen.
        A norm that is not finite is None.
    """
    variables = list(model.trainable_variables)
    values = gradients(model, images, labels, loss)
    gradient_of = {id(weight): value for weight, value in zip(variables, values, strict=True)}
    rows = []
    for layer in layers_with_weights(model):
        weights = _direct_weights(layer)
        trainable = [weight for weight in weights if id(weight) in gradient_of]
        gradient = _norm([gradient_of[id(weight)] for weight in trainable]) if trainable else None
        rows.append({"gradient": gradient, "weights": _norm(trainable or weights)})
    return rows


def _norm(arrays: list) -> float | None:
    # float64, because the square of 1e-25 underflows to 0 in float32
    values = [keras.ops.convert_to_numpy(array).astype(np.float64).ravel() for array in arrays]
    norm = l2_norm(np.concatenate(values))
    return norm if np.isfinite(norm) else None


def _is_relu(layer: keras.Layer) -> bool:
    if isinstance(layer, keras.layers.ReLU):
        return float(layer.negative_slope) == 0  # a leaky ReLU always has a gradient
    return getattr(layer, "activation", None) is keras.activations.relu


def inactive_relus(model: keras.Model, images: np.ndarray) -> dict[str, float]:
    """Return the share of ReLUs in each layer that are 0 for every image.

    Args:
        model: Without nested models.
        images: `(n, h, w, c)`, preprocessed as for the model.

    Returns:
        From layer name to a share in [0, 1] of the layer's units, or of its channels: a channel
        is inactive if it is 0 at every position of every image.
    """
    relus = [node for node in nodes(model) if _is_relu(node.operation)]
    outputs = activations(model, [node.output_tensors[0] for node in relus], images)
    shares = {}
    for node, values in zip(relus, outputs, strict=True):
        active = (values > 0).reshape(-1, values.shape[-1]).any(axis=0)  # (channels,)
        shares[node.operation.name] = float(1 - active.mean())
    return shares


def compare_moving_averages(model: keras.Model, images: np.ndarray) -> dict[str, dict[str, float]]:
    """Compare the moving averages of batch normalization with the statistics of a batch.

    Training normalizes by the batch, inference by the moving averages. If they differ, the model
    computes something else in inference than it did in training.

    Args:
        model: Without nested models.
        images: `(n, h, w, c)`, preprocessed as for the model.

    Returns:
        From layer name to averages over the channels: mean, the distance between moving mean and
        batch mean in standard deviations of the batch; variance, the ratio of moving variance to
        batch variance (geometric mean).
    """
    normalizations = [
        node for node in nodes(model) if isinstance(node.operation, keras.layers.BatchNormalization)
    ]
    inputs = activations(model, [node.input_tensors[0] for node in normalizations], images)
    rows = {}
    for node, values in zip(normalizations, inputs, strict=True):
        layer = node.operation
        channels = values.reshape(-1, values.shape[-1]).astype(np.float64)
        variance = channels.var(axis=0) + layer.epsilon
        moving_mean, moving_variance = (
            keras.ops.convert_to_numpy(x) for x in (layer.moving_mean, layer.moving_variance)
        )
        distance = np.abs(moving_mean - channels.mean(axis=0)) / np.sqrt(variance)
        ratio = np.log((moving_variance + layer.epsilon) / variance)
        rows[layer.name] = {
            "mean": float(distance.mean()),
            "variance": float(np.exp(ratio.mean())),
        }
    return rows


def table(
    model: keras.Model,
    initial_model: keras.Model,
    images: np.ndarray,
    labels: np.ndarray,
    loss: keras.Loss,
) -> pd.DataFrame:
    """Return the norms, inactive ReLUs and moving averages of each layer.

    Args:
        model: Trained.
        initial_model: The same model before training.
        images: `(b, h, w, c)`, one batch.
        labels: `(b, k)` one-hot.
        loss: The loss of the training.

    Returns:
        One row per layer, indexed by its name: gradient_start, gradient_end, weights_start,
        weights_end (see `norms`); silent (see `inactive_relus`); mean, variance (see
        `compare_moving_averages`). NaN where a column does not apply to a layer.
    """
    flat_model = unnested(model)
    inactive = pd.DataFrame({"silent": pd.Series(inactive_relus(flat_model, images), dtype=float)})
    moving = pd.DataFrame.from_dict(compare_moving_averages(flat_model, images), orient="index")
    moving = moving.reindex(columns=["mean", "variance"])
    names = [layer.name for layer in layers_with_weights(model)]
    rows = pd.DataFrame(index=names)
    for when, network in (("start", initial_model), ("end", model)):
        # the kernels that training uses: Keras's own batch normalization is not deterministic
        accelerated = acceleration.accelerate(network, "float32")
        layer_norms = pd.DataFrame(norms(accelerated, images, labels, loss), index=names)
        rows[[f"{column}_{when}" for column in layer_norms]] = layer_norms.astype(float)
    order = [layer.name for layer in flat_model.layers if layer.name in {*names, *inactive.index}]
    return rows.join(inactive, how="outer").join(moving).loc[order].rename_axis("layer")
