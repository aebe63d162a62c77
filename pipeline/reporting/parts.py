"""Parts: what the page says beside its charts."""

import base64
import io
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from pipeline.core.files import read_json, require_file
from pipeline.data.preprocessor import Preprocessor
from pipeline.reporting.chart_style import percent
from pipeline.stats.verdict import THAN

MISTAKES = 30  # of each model at most
ALL_MISTAKES = 240  # of all models together, about: the page stays small
DIAGRAMS = ("layers.png", "flow.png")  # of analyze: bars and curves, and no images
SIDE = 96  # pixels, of a thumbnail at most


def points(share: float) -> str:
    return f"{100 * share:+.1f}".replace("-", "−")


def source(dataset: str, folder: str) -> str:
    """Return what the images are called: the data set, or the folder's own name."""
    return f"the folder {Path(folder).name}" if dataset == "folder" else dataset


def why_champion(named: str, rows: list[dict], champion: str) -> str:
    """Say how the champion was chosen, and what decided where several were equal."""
    if named != "auto":
        return "named in params.yaml"
    if len(rows) == 1:
        return "the only model"
    accuracy = {row["model"]: row["val_accuracy"] for row in rows}
    best = accuracy.pop(champion)
    said = f"best validation accuracy: {percent(best)}"
    equal = [name for name, other in accuracy.items() if other == best]
    if not equal:
        return said
    others = equal[0] if len(equal) == 1 else f"{len(equal)} others"
    return f"{said}, as {others}; of equals, the first in the table is taken"


def verdict(rows: list[dict], champion: str, level: float) -> str:
    """Return the answer in a sentence: of the champion, against the reference.

    Where the champion is the reference: of the best other one, by validation as the champion.
    """
    reference, *others = rows
    interval = f"{percent(level, 0)} interval"
    if not others:
        return (
            f"{reference['model']} gets {percent(reference['accuracy'])} of the test images right "
            f"({interval} {percent(reference['accuracy_low'])} to "
            f"{percent(reference['accuracy_high'])}); there is no other model to compare it with."
        )
    row = next(
        (row for row in others if row["model"] == champion),
        max(others, key=lambda row: row["val_accuracy"]),
    )
    return (
        f"{row['model']} is {THAN[row['verdict']]} {reference['model']}: "
        f"{points(row['difference'])} points of test accuracy, {interval} "
        f"{points(row['difference_low'])} to {points(row['difference_high'])}."
    )


def data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def picture(path: Path) -> str:
    return data_uri(require_file(path).read_bytes())


def thumbnail(pixels: np.ndarray) -> str:
    """Return pixels `(h, w, c)` uint8, c 1 or 3, as a small picture."""
    small = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    small.thumbnail((SIDE, SIDE))  # one that is smaller is left as it is
    buffer = io.BytesIO()
    small.save(buffer, "PNG", optimize=True)
    return data_uri(buffer.getvalue())


def most_mistakes(models: int) -> int:
    """Return how many mistakes are shown of each model."""
    return max(1, min(MISTAKES, ALL_MISTAKES // models))


def mistakes(
    name: str, table: pd.DataFrame, images: Any, kept: Preprocessor, most: int
) -> list[dict]:
    """Return the wrong answers of a model that it was surest of, the surest first."""
    wrong = table[table["actual"] != table["predicted"]]
    worst = wrong.sort_values("confidence", ascending=False, kind="stable")[:most]
    return [
        {
            "model": name,
            "row": int(row),
            "actual": actual,
            "predicted": predicted,
            "confidence": confidence,
            "picture": thumbnail(kept.pixels(images[int(row)])),
        }
        for row, actual, predicted, confidence in zip(
            worst.index, worst["actual"], worst["predicted"], worst["confidence"], strict=True
        )
    ]


def inspected(folder: Path) -> dict[str, Any]:
    """Return what analyze wrote of a model: its pictures in order, and its layers."""
    found = read_json(folder / "analysis.json")
    pictures = [
        {
            "title": each["title"],
            "alt": each["alt"],
            "picture": picture(folder / each["file"]),
            "diagram": each["file"] in DIAGRAMS,
        }
        for each in found["pictures"]
    ]
    layers = pd.read_csv(folder / "layers.csv", dtype=str, keep_default_na=False)
    return {
        "pictures": pictures,
        "columns": [name.replace("_", " ") for name in layers.columns],
        "rows": [[_grouped(cell) for cell in row] for row in layers.to_numpy().tolist()],
        "total": [_grouped(str(found["total"].get(name, ""))) for name in layers.columns],
    }


def _grouped(cell: str) -> str:
    return f"{int(cell):,}" if cell.isascii() and cell.isdigit() else cell


def exported(path: Path) -> list[dict[str, Any]]:
    """Return each format that the champion was to be exported in, with what came of it."""
    rows = {name: row for name, row in read_json(path).items() if isinstance(row, dict)}
    return [{"format": name, **row} for name, row in rows.items()]


def in_use(package: str, locked: str) -> str:
    """Return the one of several locked versions that is installed, or all where none is."""
    several = locked.split(", ")
    if len(several) == 1:
        return locked
    try:
        installed = metadata.version(package)
    except metadata.PackageNotFoundError:
        installed = ""
    return installed if installed in several else " or ".join(several)


def versions(folder: Path) -> list[dict[str, str]]:
    """Return each package with its version and the stages whose result it decides.

    Where uv.lock has several versions, for several versions of Python: the one in use here.
    """
    stages: dict[tuple[str, str], list[str]] = {}
    for path in sorted(folder.glob("*.json")):
        for package, version in read_json(path).items():
            stages.setdefault((package, in_use(package, version)), []).append(path.stem)
    return [
        {"package": package, "version": version, "stages": ", ".join(own)}
        for (package, version), own in sorted(stages.items())
    ]
