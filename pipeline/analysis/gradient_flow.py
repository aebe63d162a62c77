"""Gradient flow: how large gradients and weights are in each layer, and what no longer takes part.

Vanishing gradients shrink towards the input, exploding ones grow (Glorot & Bengio, "Understanding
the difficulty of training deep feedforward neural networks", 2010,
https://proceedings.mlr.press/v9/glorot10a.html).
"""

import keras
import numpy as np
import pandas as pd

from pipeline.analysis.network import nodes, unnested, values_of
from pipeline.runtime import acceleration
from pipeline.training.gradients import gradients


def weighted(model: keras.Model) -> list[keras.Layer]:
    """Return the layers that hold weights of their own, from input to output, each once."""
    return [layer for layer in model._flatten_layers(include_self=False) if _own(layer)]


def _own(layer: keras.Layer) -> list[keras.Variable]:
    inner = {id(weight) for part in layer._layers for weight in part.weights}
    return [weight for weight in layer.weights if id(weight) not in inner]


def norms(
    model: keras.Model, images: np.ndarray, labels: np.ndarray, loss: keras.Loss
) -> list[dict[str, float | None]]:
    """Return the L2 norms of each layer's gradient and weights, from one step that changes none.

    Args:
        model: Uncompiled; compiled here, and moving averages take a step.
        images: `(b, h, w, c)`, one batch, as training sees it: with dropout, and batch
            normalization by the batch itself.
        labels: `(b, k)` one-hot.
        loss: Between labels and logits.

    Returns:
        For each of `weighted`: gradient, None where nothing is trained; weights, of all that
        training may change, of frozen layers of all.
    """
    variables = list(model.trainable_variables)
    values = gradients(model, images, labels, loss)
    trained = {id(weight): value for weight, value in zip(variables, values, strict=True)}
    rows = []
    for layer in weighted(model):
        own = _own(layer)
        moved = [weight for weight in own if id(weight) in trained]
        gradient = _norm([trained[id(weight)] for weight in moved]) if moved else None
        rows.append({"gradient": gradient, "weights": _norm(moved or own)})
    return rows


def _norm(arrays: list) -> float | None:
    # in float64: the square of 1e-25 is none in float32
    values = [keras.ops.convert_to_numpy(array).astype(np.float64).ravel() for array in arrays]
    norm = float(np.linalg.norm(np.concatenate(values)))
    return norm if np.isfinite(norm) else None


def _is_relu(layer: keras.Layer) -> bool:
    named = getattr(layer, "activation", None)
    # a ReLU that leaks, or rises above 0 elsewhere, does not die
    leaks = isinstance(layer, keras.layers.ReLU) and float(layer.negative_slope) != 0
    return (isinstance(layer, keras.layers.ReLU) or named is keras.activations.relu) and not leaks


def silent(model: keras.Model, images: np.ndarray) -> dict[str, float]:
    """Return for each layer with ReLUs the share of them that no image makes positive.

    Args:
        model: Of one level.
        images: `(n, h, w, c)` as the model takes them.

    Returns:
        From a layer's name to a share in [0, 1]: of its channels, at no place positive, or of its
        units.
    """
    found = [node for node in nodes(model) if _is_relu(node.operation)]
    shares = {}
    given = values_of(model, [node.output_tensors[0] for node in found], images)
    for node, values in zip(found, given, strict=True):
        alive = (values > 0).reshape(-1, values.shape[-1]).any(axis=0)  # (channels,)
        shares[node.operation.name] = float(1 - alive.mean())
    return shares


def moving_against_batch(model: keras.Model, images: np.ndarray) -> dict[str, dict[str, float]]:
    """Compare what batch normalization has kept with what these images give.

    In training it normalizes by the batch, in use by moving averages: where the two differ, the
    network in use is not the one that was trained.

    Args:
        model: Of one level.
        images: `(n, h, w, c)` as the model takes them.

    Returns:
        From a layer's name to means over its channels: mean, the distance of the moving mean in
        standard deviations of the images; variance, the moving variance as a multiple of the
        images' (geometric mean).
    """
    stock = keras.layers.BatchNormalization
    found = [node for node in nodes(model) if isinstance(node.operation, stock)]
    rows = {}
    given = values_of(model, [node.input_tensors[0] for node in found], images)
    for node, values in zip(found, given, strict=True):
        layer = node.operation
        flat = values.reshape(-1, values.shape[-1]).astype(np.float64)
        variance = flat.var(axis=0) + layer.epsilon
        moving_mean, moving_variance = (
            keras.ops.convert_to_numpy(x) for x in (layer.moving_mean, layer.moving_variance)
        )
        distance = np.abs(moving_mean - flat.mean(axis=0)) / np.sqrt(variance)
        ratio = np.log((moving_variance + layer.epsilon) / variance)
        rows[layer.name] = {
            "mean": float(distance.mean()),
            "variance": float(np.exp(ratio.mean())),
        }
    return rows


def table(
    model: keras.Model,
    start: keras.Model,
    images: np.ndarray,
    labels: np.ndarray,
    loss: keras.Loss,
) -> pd.DataFrame:
    """Return a row a layer: norms at the start and at the end, silent ReLUs, moving averages.

    Args:
        model: Trained.
        start: The same network before its training.
        images: `(b, h, w, c)`, one batch.
        labels: `(b, k)` one-hot.
        loss: As trained with.
    """
    flat = unnested(model)
    others = pd.DataFrame({"silent": pd.Series(silent(flat, images), dtype=float)})
    moving = pd.DataFrame.from_dict(moving_against_batch(flat, images), orient="index")
    moving = moving.reindex(columns=["mean", "variance"])
    names = [layer.name for layer in weighted(model)]
    rows = pd.DataFrame(index=names)
    for when, network in (("start", start), ("end", model)):
        # the kernels of training, since Keras's own batch normalization does not repeat to the bit
        twin = acceleration.accelerate(network, "float32")
        found = pd.DataFrame(norms(twin, images, labels, loss), index=names)
        rows[[f"{kind}_{when}" for kind in found]] = found.astype(float)
    order = [layer.name for layer in flat.layers if layer.name in {*names, *others.index}]
    return rows.join(others, how="outer").join(moving).loc[order].rename_axis("layer")
