"""Pretrained: a network of keras.applications, optionally frozen, with a new head.

Reference: https://keras.io/api/applications; Chollet, "Transfer learning & fine-tuning" (2020),
    https://keras.io/guides/transfer_learning
"""

from collections.abc import Callable
from difflib import get_close_matches
from typing import Annotated, Any

import keras
from annotated_types import Interval
from keras import layers

# Images in [0, 1]: the network's own preprocessing takes pixels in [0, 255], that is times 255.
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
    """Build the network; for VGG16 and 10 classes 14,719,818 parameters, 5,130 in the head.

    Args:
        image_shape: `(h, w, c)`, at least 32×32 for most networks. A single channel is repeated
            three times.
        num_classes: Number of outputs.
        base: A network of keras.applications: vgg16, mobilenet_v2, resnet50, …
        weights: `imagenet`, downloaded once by Keras to ~/.keras; None for random weights.
        from_model: A file with the weights of the base without its head, instead of `weights`.
        freeze: `all`, `none`, or the last layer of the base to freeze. Frozen batch normalization
            keeps its moving averages; dropout stays active.
        dropout: Dropout rate of the pooled features.

    Returns:
        Uncompiled model from images `(n, h, w, c)` in [0, 1] to logits `(n, num_classes)`.

    Raises:
        LookupError: The network, layer or kind of weights is unknown.
        OSError: The weights cannot be downloaded or read.
    """
    if weights not in ("imagenet", None):
        # DVC would not notice changes of the file
        raise LookupError(
            "build.weights must be imagenet or null. For a file, set from_model next to build, "
            "as in from_model: pretrained/FILE"
        )
    application = _find(base)
    height, width, channels = image_shape
    if weights and not from_model:
        body = _download(application, (height, width, 3))
    else:
        body = application(include_top=False, weights=None, input_shape=(height, width, 3))
    if from_model:
        _load(body, from_model)
    names = [layer.name for layer in body.layers]
    if freeze not in ("all", "none", *names):
        similar = ", ".join(get_close_matches(str(freeze), names)) or "none"
        raise LookupError(
            f"build.freeze must be all, none or one of the {len(names)} layers of {base}, "
            f"{names[0]} to {names[-1]}. Got {freeze}. Similar names: {similar}"
        )
    frozen = {"all": len(names), "none": 0}.get(freeze)
    if frozen is None:
        frozen = names.index(freeze) + 1
    for layer in body.layers[:frozen]:
        layer.trainable = False

    images = keras.Input(image_shape)
    x = layers.Concatenate()([images] * 3) if channels == 1 else images
    x = layers.Rescaling(255.0)(x)
    x = _module(application).preprocess_input(x)
    x = body(x)  # (n, h/32, w/32, features)
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dropout(dropout)(x)
    return keras.Model(images, layers.Dense(num_classes)(x), name="pretrained")


def _find(base: str) -> Callable[..., keras.Model]:
    """Return the function of keras.applications with this name, in any case, with or without _."""
    known = {name: f for name, f in vars(keras.applications).items() if name[0].isupper()}
    for name, function in known.items():
        if name.lower() == base.lower().replace("_", ""):
            return function
    raise LookupError(
        f"build.base must be a network of keras.applications ({', '.join(known)}). Got {base}"
    )


def _module(application: Callable[..., keras.Model]) -> Any:
    """Return the module of keras.applications that defines a network."""
    return getattr(keras.applications, application.__module__.rsplit(".", 1)[1])


def _load(body: keras.Model, path: str) -> None:
    try:
        body.load_weights(path)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).split("\n")[0]
        raise OSError(
            f"{path}: must hold the weights of {body.name} without its head "
            f"(include_top=False). {reason}"
        ) from None


def _download(application: Callable[..., keras.Model], shape: tuple[int, int, int]) -> keras.Model:
    """Return a network with its ImageNet weights."""
    try:
        return application(include_top=False, weights="imagenet", input_shape=shape)
    except ValueError:  # the shape is invalid
        raise
    except Exception as error:  # Keras raises no narrower class if a download fails
        raise OSError(
            f"the ImageNet weights cannot be downloaded: {error}. Download the file elsewhere, and "
            "set from_model: pretrained/FILE; delete damaged files in ~/.keras/models; or train "
            "from scratch with build: {weights: null, freeze: none}"
        ) from None
