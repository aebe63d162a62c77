"""Layer overrides: settings that every architecture takes, turned on the network that it built.

An architecture's file stays the plain network of its paper. What the field varies in any
network (padding, activation, initializers, regularizers, batch normalization, …) is
changed here, on the finished graph, with Keras's own objects.
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
# what Keras calls the weights of a layer, and the axes that lead into one filter or unit
WEIGHTS = {"kernel": (0, 1, 2), "pointwise": (0, 1, 2), "depthwise": (0, 1)}
BATCH_NORM = ("momentum", "epsilon", "beta_initializer", "gamma_initializer")


def apply_overrides(model: keras.Model, knobs: LayerOverrides) -> keras.Model:
    """Return a network rebuilt as the knobs say, with initial weights of its own.

    A model inside the model, as the base of `pretrained`, is kept as it is, weights and all.

    Args:
        model: Functional or Sequential, uncompiled, ending in the layer of the logits.
        knobs: Those that are None leave the network as it is.

    Raises:
        LookupError: A knob finds nothing to turn, as padding without a convolution.
    """
    wanted = knobs.model_dump(exclude_none=True)
    turned: set[str] = set()

    def clone(layer: keras.Layer) -> keras.Layer:
        if isinstance(layer, keras.Model):
            return layer
        kind, config = type(layer), layer.get_config()
        for knob, key, value in _edits(layer, knobs):
            if value is not None:
                config[key] = value
                turned.add(knob)
        if knobs.pooling and kind in POOLINGS.values():
            kind = POOLINGS[knobs.pooling]
            del config["name"]  # max_pooling2d would be a lie
            turned.add("pooling")
        return kind.from_config(config)

    def call(layer: keras.Layer, *args: Any, **kwargs: Any) -> Any:
        if knobs.batch_norm is None:
            return layer(*args, **kwargs)
        if isinstance(layer, layers.BatchNormalization):
            return args[0]
        if not (knobs.batch_norm and _is_activated(layer)):
            return layer(*args, **kwargs)
        own = {name: wanted.get(f"batch_norm_{name}") for name in BATCH_NORM}
        normalize = layers.BatchNormalization(**{k: v for k, v in own.items() if v is not None})
        turned.update(name for name in wanted if name.startswith("batch_norm"))
        if knobs.batch_norm_position == "after":
            return normalize(layer(*args, **kwargs))
        activation, layer.activation = layer.activation, keras.activations.linear
        return layers.Activation(activation)(normalize(layer(*args, **kwargs)))

    if isinstance(model, keras.Sequential):
        model = keras.Model(model.inputs[0], model.outputs[0], name=model.name)
    rebuilt = keras.models.clone_model(model, clone_function=clone, call_function=call)
    if knobs.kernel_initializer == "dirac" and _pass_on(rebuilt):
        turned.add("kernel_initializer")
    for knob in wanted:
        part_of = {"kernel_stddev": "kernel_initializer"}.get(knob, knob.removesuffix("_factor"))
        # none where there was none is as wished
        if part_of not in turned and not (knob == "batch_norm" and not knobs.batch_norm):
            raise LookupError(f"{knob} finds nothing to change in this network. Remove it")
    return rebuilt


def _edits(layer: keras.Layer, knobs: LayerOverrides) -> Iterator[tuple[str, str, Any]]:
    """Yield each knob with the key of the layer's configuration that it sets, and the value."""
    if isinstance(layer, layers.BatchNormalization):
        if knobs.batch_norm is None:  # else it makes way
            for name in BATCH_NORM:
                yield f"batch_norm_{name}", name, getattr(knobs, f"batch_norm_{name}")
        return
    if _is_activated(layer):
        yield "activation", "activation", knobs.activation
    if hasattr(layer, "kernel_size"):
        yield "padding", "padding", knobs.padding
    if hasattr(layer, "bias_initializer"):
        yield "bias_initializer", "bias_initializer", knobs.bias_initializer
    for weights, axes in WEIGHTS.items():
        if hasattr(layer, f"{weights}_initializer"):
            yield "kernel_initializer", f"{weights}_initializer", _initializer(knobs)
            yield "kernel_regularizer", f"{weights}_regularizer", _regularizer(knobs)
            axis = (0,) if isinstance(layer, layers.Dense) else axes
            limit = knobs.max_norm and keras.constraints.MaxNorm(knobs.max_norm, axis=axis)
            yield "max_norm", f"{weights}_constraint", limit


def _is_activated(layer: keras.Layer) -> bool:
    """Tell whether a layer is, or ends in, an activation; that of the logits is linear."""
    linear = keras.activations.linear
    return getattr(layer, "activation", linear) is not linear


def _initializer(knobs: LayerOverrides) -> keras.Initializer | None:
    config = {"stddev": knobs.kernel_stddev} if knobs.kernel_stddev else {}
    name = knobs.kernel_initializer
    if name == "dirac":  # no initializer of Keras, and what is saved is stock Keras
        return None
    return keras.initializers.get(name and {"class_name": name, "config": config})


def _pass_on(model: keras.Model) -> int:
    """Let the first filters of each convolution copy one channel each; return how many do.

    Those beyond the number of channels keep their initial values.

    Reference: Zagoruyko & Komodakis, "DiracNets" (2017), https://arxiv.org/abs/1706.00388;
        as initial weights: Jordan (2024), https://arxiv.org/abs/2404.00498
    """
    found = [layer for layer in model.layers if type(layer) is layers.Conv2D and layer.groups == 1]
    for layer in found:
        kernel = keras.ops.convert_to_numpy(layer.kernel).copy()  # (kh, kw, channels, filters)
        height, width, *sides = kernel.shape
        copies = range(min(sides))
        kernel[..., : min(sides)] = 0
        # the middle; of an even side, where `same` pads one less before than after
        kernel[(height - 1) // 2, (width - 1) // 2, copies, copies] = 1
        layer.kernel.assign(kernel)
    return len(found)


def _regularizer(knobs: LayerOverrides) -> keras.Regularizer | None:
    if not knobs.kernel_regularizer:
        return None
    factor = knobs.kernel_regularizer_factor
    # Keras's own default is 0.01 for one of them, and 0 for both together
    factors = dict.fromkeys(knobs.kernel_regularizer.split("_"), 0.01 if factor is None else factor)
    return REGULARIZERS[knobs.kernel_regularizer](**factors)
