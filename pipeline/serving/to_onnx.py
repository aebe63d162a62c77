"""Export as ONNX: the file that tf2onnx makes, put in order, and a function that runs it."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import keras


def write(model: "keras.Model", path: Path, metadata: Mapping[str, Any]) -> None:
    """Write a model as ONNX; equal models give equal bytes.

    Args:
        model: From images `(n, h, w, c)` uint8 to a dictionary with `probabilities`.
        metadata: Each is kept as JSON.
    """
    import onnx

    written = _converted(model)
    _fold_shapes(written)
    _number(written.graph)
    del written.graph.value_info[:]  # of the former names; runtimes infer it
    for tensor in (*written.graph.input, *written.graph.output):
        tensor.type.tensor_type.shape.dim[0].dim_param = "n"
    properties = {key: json.dumps(value, ensure_ascii=False) for key, value in metadata.items()}
    onnx.helper.set_model_props(written, properties)
    onnx.checker.check_model(written, full_check=True)
    path.write_bytes(written.SerializeToString(deterministic=True))


def load(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function from images to probabilities, computed by ONNX Runtime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: session.run(["probabilities"], {"images": images})[0]


def _converted(model: "keras.Model") -> Any:
    """Return a model as tf2onnx converts it.

    Not by `model.export`, which leaves out what tf2onnx does not know by itself.
    """
    import onnx
    import tensorflow as tf
    from tf2onnx import convert, handler

    handler.tf_op("Erfc")(_Erfc)
    images = tf.TensorSpec(model.input_shape, tf.uint8, name="images")
    function = tf.function(lambda images: model(images, training=False), autograph=False)
    # Keras compiles grouped convolutions as functions of their own, which tf2onnx cannot open
    eager = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(True)
    try:
        written = convert.from_function(function, [images])[0]
        captured = function.get_concrete_function(images).graph.captures
    finally:
        tf.config.run_functions_eagerly(eager)
    # tensors that the network holds as constants, which tf2onnx takes for inputs
    constants = {
        inside.name: value.numpy() for value, inside in captured if inside.dtype != tf.resource
    }
    for tensor in [each for each in written.graph.input if each.name in constants]:
        written.graph.input.remove(tensor)
        value = onnx.numpy_helper.from_array(constants[tensor.name], tensor.name)
        written.graph.initializer.append(value)
    return written


class _Erfc:
    """TensorFlow's erfc, of which GELU is made, as 1 - erf."""

    @classmethod
    def version_9(cls, graph: Any, node: Any, **kwargs: Any) -> None:  # the opset that has Erf
        output, dtype = node.output[0], graph.get_dtype(node.output[0])
        types = {"shapes": [graph.get_shape(output)], "dtypes": [dtype]}
        graph.remove_node(node.name)
        erf = graph.make_node("Erf", node.input, **types)
        one = graph.make_const(f"{node.name}_one", np.ones((), np.float32))
        graph.make_node("Sub", [one.output[0], erf.output[0]], outputs=[output], **types)


def _fold_shapes(model) -> None:
    """Give each Reshape its target as a constant, -1 for the images.

    tf2onnx mostly does, and where its sets of nodes come in another order leaves some to be
    computed from the input's shape.
    """
    import onnx

    graph = model.graph
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    known = {value.name: value.type.tensor_type.shape.dim for value in inferred.value_info}
    weights = {weight.name for weight in graph.initializer}
    for node in graph.node:
        if node.op_type == "Reshape" and node.input[1] not in weights:
            target = [dim.dim_value or -1 for dim in known.get(node.output[0], [])]
            if target.count(-1) == 1:
                name = f"{node.output[0]}_target"
                values = np.array(target, np.int64)
                graph.initializer.append(onnx.numpy_helper.from_array(values, name))
                node.input[1] = name
    wanted = {tensor.name for tensor in graph.output}
    for node in reversed(list(graph.node)):  # from output to input
        if wanted.isdisjoint(node.output):
            graph.node.remove(node)
        else:
            wanted.update(node.input)
    for weight in list(graph.initializer):
        if weight.name not in wanted:
            graph.initializer.remove(weight)


def _number(graph) -> None:
    """Order weights by first use, and name them and all nodes by number.

    tf2onnx leaves these to chance, which would write other bytes for an equal model. A fixed
    PYTHONHASHSEED does not help: three runs with it wrote three different files of one network.
    """
    used = list(dict.fromkeys(name for node in graph.node for name in node.input))
    graph.initializer.sort(key=lambda weight: used.index(weight.name))
    names = {"": ""}  # an input that is left out
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
