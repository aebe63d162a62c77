"""Layer overrides: settings that every architecture takes, applied to the network that it builds.

So an architecture's file contains only the network of its paper. What can vary in any network
(padding, activation, initializers, regularizers, batch normalization, …) is changed here, in the
finished graph, with stock Keras objects.
"""

from collections.abc import Iterator
from typing import Any

import keras
from keras import layers

from pipeline.config.schema import LayerOverrides

POOLINGS = {"max": layers.MaxPooling2D, "average": layers.AveragePooling2D}
REGULARIZERS = {
    "l1": keras.regularizers.L1,
    "l2": keras.regularizers.L2,
    "l1_l2": keras.regularizers.L1L2,
}
# Keras's names of a layer's weights, and the axes that belong to one filter or unit
WEIGHTS = {"kernel": (0, 1, 2), "pointwise": (0, 1, 2), "depthwise": (0, 1)}
BATCH_NORM = ("momentum", "epsilon", "beta_initializer", "gamma_initializer")


def apply_overrides(model: keras.Model, overrides: LayerOverrides) -> keras.Model:
    """Return a copy of a network with layer overrides applied and new initial weights.

    A nested model, such as the base of `pretrained`, is kept unchanged, including its weights.

    Args:
        model: Functional or Sequential, uncompiled, ending in the layer of the logits.
        overrides: Settings to apply; None leaves the network as it is.

    Raises:
        LookupError: An override matches nothing, such as padding without a convolution.
    """
    requested = overrides.model_dump(exclude_none=True, exclude={"downscale"})
    applied: set[str] = set()

    def clone(layer: keras.Layer) -> keras.Layer:
        if isinstance(layer, keras.Model):
            return layer
        kind, config = type(layer), layer.get_config()
        for setting, key, value in _config_changes(layer, overrides):
            if value is not None:
                config[key] = value
                applied.add(setting)
        if overrides.pooling and kind in POOLINGS.values():
            kind = POOLINGS[overrides.pooling]
            del config["name"]  # such as max_pooling2d, which would now be wrong
            applied.add("pooling")
        return kind.from_config(config)

    def call(layer: keras.Layer, *args: Any, **kwargs: Any) -> Any:
        if overrides.batch_norm is None:
            return layer(*args, **kwargs)
        if isinstance(layer, layers.BatchNormalization):
            return args[0]
        if not (overrides.batch_norm and _is_activated(layer)):
            return layer(*args, **kwargs)
        config = {name: requested.get(f"batch_norm_{name}") for name in BATCH_NORM}
        normalize = layers.BatchNormalization(**{k: v for k, v in config.items() if v is not None})
        applied.update(name for name in requested if name.startswith("batch_norm"))
        if overrides.batch_norm_position == "after":
            return normalize(layer(*args, **kwargs))
        activation, layer.activation = layer.activation, keras.activations.linear
        return layers.Activation(activation)(normalize(layer(*args, **kwargs)))

    if isinstance(model, keras.Sequential):
        model = keras.Model(model.inputs[0], model.outputs[0], name=model.name)
    rebuilt = keras.models.clone_model(model, clone_function=clone, call_function=call)
    if overrides.kernel_initializer == "dirac" and _set_dirac(rebuilt):
        applied.add("kernel_initializer")
    for setting in requested:
        applied_with = {"kernel_stddev": "kernel_initializer"}.get(
            setting, setting.removesuffix("_factor")
        )
        # batch_norm: false is satisfied if there is none
        if applied_with not in applied and not (
            setting == "batch_norm" and not overrides.batch_norm
        ):
            raise LookupError(f"{setting} matches nothing in this network. Remove it")
    return rebuilt


