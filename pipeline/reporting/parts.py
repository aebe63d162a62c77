"""Parts: the report's tables and pictures, without its charts."""

import base64
import io
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from pipeline.core.errors import one_line
from pipeline.core.files import read_json, require_file
from pipeline.data.preprocessor import Preprocessor

MODEL_MISTAKES = 30  # misclassified images per model, at most
ALL_MISTAKES = 240  # misclassified images of all models, approximately, to keep the page small
DIAGRAMS = ("layers.png", "flow.png")  # pictures of analyze that show bars or curves, not images
THUMBNAIL = 96  # pixels, the longest side of a thumbnail


def data_uri(png: bytes) -> str:
    """Encode a PNG file as a data URI."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def picture(path: Path) -> str:
    """Read a PNG file as a data URI."""
    return data_uri(require_file(path).read_bytes())


def thumbnail(pixels: np.ndarray) -> str:
    """Return a thumbnail as a data URI.

    Args:
        pixels: `(h, w, c)` uint8, c 1 or 3. Images below THUMBNAIL pixels keep their size.
    """
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return data_uri(buffer.getvalue())


def mistakes_per_model(models: int) -> int:
    """Return the maximum number of misclassified images that are shown of each model."""
    return max(1, min(MODEL_MISTAKES, ALL_MISTAKES // models))


def misclassified(predictions: pd.DataFrame) -> pd.DataFrame:
    """Return the test images that at least one training misclassifies, the clearest errors first.

    Args:
        predictions: seed, id, actual, predicted and confidence, the images of each seed in order.

    Returns:
        image: its number, from 0; id; actual; predicted: the most frequent wrong class, the more
        confident on a tie; wrong: the number of trainings that misclassify the image; confidence:
        the mean of these trainings. Sorted by wrong, then by confidence, descending.
    """
    table = predictions.assign(image=predictions.groupby("seed").cumcount())
    errors = table[table["actual"] != table["predicted"]]
    by_class = errors.groupby(["image", "predicted"])["confidence"].agg(["size", "sum"])
    by_class = by_class.reset_index().sort_values(["size", "sum"], ascending=False, kind="stable")
    images = errors.groupby("image").agg(
        id=("id", "first"),
        actual=("actual", "first"),
        wrong=("seed", "size"),
        confidence=("confidence", "mean"),
    )
    images["predicted"] = by_class.groupby("image")["predicted"].first()
    images = images.sort_values(["wrong", "confidence"], ascending=False, kind="stable")
    return images.reset_index()


def mistakes(
    name: str, predictions: pd.DataFrame, images: Any, preprocessor: Preprocessor, count: int
) -> list[dict]:
    """Return a model's clearest errors, in the order of `misclassified`, with their pictures.

    Args:
        name: Of the model.
        predictions: seed, id, actual, predicted and confidence of n images in each of k trainings.
        images: `(n, h, w, c)`, the normalized test images.
        preprocessor: That normalized them.
        count: The maximum number of images.
    """
    errors = misclassified(predictions)[:count].to_dict("records")
    return [
        {
            "model": name,
            "picture": thumbnail(preprocessor.pixels(images[error["image"]])),
            **{str(column): value for column, value in error.items()},
            "id": one_line(error["id"]),
        }
        for error in errors
    ]


def analysis(folder: Path) -> dict[str, Any]:
    """Read what analyze wrote about a model: its pictures in order, and its layer table."""
    written = read_json(folder / "analysis.json")
    pictures = [
        {
            "title": entry["title"],
            "alt": entry["alt"],
            "picture": picture(folder / entry["file"]),
            "diagram": entry["file"] in DIAGRAMS,
        }
        for entry in written["pictures"]
    ]
    layers = pd.read_csv(folder / "layers.csv", dtype=str, keep_default_na=False)
    return {
        "pictures": pictures,
        "columns": [name.replace("_", " ") for name in layers.columns],
        "rows": [[_group_digits(cell) for cell in row] for row in layers.to_numpy().tolist()],
        "total": [_group_digits(str(written["total"].get(name, ""))) for name in layers.columns],
    }


def _group_digits(cell: str) -> str:
    """Insert thousands separators if the cell is a whole number."""
    return f"{int(cell):,}" if cell.isascii() and cell.isdigit() else cell


def installed_version(package: str, locked: str) -> str:
    """Return the installed one of several locked versions, or all of them if none is installed.

    uv.lock has several versions of a package if they depend on the version of Python.
    """
    candidates = locked.split(", ")
    if len(candidates) == 1:
        return locked
    try:
        installed = metadata.version(package)
    except metadata.PackageNotFoundError:
        installed = ""
    return installed if installed in candidates else " or ".join(candidates)


def versions(folder: Path) -> list[dict[str, str]]:
    """Return each package with its version and the stages whose results depend on it."""
    stages: dict[tuple[str, str], list[str]] = {}
    for path in sorted(folder.glob("*.json")):
        for package, locked in read_json(path).items():
            key = (package, installed_version(package, locked))
            stages.setdefault(key, []).append(path.stem)
    return [
        {"package": package, "version": version, "stages": ", ".join(names)}
        for (package, version), names in sorted(stages.items())
    ]
