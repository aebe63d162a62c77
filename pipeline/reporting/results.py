"""Results: a run in words, for the report, the model card and the summary."""

from pathlib import Path
from typing import Any

from pipeline.core.files import read_json
from pipeline.core.text import percent


def source(dataset: str, folder: str) -> str:
    """Return the name of the data set, or of the folder of images."""
    return f"the folder {Path(folder).name}" if dataset == "folder" else dataset


def champion_reason(setting: str, rows: list[dict], champion: str) -> str:
    """Describe why a model is the champion, including how a tie was broken.

    Args:
        setting: `champion` in params.yaml.
        rows: Model and val_accuracy of each model.
        champion: Name of the champion.
    """
    if setting != "auto":
        return "named in params.yaml"
    if len(rows) == 1:
        return "the only model"
    accuracy = {row["model"]: row["val_accuracy"] for row in rows}
    best = accuracy.pop(champion)
    reason = f"best mean validation accuracy: {percent(best)}"
    tied = [name for name, other in accuracy.items() if other == best]
    if not tied:
        return reason
    others = tied[0] if len(tied) == 1 else f"{len(tied)} others"
    return f"{reason}, tied with {others}; then the fewest parameters, then the first in the table"


def verdict(rows: list[dict], champion: str, level: float) -> str:
    """Describe how the champion compares with the reference, in one sentence.

    If the champion is the reference, the other model with the best validation accuracy is compared;
    without validation images, the first one.

    Args:
        rows: `models` of metrics/comparison.json, the reference first.
        champion: Name of the champion.
        level: Of the confidence intervals, in (0, 1).
    """
    reference, *others = rows
    if not others:
        return (
            f"{reference['model']} classifies {percent(reference['accuracy'])} of the test images "
            f"correctly ({percent(level, 0)} interval {percent(reference['accuracy_low'])} to "
            f"{percent(reference['accuracy_high'])}). There is no other model to compare it with."
        )
    row = next(
        (row for row in others if row["model"] == champion),
        max(others, key=lambda row: row.get("val_accuracy", 0.0)),
    )
    name, sentence = row["model"], row["sentence"]
    if row["verdict"] == "cannot tell":
        question = f"Cannot tell whether {name} is better or worse than {reference['model']}"
        return f"{question}{sentence.removeprefix('cannot tell')}."
    return f"{name} is {sentence}."


def searches(folder: Path, names: list[str], data: str) -> list[dict]:
    """Return the models whose settings were searched on a data set, with the number of trials.

    Args:
        folder: With a file for each model that was searched.
        names: Models to look for.
        data: Name of the data set, as `source` returns it.
    """
    rows = []
    for name in names:
        path = folder / f"{name}.json"
        entries = read_json(path)["searches"] if path.is_file() else []
        if trials := sum(entry["trials"] for entry in entries if entry["data"] == data):
            rows.append({"model": name, "trials": trials})
    return rows


def exports(path: Path) -> list[dict[str, Any]]:
    """Read the result of each export format from metrics/export.json."""
    rows = {name: row for name, row in read_json(path).items() if isinstance(row, dict)}
    return [{"format": name, **row} for name, row in rows.items()]