def downscaled(model: keras.Model, image_shape: tuple[int, int, int], factor: int) -> keras.Model:
    """Return a network for larger images, which it averages over squares of pixels first.

    A small network then works on large images that another network needs. A mean over whole
    squares has no aliasing, and every export format has it.

    Args:
        model: From images `(n, h // factor, w // factor, c)` to logits.
        image_shape: `(h, w, c)` of the larger images. At most factor - 1 rows at the bottom and
            columns on the right are left out.
        factor: Side of the squares in pixels.
    """
    if isinstance(model, keras.Sequential):
        model = keras.Model(model.inputs[0], model.outputs[0], name=model.name)
    images = keras.Input(image_shape)
    x = layers.AveragePooling2D(factor, name="downscale")(images)
    logits = model._run_through_graph(x, operation_fn=lambda layer: layer)
    return keras.Model(images, logits, name=model.name)


def _config_changes(
    layer: keras.Layer, overrides: LayerOverrides
) -> Iterator[tuple[str, str, Any]]:
    """Yield setting, key of the layer's configuration and new value for each possible change."""
    if isinstance(layer, layers.BatchNormalization):
        if overrides.batch_norm is None:  # otherwise the layer is removed
            for name in BATCH_NORM:
                yield f"batch_norm_{name}", name, getattr(overrides, f"batch_norm_{name}")
        return
    if _is_activated(layer):
        yield "activation", "activation", overrides.activation
    if hasattr(layer, "kernel_size"):
        yield "padding", "padding", overrides.padding
    if hasattr(layer, "bias_initializer"):
        yield "bias_initializer", "bias_initializer", overrides.bias_initializer
    for weights, axes in WEIGHTS.items():
        if hasattr(layer, f"{weights}_initializer"):
            yield "kernel_initializer", f"{weights}_initializer", _initializer(overrides)
            yield "kernel_regularizer", f"{weights}_regularizer", _regularizer(overrides)
            axis = (0,) if isinstance(layer, layers.Dense) else axes
            limit = overrides.max_norm and keras.constraints.MaxNorm(overrides.max_norm, axis=axis)
            yield "max_norm", f"{weights}_constraint", limit


def _is_activated(layer: keras.Layer) -> bool:
    """Return whether a layer has a nonlinear activation; the layer of the logits has none."""
    linear = keras.activations.linear
    return getattr(layer, "activation", linear) is not linear


def _initializer(overrides: LayerOverrides) -> keras.Initializer | None:
    config = {"stddev": overrides.kernel_stddev} if overrides.kernel_stddev else {}
    name = overrides.kernel_initializer
    if name == "dirac":  # not an initializer of Keras, so _set_dirac sets the weights
        return None
    return keras.initializers.get(name and {"class_name": name, "config": config})


def _set_dirac(model: keras.Model) -> int:
    """Set the first filters of each convolution to the identity: each copies one channel.

    Any further filters keep their initial values.

    Returns:
        The number of convolutions changed.

    Reference: Zagoruyko & Komodakis, "DiracNets" (2017), https://arxiv.org/abs/1706.00388;
        as initial weights: Jordan (2024), https://arxiv.org/abs/2404.00498
    """
    convolutions = [
        layer for layer in model.layers if type(layer) is layers.Conv2D and layer.groups == 1
    ]
    for layer in convolutions:
        kernel = keras.ops.convert_to_numpy(layer.kernel).copy()  # (kh, kw, channels, filters)
        height, width, channels, filters = kernel.shape
        copied = min(channels, filters)
        kernel[..., :copied] = 0
        # the center; for even sizes `same` pads one row or column less before than after
        kernel[(height - 1) // 2, (width - 1) // 2, range(copied), range(copied)] = 1
        layer.kernel.assign(kernel)
    return len(convolutions)


def _regularizer(overrides: LayerOverrides) -> keras.Regularizer | None:
    if not overrides.kernel_regularizer:
        return None
    factor = overrides.kernel_regularizer_factor
    # Keras's default is 0.01 for L1 and L2, but 0 for L1L2
    factors = dict.fromkeys(
        overrides.kernel_regularizer.split("_"), 0.01 if factor is None else factor
    )
    return REGULARIZERS[overrides.kernel_regularizer](**factors)
