"""Export: the champion for programs without Keras; each file is run once and compared with it.

Reads   models/champion.keras, data/arrays/test/images.npy, data/arrays/info.json
Writes  models/champion.onnx      for onnxruntime
        models/champion.tflite    for LiteRT: phones, browsers, small boards
        metrics/export.json       of each format the largest difference from Keras, in
                                  probability; the share of images with the same class; bytes

Both take `images`, (n, h, w, c) uint8, and answer `probabilities`, (n, k) float32. Names of the
classes travel in them: in ONNX as the metadata `classes`, a JSON list; in the .tflite file, which
is also a ZIP archive, as labels.txt.
"""

import argparse
import json
import os
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline import arrays, engine, preprocessing
from pipeline.errors import PipelineError, run
from pipeline.files import read_json, replacing, write_json
from pipeline.preprocessing import Preprocessing

if TYPE_CHECKING:
    import keras

IMAGES = 256  # of the test part, that each format is compared on
BATCH_SIZE = 32
# Largest difference in probability that rounding explains; measured are some 1e-6. Within it, a
# predicted class differs only where Keras itself is undecided between two.
TOLERANCE = 1e-3

Answer = Callable[[np.ndarray], np.ndarray]


def serving(model: "keras.Model", kept: Preprocessing) -> "keras.Model":
    """Return a model from uint8 images to probabilities, with the normalization of training."""
    import keras

    shift, scale = kept.shift_and_scale()
    images = keras.Input(kept.image_shape, dtype="uint8", name="images")
    factor, offset = 1 / (255 * scale), -shift / scale
    logits = model(keras.layers.Rescaling(factor.tolist(), offset.tolist())(images))
    served = keras.Model(images, {"probabilities": keras.layers.Softmax()(logits)}, name="champion")
    served(np.zeros((1, *kept.image_shape), np.uint8))  # Keras exports what has been called
    return served


def write_onnx(model: "keras.Model", path: Path, classes: list[str]) -> None:
    import onnx

    model.export(path, format="onnx", verbose=False)
    written = onnx.load(path)
    _fold_shapes(written)
    _number(written.graph)
    del written.graph.value_info[:]  # of the former names; runtimes infer it
    for tensor in (*written.graph.input, *written.graph.output):
        tensor.type.tensor_type.shape.dim[0].dim_param = "n"
    onnx.helper.set_model_props(written, {"classes": json.dumps(classes, ensure_ascii=False)})
    onnx.checker.check_model(written, full_check=True)
    path.write_bytes(written.SerializeToString(deterministic=True))


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

    tf2onnx leaves these to chance, which would write other bytes for an equal model.
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


def open_onnx(path: Path) -> Answer:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: session.run(["probabilities"], {"images": images})[0]


def write_litert(model: "keras.Model", path: Path, classes: list[str]) -> None:
    model.export(path, format="litert", verbose=False)
    with zipfile.ZipFile(path, "a") as archive:  # where TensorFlow's tools put labels too
        archive.writestr(zipfile.ZipInfo("labels.txt"), "".join(f"{name}\n" for name in classes))


def open_litert(path: Path) -> Answer:
    from ai_edge_litert.interpreter import Interpreter

    answer = Interpreter(model_path=str(path)).get_signature_runner()  # takes any n
    return lambda images: answer(images=images)["probabilities"]


FORMATS = {"onnx": (write_onnx, open_onnx), "litert": (write_litert, open_litert)}


@contextmanager
def naming(name: str, path: Path) -> Iterator[None]:
    """Name the format in what goes wrong with it; a full disk or short memory speaks for itself."""
    try:
        yield
    except Exception as error:  # converters and runtimes have errors of their own, of any class
        if isinstance(error, MemoryError) or getattr(error, "errno", None) is not None:
            raise
        raise PipelineError(
            f"{path}: {name} cannot be written and run on this machine: {type(error).__name__}: "
            f"{error}. Run `uv sync`, or set `champion:` to another model"
        ) from error


def compare(name: str, path: Path, answers: np.ndarray, expected: np.ndarray) -> dict[str, float]:
    """Measure how far a format's probabilities `(n, k)` are from Keras's.

    Raises:
        PipelineError: Further than rounding explains.
    """
    difference = float(np.abs(answers - expected).max())
    if not difference <= TOLERANCE:  # nor is NaN
        raise PipelineError(
            f"{path}: {name} must answer as Keras, to {TOLERANCE:g} in probability. Got a "
            f"difference of {difference:.2g}. Set `champion:` to another model"
        )
    agreement = float((answers.argmax(axis=1) == expected.argmax(axis=1)).mean())
    # two digits: the others are noise, and would change in Git with every processor
    return {"largest_difference": float(f"{difference:.1e}"), "agreement": agreement}


def write(
    name: str, path: Path, model: "keras.Model", classes: list[str], pixels: np.ndarray,
    expected: np.ndarray,
) -> dict[str, float]:  # fmt: skip
    """Write a format, run it, and return how it compares; nothing is written if it fails.

    Args:
        name: One of FORMATS.
        model: From `serving`.
        pixels: `(n, h, w, c)` uint8.
        expected: Keras's probabilities, `(n, k)`.
    """
    save, load = FORMATS[name]
    with replacing(path) as beside:
        with naming(name, path):
            save(model, beside, classes)
            answer = load(beside)
            starts = range(0, len(pixels), BATCH_SIZE)
            answers = [answer(pixels[start : start + BATCH_SIZE]) for start in starts]
        compared = compare(name, path, np.concatenate(answers), expected)
        return compared | {"bytes": beside.stat().st_size}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for path in ("model", "arrays", *FORMATS, "metrics"):
        parser.add_argument(f"--{path}", type=Path, required=True)
    args = parser.parse_args(argv)

    kept = preprocessing.read(args.model)
    if Preprocessing.of(read_json(args.arrays / "info.json")) != kept:
        raise PipelineError(
            f"{args.model}: was trained on images made in another way than {args.arrays}. "
            "Run `dvc repro`"
        )
    images, _ = arrays.load(args.arrays / "test")
    normalized = images[np.unique(np.linspace(0, len(images) - 1, IMAGES).astype(int))]
    pixels = kept.pixels(normalized)

    # whatever the model was trained on: the converters of both formats are TensorFlow's. No GPU,
    # whose convolutions round to 10 bits, which would be taken for the format's fault
    os.environ |= {"KERAS_BACKEND": "tensorflow", "CUDA_VISIBLE_DEVICES": "-1"}
    engine.use("tensorflow")
    from pipeline import backend, quiet

    with quiet.imports():  # converters and runtimes talk, too
        import keras

        model = backend.load(args.model)
        logits = model.predict(normalized, batch_size=BATCH_SIZE, verbose=0)
        expected = keras.ops.convert_to_numpy(keras.ops.softmax(logits))
        served = serving(model, kept)
        metrics: dict[str, object] = {"images": len(pixels)}
        for name in FORMATS:
            path = getattr(args, name)
            metrics[name] = write(name, path, served, kept.classes, pixels, expected)
    write_json(args.metrics, metrics)
    print(f"export: {', '.join(FORMATS)}: as Keras on {len(pixels)} test images -> {args.metrics}")


if __name__ == "__main__":
    run(main)
