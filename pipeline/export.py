"""Export: convert the champion to formats that run without Keras, and check the predictions.

Reads   models/champion.keras, data/arrays/test/images.npy, data/arrays/info.json
Writes  models/export/champion.onnx      for ONNX Runtime
        models/export/champion.tflite    for LiteRT: phones, browsers, embedded devices
        metrics/export.json              for each format: the largest difference in probability
                                         from Keras, the share of images with the same predicted
                                         class, and the file size; or why no file was written

Both models take `images`, (n, h, w, c) uint8 of any height and width, and return `probabilities`,
(n, k) float32. They resize as `preprocess.resize` says, normalize, and use the temperature that
train fitted. The class names are included: in ONNX as the metadata `classes`, a JSON list; in the
.tflite file, which is also a ZIP archive, as labels.txt. If the training images were grayscale with
more than 8 bits, their range [low, high] is included too, as `intensity_range` and
intensity_range.json. As in training, such an image becomes uint8 by
round(255 (clip(x, low, high) - low) / (high - low)).

If a format does not support a network, only that file is missing; the stage does not fail.
"""

import argparse
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pipeline.config.params import load
from pipeline.core.errors import PipelineError, one_line, run
from pipeline.core.files import atomic_path, read_json, write_json
from pipeline.core.text import counted
from pipeline.data import arrays, calibration
from pipeline.data.preprocessor import Preprocessor
from pipeline.data.preprocessor import read as read_preprocessor
from pipeline.runtime import select_backend
from pipeline.serving import to_litert, to_onnx

if TYPE_CHECKING:
    import keras

NUM_IMAGES = 256  # test images that the formats are compared on
BATCH_SIZE = 32
NUM_ENLARGED = BATCH_SIZE  # of them that are compared at twice their size, too
# Largest difference in probability that rounding can explain; measured differences are about 1e-6.
# Within it, a predicted class can only differ where Keras gives two classes almost the same
# probability.
TOLERANCE = 1e-3
MAX_REASON = 300  # characters; converters can print pages

Predict = Callable[[np.ndarray], np.ndarray]


def serving_model(
    model: "keras.Model", preprocessor: Preprocessor, temperature: float
) -> "keras.Model":
    """Build a model from uint8 images of any size to probabilities.

    It includes resizing and normalization.

    Args:
        model: Model from normalized images `(n, h, w, c)` to logits `(n, k)`.
        preprocessor: Preprocessing of the training images.
        temperature: Divides the logits.
    """
    import keras

    from pipeline.serving.resizing import Resize

    height, width, channels = preprocessor.image_shape
    shift, scale = preprocessor.shift_and_scale()
    images = keras.Input((None, None, channels), dtype="uint8", name="images")
    pixels = Resize((height, width), preprocessor.resize)(images)
    factor, offset = 1 / (255 * scale), -shift / scale
    logits = model(keras.layers.Rescaling(factor.tolist(), offset.tolist())(pixels))
    probabilities = keras.layers.Softmax()(logits / temperature)
    serving = keras.Model(images, {"probabilities": probabilities}, name="champion")
    # Keras requires that a model was called before it is exported
    serving(np.zeros((1, *preprocessor.image_shape), np.uint8))
    return serving


def export_metadata(preprocessor: Preprocessor) -> dict[str, Any]:
    """Return the class names and, if there is one, the intensity range of a model."""
    metadata: dict[str, Any] = {"classes": preprocessor.classes}
    if preprocessor.intensity_range is not None:
        metadata["intensity_range"] = preprocessor.intensity_range
    return metadata


class Format(NamedTuple):
    """An export format."""

    file: str
    """File name"""
    write: Callable[["keras.Model", Path, Mapping[str, Any]], None]
    """Converts a model to a file"""
    load: Callable[[Path], Predict]
    """Returns the prediction function of a file"""


FORMATS = {
    "onnx": Format("champion.onnx", to_onnx.write, to_onnx.load),
    "litert": Format("champion.tflite", to_litert.write, to_litert.load),
}


class NotWritten(Exception):
    """A format does not support the network; the message is the reason."""


@contextmanager
def converter_errors(name: str) -> Iterator[None]:
    """Convert errors of a converter or runtime to `NotWritten`.

    A full disk, lack of memory and a missing package are not caused by the network, so those errors
    are not converted.

    Raises:
        NotWritten: The converter or the runtime failed.
        PipelineError: A package is missing.
    """
    try:
        yield
    except ImportError as error:
        raise PipelineError(
            f"export: {name} needs a package: {error}. Run `uv sync --inexact`"
        ) from error
    except Exception as error:  # converters raise many exception classes
        if isinstance(error, MemoryError) or getattr(error, "errno", None) is not None:
            raise
        raise NotWritten(one_line(f"{type(error).__name__}: {error}")[:MAX_REASON]) from error


