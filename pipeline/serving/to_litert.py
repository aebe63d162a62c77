"""Export as LiteRT: the file that Keras writes, with the classes in it, and how to run it."""

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
        model: From images `(n, h, w, c)` uint8 to a dictionary with `probabilities`.
        metadata: `classes`, and maybe `intensity_range`: files of the ZIP archive that it also is.
    """
    model.export(path, format="litert", verbose=False)
    labels = "".join(f"{name}\n" for name in metadata["classes"])
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(zipfile.ZipInfo("labels.txt"), labels)  # as TensorFlow's tools
        if deep := metadata.get("intensity_range"):
            archive.writestr(zipfile.ZipInfo("intensity_range.json"), json.dumps(deep))


def load(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function from images to probabilities, computed by LiteRT."""
    from ai_edge_litert.interpreter import Interpreter

    answer = Interpreter(model_path=str(path)).get_signature_runner()  # takes any n
    return lambda images: answer(images=images)["probabilities"]
