"""LiteRT: convert a Keras model to a .tflite file with class names, and run it."""

import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import keras


def write(model: "keras.Model", path: Path, metadata: Mapping[str, Any]) -> None:
    """Write a model as LiteRT; equal models give equal bytes.

    Args:
        model: Model from images `(n, h, w, c)` uint8, of any n, h and w, to a dictionary with
            `probabilities`.
        path: File to write.
        metadata: `classes` and more, added as files of a ZIP archive: labels.txt and KEY.json.
    """
    model.export(path, format="litert", verbose=False)
    labels = "".join(f"{name}\n" for name in metadata["classes"])
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(zipfile.ZipInfo("labels.txt"), labels)  # the name in TensorFlow's tools
        for key, value in metadata.items():
            if key != "classes":
                archive.writestr(zipfile.ZipInfo(f"{key}.json"), json.dumps(value))


def load(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function that predicts with LiteRT.

    The function takes images `(n, h, w, c)` uint8 and returns probabilities `(n, k)` float32.
    """
    from ai_edge_litert.interpreter import Interpreter

    run = Interpreter(model_path=str(path)).get_signature_runner()  # accepts any n, h and w
    return lambda images: run(images=images)["probabilities"]
