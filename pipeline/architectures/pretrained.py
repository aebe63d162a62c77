"""Pretrained: any network of keras.applications with a new head, frozen as configured.

Reference: keras.io/api/applications; K. Chollet, "Transfer learning & fine-tuning",
https://keras.io/guides/transfer_learning
"""

from collections.abc import Callable
from difflib import get_close_matches
from typing import Annotated, Any

import keras
from annotated_types import Interval
from keras import layers

# The networks' own preprocessing starts from pixels in [0, 255], which are [0, 1] times 255.
NORMALIZE = "unit"


def build(
    image_shape: tuple[int, int, int],
    num_classes: int,
    *,
    base: str = "mobilenet_v2",
    weights: str | None = "imagenet",
    from_model: str | None = None,
    freeze: str = "all",
    dropout: Annotated[float, Interval(ge=0, lt=1)] = 0.2,
) -> keras.Model:
    """Build the network; with VGG16 and 10 classes 14,719,818 parameters, 5,130 trained.

    Args:
        image_shape: `(h, w, c)`, at least 32×32 for most; one channel is shown three times.
        num_classes: Number of outputs.
        base: A network of keras.applications: vgg16, mobilenet_v2, resnet50, …
        weights: `imagenet`, fetched once by Keras into ~/.keras; None: random.
        from_model: A file with the weights of the base, without its head, in place of `weights`.
        freeze: `all`, `none`, or the last layer of the base that is not trained. Batch
            normalization in the frozen part keeps its statistics; dropout stays on.
        dropout: Share of the pooled features dropped.

    Returns:
        Uncompiled model from images `(n, h, w, c)` in [0, 1] to logits `(n, num_classes)`.

    Raises:
        LookupError: There is no such network, layer or kind of weights.
        OSError: The weights cannot be downloaded or read.
    """
    if weights not in ("imagenet", None):
        # DVC would not see the file change
        raise LookupError(
            "build.weights must be imagenet or null; a file of weights stands under `finetune:`, "
            f"as from_model: {weights}"
        )
    network = _find(base)
    height, width, channels = image_shape
    if weights and not from_model:
        body = _fetch(network, (height, width, 3))
    else:
        body = network(include_top=False, weights=None, input_shape=(height, width, 3))
    if from_model:
        _load(body, from_model)
    names = [layer.name for layer in body.layers]
    if freeze not in ("all", "none", *names):
        near = ", ".join(get_close_matches(str(freeze), names)) or "none"
        raise LookupError(
            f"build.freeze must be all, none or one of the {len(names)} layers of {base}, "
            f"{names[0]} to {names[-1]}. Got {freeze}. Names like it: {near}"
        )
    last = {"all": len(names), "none": 0}.get(freeze)
    for layer in body.layers[: names.index(freeze) + 1 if last is None else last]:
        layer.trainable = False

    images = keras.Input(image_shape)
    x = layers.Concatenate()([images] * 3) if channels == 1 else images
    x = layers.Rescaling(255.0)(x)
    x = _module(network).preprocess_input(x)
    x = body(x)  # (n, h/32, w/32, features)
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dropout(dropout)(x)
    return keras.Model(images, layers.Dense(num_classes)(x), name="pretrained")


def _find(base: str) -> Callable[..., keras.Model]:
    """Return the function of keras.applications with this name, however it is spelled."""
    known = {name: f for name, f in vars(keras.applications).items() if name[0].isupper()}
    for name, function in known.items():
        if name.lower() == base.lower().replace("_", ""):
            return function
    raise LookupError(
        f"build.base must be a network of keras.applications ({', '.join(known)}). Got {base}"
    )


def _module(network: Callable[..., keras.Model]) -> Any:
    return getattr(keras.applications, network.__module__.rsplit(".", 1)[1])


def _load(body: keras.Model, path: str) -> None:
    try:
        body.load_weights(path)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).split("\n")[0]
        raise OSError(
            f"{path}: must hold the weights of {body.name} without its head "
            f"(include_top=False). {reason}"
        ) from None


def _fetch(network: Callable[..., keras.Model], shape: tuple[int, int, int]) -> keras.Model:
    try:
        return network(include_top=False, weights="imagenet", input_shape=shape)
    except ValueError:  # of the shape
        raise
    except Exception as error:  # Keras raises nothing narrower for a download that fails
        raise OSError(
            f"the ImageNet weights cannot be downloaded: {error}. Fetch the file elsewhere, and "
            "put the model under `finetune:` with from_model: FILE; delete what is damaged in "
            "~/.keras/models; or train from scratch with build: {weights: null, freeze: none}"
        ) from None
