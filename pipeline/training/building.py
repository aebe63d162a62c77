"""Build the networks of params.yaml with reproducible initial weights."""

import importlib
import re
import socket
import zipfile

import keras

from pipeline.config.schema import Model
from pipeline.config.signature import split_build
from pipeline.core.errors import PipelineError
from pipeline.runtime import backend
from pipeline.training.layer_overrides import apply_overrides, downscaled

DOWNLOAD_TIMEOUT = 10  # seconds
LARGEST_SIDE = 512  # pixels; limit of the search for an image size that fits


def build(model: Model, image_shape: tuple[int, ...], num_classes: int, seed: int) -> keras.Model:
    """Build a model of params.yaml, uncompiled, with reproducible initial weights.

    Raises:
        PipelineError: The model cannot be built. If the images are too small, the message names
            the smallest size that fits.
    """
    try:
        return _build(model, image_shape, num_classes, seed)
    except (KeyError, IndexError):  # subclasses of LookupError that are bugs here
        raise
    except (LookupError, OSError, zipfile.BadZipFile) as error:
        raise PipelineError(f"{model.architecture}: {error}") from error
    except ValueError as error:
        # Keras prints its reason in bold, before a dump of the layer's arguments.
        bold = re.search(r"\x1b\[1m(.*?)\x1b\[0m", str(error), re.DOTALL)
        message = f"{model.architecture}: cannot be built for {' × '.join(map(str, image_shape))} "
        message += f"images and {num_classes} classes: {bold[1] if bold else error}"
        if side := _smallest_side(model, image_shape, num_classes):
            message += f" The smallest that fits is preprocess.image_size: [{side}, {side}]"
        raise PipelineError(message) from error


def _build(model: Model, image_shape: tuple[int, ...], num_classes: int, seed: int) -> keras.Model:
    module = importlib.import_module(f"pipeline.architectures.{model.architecture}")
    arguments, overrides = split_build(model)
    height, width, channels = image_shape
    factor = overrides.downscale or 1
    backend.make_deterministic(seed)
    # Keras may download weights, and an unresponsive server must not block the run.
    previous_timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)
    try:
        network = module.build(
            (height // factor, width // factor, channels), num_classes, **arguments
        )
    finally:
        socket.setdefaulttimeout(previous_timeout)
    if overrides.model_dump(exclude_none=True, exclude={"downscale"}):
        # Seed again, so an override does not change the initial weights of other layers.
        backend.make_deterministic(seed)
        network = apply_overrides(network, overrides)
    return downscaled(network, (height, width, channels), factor) if factor > 1 else network


def _smallest_side(model: Model, image_shape: tuple[int, ...], num_classes: int) -> int | None:
    """Return the smallest side of a square image that the model can be built for, if any."""

    def fits(side: int) -> bool:
        try:
            _build(model, (side, side, image_shape[2]), num_classes, seed=0)
        except ValueError:
            return False
        except OSError:  # raised by loading weights, so the network itself was built
            return True
        return True

    low, high = min(image_shape[:2]), 2 * min(image_shape[:2])
    while not fits(high):
        low, high = high, 2 * high
        if high > LARGEST_SIDE:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high
