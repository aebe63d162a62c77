"""Layer table: what each layer of a network makes, costs and sees.

Reference: Araujo, Norris & Sim, "Computing Receptive Fields of Convolutional Neural Networks"
    (2019), https://distill.pub/2019/computing-receptive-fields
"""

import math
from dataclasses import dataclass

import keras

from pipeline.analysis.network import CONVOLUTIONS, nodes

POOLINGS = (keras.layers.MaxPooling2D, keras.layers.AveragePooling2D)
WHOLE = (keras.layers.GlobalAveragePooling2D, keras.layers.GlobalMaxPooling2D)
BYTES = 4  # of a float32


@dataclass(frozen=True)
class Row:
    """One layer; of one image."""

    name: str
    type: str
    output_shape: tuple[int, ...]
    parameters: int
    trainable: int
    """How many of them are trained"""
    macs: int
    """Multiply-accumulates of convolutions and dense layers; the others cost next to nothing"""
    receptive_field: str
    """h×w pixels of the image that one number of the output depends on, padding included"""
    stride: str
    """Pixels of the image from one number to the next, h×w; none once the map is flat"""
    activation_bytes: int
    """Of the output, as float32"""


@dataclass(frozen=True)
class Sight:
    """What one number of a tensor sees of the image: pixels, and pixels to the next: h and w."""

    field: tuple[int, int] = (1, 1)
    step: tuple[int, int] = (1, 1)
    flat: bool = False

    def through(self, window: tuple[int, int], stride: tuple[int, int]) -> "Sight":
        field, step = (
            tuple(f + (w - 1) * s for f, w, s in zip(self.field, window, self.step, strict=True)),
            tuple(s * by for s, by in zip(self.step, stride, strict=True)),
        )
        return Sight(field, step, self.flat)  # type: ignore[arg-type]


def table(model: keras.Model) -> list[Row]:
    """Return a row for each layer of a network of one level, from input to output.

    A layer that is called twice is two rows, and its parameters count in the first.
    """
    sights: dict[int, Sight] = {}
    counted: set[int] = set()
    rows = []
    for node in nodes(model):
        layer = node.operation
        output = node.output_tensors[0]
        shape = tuple(side for side in output.shape[1:])
        inputs = node.input_tensors
        sight = _sight(layer, [(sights[id(x)], x.shape) for x in inputs], output.shape)
        sights.update({id(x): sight for x in node.output_tensors})
        again = id(layer) in counted
        counted.add(id(layer))
        weights = [] if again else list(getattr(layer, "weights", []))
        stride = "" if sight.flat else "×".join(map(str, sight.step))
        rows.append(
            Row(
                name=layer.name,
                type=type(layer).__name__,
                output_shape=shape,
                parameters=sum(math.prod(weight.shape) for weight in weights),
                trainable=sum(math.prod(w.shape) for w in weights if w.trainable),
                macs=macs(layer, inputs[0].shape, output.shape) if inputs else 0,
                receptive_field="×".join(map(str, sight.field)),
                stride=stride,
                activation_bytes=BYTES * math.prod(shape),
            )
        )
    return rows


def total(rows: list[Row]) -> dict[str, int]:
    """Return the sums of what can be added up."""
    names = ("parameters", "trainable", "macs", "activation_bytes")
    return {name: sum(getattr(row, name) for row in rows) for name in names}


def macs(layer: keras.Layer, inputs: tuple, outputs: tuple) -> int:
    """Return the multiply-accumulates of one image.

    Args:
        layer: Built.
        inputs: Shape of its input, `(None, …, c)`.
        outputs: Shape of its output.
    """
    match layer:
        case keras.layers.SeparableConv2D():
            deep = inputs[-1] * layer.depth_multiplier
            each = math.prod(layer.kernel_size) * deep + deep * layer.filters
            return math.prod(outputs[1:-1]) * each
        case keras.layers.DepthwiseConv2D():
            return math.prod(outputs[1:]) * math.prod(layer.kernel_size)
        case keras.layers.Conv2D():
            window = math.prod(layer.kernel_size) * inputs[-1] // layer.groups
            return math.prod(outputs[1:]) * window
        case keras.layers.Dense():
            return math.prod(outputs[1:]) * inputs[-1]
    return 0


def _window(layer: keras.Layer) -> tuple[tuple, tuple, tuple] | None:
    """Return window, stride and dilation of a layer that moves a window over a map."""
    if isinstance(layer, CONVOLUTIONS):
        return layer.kernel_size, layer.strides, layer.dilation_rate
    if isinstance(layer, POOLINGS):
        return layer.pool_size, layer.strides, (1, 1)
    return None


def _sight(layer: keras.Layer, inputs: list[tuple[Sight, tuple]], output: tuple) -> Sight:
    if not inputs:
        return Sight()
    widest = max((sight for sight, _ in inputs), key=lambda sight: sight.field)
    shape = inputs[0][1]
    if moved := _window(layer):
        window, stride, dilation = moved
        span = tuple(d * (w - 1) + 1 for w, d in zip(window, dilation, strict=True))
        return widest.through(span, stride)
    if len(shape) == 4 and (len(output) != 4 or isinstance(layer, WHOLE)):  # or flattened
        every = widest.through(shape[1:3], (1, 1))
        return Sight(every.field, every.step, flat=True)
    return widest
