"""Building: a network as params.yaml says, with the same initial weights every time."""

import importlib
import re
import socket
import zipfile
from pathlib import Path

import keras

from pipeline.config.schema import Finetuned, Model
from pipeline.config.signature import split_build
from pipeline.core.errors import PipelineError
from pipeline.runtime import backend
from pipeline.training.layer_overrides import apply_overrides

SECONDS_TO_ANSWER = 10
LARGEST_SIDE = 512  # pixels; where the search for an image size that fits ends


def build(model: Model, image_shape: tuple[int, ...], num_classes: int, seed: int) -> keras.Model:
    """Build a model of params.yaml, uncompiled, with the same initial weights every time.

    Raises:
        PipelineError: It cannot be built; for images too small, names the smallest that fit.
    """
    try:
        return _build(model, image_shape, num_classes, seed)
    except (KeyError, IndexError):  # LookupErrors too, but bugs
        raise
    except (LookupError, OSError, zipfile.BadZipFile) as error:
        raise PipelineError(f"{model.architecture}: {error}") from error
    except ValueError as error:
        # Keras sets its reason in bold, between the layer and a dump of the layer's arguments
        bold = re.search(r"\x1b\[1m(.*?)\x1b\[0m", str(error), re.DOTALL)
        message = f"{model.architecture}: cannot be built for {' × '.join(map(str, image_shape))} "
        message += f"images and {num_classes} classes: {bold[1] if bold else error}"
        if side := _smallest_side(model, image_shape, num_classes):
            message += f" The smallest that fits is preprocess.image_size: [{side}, {side}]"
        raise PipelineError(message) from error


def _build(model: Model, image_shape: tuple[int, ...], num_classes: int, seed: int) -> keras.Model:
    if isinstance(model, Finetuned) and not Path(model.from_model).is_file():
        raise FileNotFoundError(f"{model.from_model}: no such file. Mend from_model")
    module = importlib.import_module(f"pipeline.architectures.{model.architecture}")
    own, knobs = split_build(model)
    backend.make_deterministic(seed)
    # Keras may fetch weights, and a server that never answers must not hold up a run
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SECONDS_TO_ANSWER)
    try:
        network = module.build(tuple(image_shape), num_classes, **own)
    finally:
        socket.setdefaulttimeout(before)
    if knobs.model_dump(exclude_none=True):
        # from the seed again: a knob must not also change the initial weights it leaves alone
        backend.make_deterministic(seed)
        network = apply_overrides(network, knobs)
    return network


def _smallest_side(model: Model, image_shape: tuple[int, ...], num_classes: int) -> int | None:
    """Return the side of the smallest square that the model can be built for, if any can."""

    def fits(side: int) -> bool:
        try:
            _build(model, (side, side, image_shape[2]), num_classes, seed=0)
        except ValueError:
            return False
        except OSError:  # of weights, which are loaded into what fits
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
