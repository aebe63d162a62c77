"""Transfer: a model trained before, without its last layers, with a new head.

Reference: Yosinski et al., "How transferable are features in deep neural networks?" (2014),
    https://arxiv.org/abs/1411.1792
"""

from difflib import get_close_matches
from typing import Annotated

import keras
from annotated_types import Interval
from keras import layers


def build(
    image_shape: tuple[int, int, int],
    num_classes: int,
    *,
    from_model: str,
    drop_layers: Annotated[int, Interval(ge=1)] = 1,
    freeze: str = "all",
    dropout: Annotated[float, Interval(ge=0, lt=1)] = 0.0,
) -> keras.Model:
    """Build the network.

    Args:
        image_shape: `(h, w, c)`, that of the saved model.
        num_classes: Number of outputs.
        from_model: A saved model, as models/NAME.keras.
        drop_layers: How many of its last layers the new head replaces; 1: only the logits.
        freeze: `all`, `none`, or the last of its layers that is not trained. Batch
            normalization in the frozen part keeps its statistics; dropout stays on.
        dropout: Share of the kept features dropped before the new head.

    Returns:
        Uncompiled model from images `(n, h, w, c)` to logits `(n, num_classes)`.

    Raises:
        LookupError: The model takes other images, or has no such layers.
        OSError: It cannot be loaded.
    """
    try:
        source = keras.saving.load_model(from_model, compile=False, safe_mode=True)
    except (ValueError, TypeError, KeyError) as error:
        # Keras puts its reason last, behind the whole of the model's description
        reason = str(error).split("Exception encountered: ")[-1].strip().split("\n")[0]
        raise OSError(f"{from_model} must be a saved model. {reason}") from None
    if not isinstance(source.input_shape, tuple) or len(source.input_shape) != 4:
        raise LookupError(
            f"{from_model} must take images (n, height, width, channels). Got {source.input_shape}"
        )
    height, width, channels = source.input_shape[1:]
    if channels != image_shape[2]:
        raise LookupError(
            f"{from_model} takes {channels} channels. The images have {image_shape[2]}"
        )
    if (height, width) != tuple(image_shape[:2]):
        raise LookupError(
            f"{from_model} takes {height} × {width} pixels. "
            f"Set preprocess.image_size: [{height}, {width}]"
        )
    kept, dropped = source.layers[:-drop_layers], source.layers[-drop_layers:]
    if len(kept) < 2:
        raise LookupError(
            f"build.drop_layers must leave a layer after the input of {len(source.layers)}. "
            f"Got {drop_layers}"
        )
    names = [layer.name for layer in kept]
    if freeze not in ("all", "none", *names):
        near = ", ".join(get_close_matches(str(freeze), names)) or "none"
        raise LookupError(
            f"build.freeze must be all, none or one of the {len(names)} kept layers, {names[0]} to "
            f"{names[-1]}. Got {freeze}. Names like it: {near}"
        )
    last = {"all": len(names), "none": 0}.get(freeze)
    last = names.index(freeze) + 1 if last is None else last
    for number, layer in enumerate(kept):
        # a model among the layers does not hand it on, and may have been saved frozen
        for inner in layer._flatten_layers():
            inner.trainable = number >= last

    # a model inside the model: what is set for new layers leaves it as it was trained
    nested = isinstance(kept[-1], keras.Model)  # whose output is a tensor of its own graph
    body = keras.Model(source.input, dropped[0].input if nested else kept[-1].output, name="body")
    images = keras.Input(image_shape)
    x = body(images)
    if len(x.shape) > 2:
        x = layers.Flatten()(x)
    if dropout:
        x = layers.Dropout(dropout)(x)
    return keras.Model(images, layers.Dense(num_classes)(x), name="transfer")