def compare(probabilities: np.ndarray, expected: np.ndarray) -> dict[str, float]:
    """Compare the probabilities `(n, k)` of an exported model with those of Keras.

    Returns:
        `largest_difference` in probability, and `agreement`, the share of images with the same
        predicted class.

    Raises:
        NotWritten: The difference is larger than rounding can explain.
    """
    difference = float(np.abs(probabilities - expected).max())
    if not difference <= TOLERANCE:  # also true for NaN
        raise NotWritten(
            f"probabilities must differ from those of Keras by at most {TOLERANCE:g}. "
            f"Got a difference of {difference:.2g}"
        )
    agreement = float((probabilities.argmax(axis=1) == expected.argmax(axis=1)).mean())
    # two digits, because the others vary with the processor and would change in Git
    return {"largest_difference": float(f"{difference:.1e}"), "agreement": agreement}


def enlarge(pixels: np.ndarray, preprocessor: Preprocessor) -> tuple[np.ndarray, np.ndarray]:
    """Double the size of images, and resize the result with Pillow as in training.

    At twice the size, Pillow's weights are eighths, and sevenths at the border: they give no ties
    in rounding that are not exact, so exported models must resize to the very same pixels.

    Args:
        pixels: `(n, h, w, c)` uint8.
        preprocessor: Preprocessing of the training images.

    Returns:
        The enlarged images, `(n, 2h, 2w, c)` uint8, and these resized and normalized, `(n, h, w,
        c)` float32.
    """
    from PIL import Image

    enlarged = pixels.repeat(2, axis=1).repeat(2, axis=2)
    is_gray = pixels.shape[-1] == 1
    pictures = [Image.fromarray(image[..., 0] if is_gray else image) for image in enlarged]
    return enlarged, np.stack([preprocessor.apply(picture) for picture in pictures])


def write(
    name: str, folder: Path, model: "keras.Model", preprocessor: Preprocessor,
    batches: list[np.ndarray], expected: np.ndarray,
) -> dict[str, Any]:  # fmt: skip
    """Write the model in one format, run it, and compare its probabilities with those of Keras.

    Args:
        name: A key of FORMATS.
        folder: Folder for the file.
        model: From `serving_model`.
        preprocessor: Preprocessing of the training images.
        batches: Images `(b, h, w, c)` uint8; each batch may have another size.
        expected: Probabilities of Keras for the images of all batches, `(n, k)`.

    Returns:
        The comparison and the file size, or under `not_written` why there is no file.
    """
    path = folder / FORMATS[name].file
    try:
        with converter_errors(name):
            FORMATS[name].write(model, path, export_metadata(preprocessor))
            predict = FORMATS[name].load(path)
            probabilities = np.concatenate([predict(images) for images in batches])
        comparison = compare(probabilities, expected)
    except NotWritten as reason:
        path.unlink(missing_ok=True)
        return {"not_written": [str(reason)]}  # a list, which DVC omits from tables of metrics
    return {**comparison, "bytes": path.stat().st_size}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for path in ("model", "arrays", "out", "metrics"):
        parser.add_argument(f"--{path}", type=Path, required=True)
    args = parser.parse_args(argv)
    params = load()

    preprocessor = read_preprocessor(args.model)
    if Preprocessor.of(read_json(args.arrays / "info.json")) != preprocessor:
        raise PipelineError(
            f"{args.model}: must have the preprocessing of {args.arrays}. Got a model trained with "
            "another one. Run `dvc repro`"
        )
    calibrated = calibration.read(args.model)
    images, _ = arrays.load(args.arrays / "test")
    normalized = images[np.unique(np.linspace(0, len(images) - 1, NUM_IMAGES).astype(int))]
    pixels = preprocessor.pixels(normalized)
    enlarged, resized = enlarge(pixels[:NUM_ENLARGED], preprocessor)
    batches = [pixels[start : start + BATCH_SIZE] for start in range(0, len(pixels), BATCH_SIZE)]
    batches.append(enlarged)

    # whatever the backend of training, both converters need TensorFlow. Not on a GPU, where
    # convolutions round to 10 bits: that would count as a difference of the format
    os.environ |= {"KERAS_BACKEND": "tensorflow", "CUDA_VISIBLE_DEVICES": "-1"}
    select_backend.use("tensorflow", params.threads)
    from pipeline.core import native_log
    from pipeline.runtime import backend

    with native_log.silenced():  # converters and runtimes write to stderr too
        model = backend.load(args.model)
        inputs = np.concatenate([normalized, resized])
        logits = model.predict(inputs, batch_size=BATCH_SIZE, verbose=0)
        expected = calibrated.probabilities(logits)
        serving = serving_model(model, preprocessor, calibrated.temperature)
        with atomic_path(args.out) as folder:
            folder.mkdir()
            rows = {
                name: write(name, folder, serving, preprocessor, batches, expected)
                for name in FORMATS
            }
    write_json(args.metrics, {"images": len(pixels), "enlarged": len(enlarged), **rows})
    for name, row in rows.items():
        for reason in row.get("not_written", ()):
            print(f"export: {name}: not written, {reason}")
    written = [name for name, row in rows.items() if "not_written" not in row]
    if written:
        names, compared = ", ".join(written), counted(len(pixels), "test image")
        print(f"export: {names}: agree with Keras on {compared} -> {args.out}")


if __name__ == "__main__":
    run(main)
