"""ONNX: convert a Keras model to an .onnx file with class names, and run it."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import keras


def write(model: "keras.Model", path: Path, metadata: Mapping[str, Any]) -> None:
    """Write a model as ONNX, with weights and nodes in a fixed order.

    Equal models give equal bytes, with exceptions: in separate processes, 8 conversions of a small
    CNN were equal and 7 of MobileNetV3-Small, but only 5 of 7 of EfficientNet-B0.

    Args:
        model: Model from images `(n, h, w, c)` uint8, of any n, h and w, to a dictionary with
            `probabilities`.
        path: File to write.
        metadata: Properties to add; values are encoded as JSON.
    """
    import onnx

    onnx_model = _convert(model)
    _sort_nodes(onnx_model.graph)
    _rename(onnx_model.graph)
    del onnx_model.graph.value_info[:]  # refers to the previous names; runtimes infer it
    for tensor in (*onnx_model.graph.input, *onnx_model.graph.output):
        for name, dim in zip("nhwc", tensor.type.tensor_type.shape.dim, strict=False):
            if not dim.HasField("dim_value"):
                dim.dim_param = name
    properties = {key: json.dumps(value, ensure_ascii=False) for key, value in metadata.items()}
    onnx.helper.set_model_props(onnx_model, properties)
    onnx.checker.check_model(onnx_model, full_check=True)
    path.write_bytes(onnx_model.SerializeToString(deterministic=True))


def load(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function that predicts with ONNX Runtime.

    The function takes images `(n, h, w, c)` uint8 and returns probabilities `(n, k)` float32.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: session.run(["probabilities"], {"images": images})[0]


def _convert(model: "keras.Model") -> Any:
    """Convert a model with tf2onnx.

    `model.export` would not allow the handler for `Erfc`, which tf2onnx lacks.
    """
    import onnx
    import tensorflow as tf
    from tf2onnx import convert, handler

    handler.tf_op("Erfc")(_Erfc)
    images = tf.TensorSpec(model.input_shape, tf.uint8, name="images")
    function = tf.function(lambda images: model(images, training=False), autograph=False)
    # Keras compiles grouped convolutions as separate functions, which tf2onnx cannot convert
    run_eagerly = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(True)
    try:
        onnx_model = convert.from_function(function, [images])[0]
        captured = function.get_concrete_function(images).graph.captures
    finally:
        tf.config.run_functions_eagerly(run_eagerly)
    # tf2onnx converts constant tensors of the network to inputs
    constants = {
        placeholder.name: value.numpy()
        for value, placeholder in captured
        if placeholder.dtype != tf.resource
    }
    for tensor in list(onnx_model.graph.input):
        if tensor.name in constants:
            onnx_model.graph.input.remove(tensor)
            weight = onnx.numpy_helper.from_array(constants[tensor.name], tensor.name)
            onnx_model.graph.initializer.append(weight)
    return onnx_model


class _Erfc:
    """Conversion of TensorFlow's erfc, which GELU uses, to 1 - erf."""

    @classmethod
    def version_9(cls, graph: Any, node: Any, **kwargs: Any) -> None:  # the first opset with Erf
        output, dtype = node.output[0], graph.get_dtype(node.output[0])
        types = {"shapes": [graph.get_shape(output)], "dtypes": [dtype]}
        graph.remove_node(node.name)
        erf = graph.make_node("Erf", node.input, **types)
        one = graph.make_const(f"{node.name}_one", np.ones((), np.float32))
        graph.make_node("Sub", [one.output[0], erf.output[0]], outputs=[output], **types)


def _sort_nodes(graph: Any) -> None:
    """Sort the nodes depth-first from the outputs; tf2onnx writes branches in random order."""
    producers = {name: node for node in graph.node for name in node.output}
    order: dict[str, int] = {}  # of the first output of each node
    stack = [tensor.name for tensor in graph.output]
    while stack:
        node = producers[stack[-1]]
        inputs = [producers[name].output[0] for name in node.input if name in producers]
        if missing := [name for name in inputs if name not in order]:
            stack.append(missing[0])
        else:
            order.setdefault(node.output[0], len(order))
            stack.pop()
    graph.node.sort(key=lambda node: order[node.output[0]])


def _rename(graph: Any) -> None:
    """Remove unused weights, sort the others by first use, and number weights and nodes.

    tf2onnx writes them in random order with random names, so that equal models would give different
    bytes. A fixed PYTHONHASHSEED does not help: three runs with it wrote three different files of
    one network.
    """
    used = list(dict.fromkeys(name for node in graph.node for name in node.input))
    for weight in list(graph.initializer):
        if weight.name not in used:
            graph.initializer.remove(weight)
    graph.initializer.sort(key=lambda weight: used.index(weight.name))
    names = {"": ""}  # an omitted optional input
    names |= {weight.name: f"weight_{number}" for number, weight in enumerate(graph.initializer)}
    for number, node in enumerate(graph.node):
        node.name = f"{node.op_type}_{number}"
        names |= {name: f"{node.name}:{i}" for i, name in enumerate(node.output)}
    names |= {tensor.name: tensor.name for tensor in (*graph.input, *graph.output)}
    for weight in graph.initializer:
        weight.name = names[weight.name]
    for node in graph.node:
        node.input[:] = [names[name] for name in node.input]
        node.output[:] = [names[name] for name in node.output]
