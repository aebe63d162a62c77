"""Export: the champion for programs without Keras; each file is run once and compared with it.

Reads   models/champion.keras, data/arrays/test/images.npy, data/arrays/info.json
Writes  models/export/champion.onnx      for onnxruntime
        models/export/champion.tflite    for LiteRT: phones, browsers, small boards
        metrics/export.json              of each format the largest difference from Keras, in
                                         probability; the share of images with the same class;
                                         bytes; or why there is no such file

Both take `images`, (n, h, w, c) uint8, and answer `probabilities`, (n, k) float32. Names of the
classes travel in them: in ONNX as the metadata `classes`, a JSON list; in the .tflite file, which
is also a ZIP archive, as labels.txt. So does, of a model of grey images with more than 8 bits,
their range [low, high], as `intensity_range` and intensity_range.json: such an image becomes uint8,
as in training, by round(255 (clip(x, low, high) - low) / (high - low)).

A network that a format cannot express costs that file alone, and no other stage.
"""

import argparse
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pipeline.core.errors import PipelineError, one_line, run
from pipeline.core.files import atomic_path, read_json, write_json
from pipeline.data import arrays, preprocessor
from pipeline.data.preprocessor import Preprocessor
from pipeline.runtime import select_backend
from pipeline.serving import to_litert, to_onnx

if TYPE_CHECKING:
    import keras

IMAGES = 256  # of the test split, that each format is compared on
BATCH_SIZE = 32
# Largest difference in probability that rounding explains; measured are some 1e-6. Within it, a
# predicted class differs only where Keras itself is undecided between two.
TOLERANCE = 1e-3
REASON = 300  # characters of it: converters can write pages

Answer = Callable[[np.ndarray], np.ndarray]


def serving(model: "keras.Model", kept: Preprocessor) -> "keras.Model":
    """Return a model from uint8 images to probabilities, with the normalization of training."""
    import keras

    shift, scale = kept.shift_and_scale()
    images = keras.Input(kept.image_shape, dtype="uint8", name="images")
    factor, offset = 1 / (255 * scale), -shift / scale
    logits = model(keras.layers.Rescaling(factor.tolist(), offset.tolist())(images))
    served = keras.Model(images, {"probabilities": keras.layers.Softmax()(logits)}, name="champion")
    served(np.zeros((1, *kept.image_shape), np.uint8))  # Keras exports what has been called
    return served


def metadata_of(kept: Preprocessor) -> dict[str, Any]:
    """Return what a program has to know that runs an exported model."""
    deep = {} if kept.intensity_range is None else {"intensity_range": kept.intensity_range}
    return {"classes": kept.classes, **deep}


class Format(NamedTuple):
    file: str
    write: Callable[["keras.Model", Path, Mapping[str, Any]], None]
    load: Callable[[Path], Answer]


FORMATS = {
    "onnx": Format("champion.onnx", to_onnx.write, to_onnx.load),
    "litert": Format("champion.tflite", to_litert.write, to_litert.load),
}


@contextmanager
def told(name: str) -> Iterator[None]:
    """Turn what goes wrong in a converter or a runtime into NotWritten, with its reason.

    A full disk, short memory and a package that is missing are no fault of the network.
    """
    try:
        yield
    except ImportError as error:
        raise PipelineError(
            f"export: {name} needs a package: {error}. Run `uv sync --inexact`"
        ) from error
    except Exception as error:  # they have errors of their own, of any class
        if isinstance(error, MemoryError) or getattr(error, "errno", None) is not None:
            raise
        raise NotWritten(one_line(f"{type(error).__name__}: {error}")[:REASON]) from error


class NotWritten(Exception):
    """Why there is no file in a format."""


def compare(answers: np.ndarray, expected: np.ndarray) -> dict[str, float]:
    """Measure how far a format's probabilities `(n, k)` are from Keras's.

    Raises:
        NotWritten: Further than rounding explains.
    """
    difference = float(np.abs(answers - expected).max())
    if not difference <= TOLERANCE:  # nor is NaN
        raise NotWritten(
            f"probabilities must be those of Keras, to {TOLERANCE:g}. "
            f"Got a difference of {difference:.2g}"
        )
    agreement = float((answers.argmax(axis=1) == expected.argmax(axis=1)).mean())
    # two digits: the others are noise, and would change in Git with every processor
    return {"largest_difference": float(f"{difference:.1e}"), "agreement": agreement}


def write(
    name: str, folder: Path, model: "keras.Model", kept: Preprocessor, pixels: np.ndarray,
    expected: np.ndarray,
) -> dict[str, Any]:  # fmt: skip
    """Write a format, run it, and return how it compares, or why there is no file.

    Args:
        name: One of FORMATS.
        model: From `serving`.
        pixels: `(n, h, w, c)` uint8.
        expected: Keras's probabilities, `(n, k)`.
    """
    path = folder / FORMATS[name].file
    try:
        with told(name):
            FORMATS[name].write(model, path, metadata_of(kept))
            answer = FORMATS[name].load(path)
            starts = range(0, len(pixels), BATCH_SIZE)
            answers = [answer(pixels[start : start + BATCH_SIZE]) for start in starts]
        compared = compare(np.concatenate(answers), expected)
    except NotWritten as reason:
        path.unlink(missing_ok=True)
        return {"not_written": [str(reason)]}  # in a list: DVC shows it in no table of numbers
    return {**compared, "bytes": path.stat().st_size}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for path in ("model", "arrays", "out", "metrics"):
        parser.add_argument(f"--{path}", type=Path, required=True)
    args = parser.parse_args(argv)

    kept = preprocessor.read(args.model)
    if Preprocessor.of(read_json(args.arrays / "info.json")) != kept:
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
    select_backend.use("tensorflow")
    from pipeline.core import native_log
    from pipeline.runtime import backend

    with native_log.silenced():  # converters and runtimes talk, too
        import keras

        model = backend.load(args.model)
        logits = model.predict(normalized, batch_size=BATCH_SIZE, verbose=0)
        expected = keras.ops.convert_to_numpy(keras.ops.softmax(logits))
        served = serving(model, kept)
        with atomic_path(args.out) as folder:
            folder.mkdir()
            rows = {name: write(name, folder, served, kept, pixels, expected) for name in FORMATS}
    write_json(args.metrics, {"images": len(pixels), **rows})
    for name, row in rows.items():
        for reason in row.get("not_written", ()):
            print(f"export: {name}: not written, {reason}")
    written = [name for name, row in rows.items() if "not_written" not in row]
    if written:
        print(f"export: {', '.join(written)}: as Keras on {len(pixels)} test images -> {args.out}")


if __name__ == "__main__":
    run(main)
