"""Layer table: output shape, parameters, cost and receptive field of each layer.

Reference: Araujo, Norris & Sim, "Computing Receptive Fields of Convolutional Neural Networks"
    (2019), https://distill.pub/2019/computing-receptive-fields
"""

import math
from dataclasses import dataclass, replace

import keras

from pipeline.analysis.network import CONVOLUTIONS, nodes

POOLINGS = (keras.layers.MaxPooling2D, keras.layers.AveragePooling2D)
GLOBAL_POOLINGS = (keras.layers.GlobalAveragePooling2D, keras.layers.GlobalMaxPooling2D)
BYTES = 4  # per float32


@dataclass(frozen=True)
class Row:
    """One layer; all values are per image."""

    name: str
    type: str
    output_shape: tuple[int, ...]
    parameters: int
    trainable: int
    """Parameters that training changes"""
    macs: int
    """Multiply-accumulates of convolutions and dense layers; other layers count as 0"""
    receptive_field: str
    """h×w pixels of the input image that one output value depends on, padding included"""
    stride: str
    """h×w pixels of the input image between neighboring output values; empty after flattening"""
    activation_bytes: int
    """Size of the output in float32"""


@dataclass(frozen=True)
class ReceptiveField:
    """Receptive field of one value of a tensor, in pixels of the input image: height and width."""

    size: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    """Distance between the receptive fields of neighboring values"""
    flat: bool = False
    """Whether the tensor has no spatial axes, so that the stride means nothing"""

    def after(self, window: tuple[int, int], stride: tuple[int, int]) -> "ReceptiveField":
        """Return the receptive field after a layer with this window and stride."""
        (h, w), (down, across) = self.size, self.stride
        return ReceptiveField(
            (h + (window[0] - 1) * down, w + (window[1] - 1) * across),
            (down * stride[0], across * stride[1]),
            self.flat,
        )


def table(model: keras.Model) -> list[Row]:
    """Return a row for each layer call, from input to output.

    A layer that is called twice has two rows; its parameters count in the first one only.

    Args:
        model: Without nested models.
    """
    fields: dict[int, ReceptiveField] = {}
    counted: set[int] = set()
    rows = []
    for node in nodes(model):
        layer = node.operation
        output = node.output_tensors[0]
        shape = tuple(output.shape[1:])
        inputs = node.input_tensors
        field = _receptive_field(layer, [(fields[id(x)], x.shape) for x in inputs], output.shape)
        fields.update({id(x): field for x in node.output_tensors})
        weights = [] if id(layer) in counted else list(getattr(layer, "weights", []))
        counted.add(id(layer))
        rows.append(
            Row(
                name=layer.name,
                type=type(layer).__name__,
                output_shape=shape,
                parameters=sum(math.prod(weight.shape) for weight in weights),
                trainable=sum(math.prod(w.shape) for w in weights if w.trainable),
                macs=macs(layer, inputs[0].shape, output.shape) if inputs else 0,
                receptive_field="×".join(map(str, field.size)),
                stride="" if field.flat else "×".join(map(str, field.stride)),
                activation_bytes=BYTES * math.prod(shape),
            )
        )
    return rows


def total(rows: list[Row]) -> dict[str, int]:
    """Return the sums over all layers of the columns that can be added."""
    names = ("parameters", "trainable", "macs", "activation_bytes")
    return {name: sum(getattr(row, name) for row in rows) for name in names}


def macs(layer: keras.Layer, inputs: tuple, outputs: tuple) -> int:
    """Return the multiply-accumulates of a layer for one image.

    Args:
        layer: Built; 0 for layers other than convolutions and dense layers.
        inputs: Shape of the input, `(None, …, c)`.
        outputs: Shape of the output, `(None, …, filters)`.
    """
    match layer:
        case keras.layers.SeparableConv2D():
            channels = inputs[-1] * layer.depth_multiplier
            per_position = (math.prod(layer.kernel_size) + layer.filters) * channels
            return math.prod(outputs[1:-1]) * per_position
        case keras.layers.DepthwiseConv2D():
            return math.prod(outputs[1:]) * math.prod(layer.kernel_size)
        case keras.layers.Conv2D():
            per_value = math.prod(layer.kernel_size) * inputs[-1] // layer.groups
            return math.prod(outputs[1:]) * per_value
        case keras.layers.Dense():
            return math.prod(outputs[1:]) * inputs[-1]
    return 0


def _window(layer: keras.Layer) -> tuple[tuple, tuple, tuple] | None:
    """Return window, stride and dilation of a convolution or pooling layer, else None."""
    if isinstance(layer, CONVOLUTIONS):
        return layer.kernel_size, layer.strides, layer.dilation_rate
    if isinstance(layer, POOLINGS):
        return layer.pool_size, layer.strides, (1, 1)
    return None


def _receptive_field(
    layer: keras.Layer, inputs: list[tuple[ReceptiveField, tuple]], output: tuple
) -> ReceptiveField:
    """Return the receptive field of a layer's output.

    Args:
        layer: Built.
        inputs: Receptive field and shape of each input.
        output: Shape of the output.
    """
    if not inputs:
        return ReceptiveField()
    widest = max((field for field, _ in inputs), key=lambda field: field.size)
    shape = inputs[0][1]
    if parameters := _window(layer):
        window, stride, dilation = parameters
        height, width = (d * (w - 1) + 1 for w, d in zip(window, dilation, strict=True))
        return widest.after((height, width), stride)
    is_flattened = len(shape) == 4 and len(output) != 4
    if is_flattened or isinstance(layer, GLOBAL_POOLINGS):
        return replace(widest.after(shape[1:3], (1, 1)), flat=True)
    return widest
