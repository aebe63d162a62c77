"""Transfer: a trained model whose last layers are replaced by a new head.

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
        image_shape: `(h, w, c)`, equal to that of the saved model.
        num_classes: Number of outputs.
        from_model: A saved model, such as pretrained/mine.keras.
        drop_layers: Number of its last layers to replace by the new head; 1 replaces only the
            logits.
        freeze: `all`, `none`, or the last of its layers to freeze. Frozen batch normalization
            keeps its moving averages; dropout stays active.
        dropout: Dropout rate before the new head.

    Returns:
        Uncompiled model from images `(n, h, w, c)` to logits `(n, num_classes)`.

    Raises:
        LookupError: The model expects images of another shape, or lacks the named layers.
        OSError: The model cannot be loaded.
    """
    try:
        source = keras.saving.load_model(from_model, compile=False, safe_mode=True)
    except (ValueError, TypeError, KeyError) as error:
        # Keras puts the reason at the end, after the whole configuration of the model
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
    body_layers, dropped = source.layers[:-drop_layers], source.layers[-drop_layers:]
    if len(body_layers) < 2:
        raise LookupError(
            f"build.drop_layers must leave a layer after the input; {from_model} has "
            f"{len(source.layers)} layers. Got {drop_layers}"
        )
    names = [layer.name for layer in body_layers]
    if freeze not in ("all", "none", *names):
        similar = ", ".join(get_close_matches(str(freeze), names)) or "none"
        raise LookupError(
            f"build.freeze must be all, none or one of the {len(names)} remaining layers, "
            f"{names[0]} to {names[-1]}. Got {freeze}. Similar names: {similar}"
        )
    frozen = {"all": len(names), "none": 0}.get(freeze)
    if frozen is None:
        frozen = names.index(freeze) + 1
    for number, layer in enumerate(body_layers):
        # a nested model does not pass `trainable` on to its layers, which may be saved frozen
        for inner in layer._flatten_layers():
            inner.trainable = number >= frozen

    # The output of a nested model is a tensor of its own graph, not of the source's graph.
    is_nested = isinstance(body_layers[-1], keras.Model)
    output = dropped[0].input if is_nested else body_layers[-1].output
    # A nested model, so that overrides for new layers do not change the trained layers.
    body = keras.Model(source.input, output, name="body")
    images = keras.Input(image_shape)
    x = body(images)
    if len(x.shape) > 2:
        x = layers.Flatten()(x)
    if dropout:
        x = layers.Dropout(dropout)(x)
    return keras.Model(images, layers.Dense(num_classes)(x), name="transfer")
