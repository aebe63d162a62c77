"""Summary: summarize the runs of a study as rows, one sentence and a table."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from scipy.stats import t

from pipeline.core.console import Column, print_table
from pipeline.stats.paired import LEVEL, PSEUDO_IMAGES
from pipeline.stats.verdict import THAN, verdict
from pipeline.trials.figure import LABELS


def paired(values: Sequence[float], reference: Sequence[float], images: int) -> dict:
    """Compare the accuracies of two models that were trained with the same seeds.

    The interval is that of a paired t-test, plus the variance that `PSEUDO_IMAGES` contribute to
    the mean of n + 2 images. It therefore has a width even if all seeds give the same difference.

    Args:
        values: Accuracies `(k,)`, one per seed, k >= 2.
        reference: Accuracies `(k,)` of the reference model with the same seeds.
        images: Number n of images that each accuracy was measured on.

    Returns:
        difference: the mean difference; difference_low and difference_high: its confidence
        interval; verdict: `better` or `worse` if the interval excludes 0, else
        `not distinguishable`.

    Reference: Student, "The probable error of a mean" (1908); degrees of freedom: Satterthwaite,
        "An approximate distribution of estimates of variance components" (1946).
    """
    # paired, because a seed gives both models the same training images in the same order
    differences = np.subtract(values, reference)
    mean, seed_variance = differences.mean(), differences.var(ddof=1) / len(differences)
    variance = seed_variance + np.square(PSEUDO_IMAGES).sum() / (images + len(PSEUDO_IMAGES)) ** 2
    # equal differences give infinite degrees of freedom, for which t is the normal distribution
    with np.errstate(divide="ignore"):
        degrees_of_freedom = (len(differences) - 1) * (variance / seed_variance) ** 2
    margin = t.ppf((1 + LEVEL) / 2, degrees_of_freedom) * np.sqrt(variance)
    return {
        "difference": float(mean),
        "difference_low": float(mean - margin),
        "difference_high": float(mean + margin),
        "verdict": verdict(mean, abs(mean) > margin),
    }


def summarize(
    positions: dict[str, tuple[str, Any]],
    epochs: dict[str, int],
    runs: dict[str, list],
    images: int,
) -> list[dict]:
    """Average each model over its seeds, and compare it with its reference model.

    The reference is the first model; in a study of several lines, it is the model of the first
    line at the same x. A model with a diverged run is not compared: its remaining runs would be a
    biased sample.

    Args:
        positions: Line and x of each model; x is None if the study has no x.
        epochs: Number of epochs of each model.
        runs: Runs of each model, one per seed, as returned by `measure.measure`.
        images: Number of images that val_accuracy is measured on.

    Returns:
        One row per model.
    """
    first = next(iter(runs))
    has_lines = _has_lines(positions.values())
    rows = []
    for name, model_runs in runs.items():
        line, x = positions[name]
        finished = [run for run in model_runs if run["val_accuracy"] is not None]
        row: dict[str, Any] = {"model": name, "line": line, "x": x}
        row["epochs"] = epochs[name]
        row["diverged"] = len(model_runs) - len(finished)
        for key in ("accuracy", "val_accuracy", "gap", "val_loss", "seconds_per_epoch"):
            row[key] = float(np.mean([run[key] for run in finished])) if finished else None
        accuracies = [run["val_accuracy"] for run in finished]
        row["val_accuracy_sd"] = float(np.std(accuracies, ddof=1)) if len(finished) > 1 else None
        by_layer = zip(*(run["gradients"] for run in model_runs), strict=True)
        row["gradients"] = [None if None in norms else float(np.mean(norms)) for norms in by_layer]
        reference = first
        if has_lines:
            first_line = positions[first][0]
            reference = next(
                (other for other in positions if positions[other] == (first_line, x)), name
            )
        if reference != name:
            row["against"] = reference
            reference_accuracies = [run["val_accuracy"] for run in runs[reference]]
            if None not in reference_accuracies and not row["diverged"]:
                row |= paired(accuracies, reference_accuracies, images)
        rows.append({**row, "runs": model_runs})
    return rows


def _has_lines(positions: Iterable[tuple[str, Any]]) -> bool:
    """Return whether models are compared at the same x instead of with the first model."""
    lines, xs = zip(*positions, strict=True)
    return len(set(lines)) > 1 and any(x is not None for x in xs)


def measured_value(row: dict, measure: str) -> float | None:
    """Return the mean of a measure; for gradients, that of the first layer."""
    return row["gradients"][0] if measure == "gradients" else row[measure]


def format_value(measure: str, value: float) -> str:
    """Format the value of a measure with its unit."""
    if measure == "gap":
        return f"{100 * value:.1f} points"
    return f"{value:.3f} s" if measure == "seconds_per_epoch" else f"{value:.2g}"


RANGE_CLAUSES = {
    "gap": "the gap between training and validation accuracy is between",
    "seconds_per_epoch": "an epoch takes between",
    "gradients": "before training, the gradient in the first layer has a norm between",
}


def sentence(rows: list[dict], measure: str | None, x: str | None) -> str:
    """Return the result of a study in one sentence.

    Args:
        rows: One row per model, as returned by `summarize`.
        measure: The measure to report with accuracy, or None.
        x: The setting on the x axis, for example build.depth, or None.
    """
    has_lines = _has_lines((row["line"], row["x"]) for row in rows)
    seeds = len(rows[0]["runs"])
    groups: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if "verdict" not in row:
            continue
        points = f"{100 * row['difference']:+z.1f} points"
        if has_lines:
            item = f"{row['x']:g} ({points})"
        else:
            interval = f"{100 * row['difference_low']:+.1f}, {100 * row['difference_high']:+.1f}"
            item = f"{_with_accuracy(row)[:-1]}, {points} [{interval}])"
        groups.setdefault((row["line"] if has_lines else "", row["verdict"]), []).append(item)
    clauses = []
    for (line, word), items in groups.items():
        if has_lines and x:
            setting = x.split(".")[1].replace("_", " ")
            reference = f"{rows[0]['line']} at {setting} {_enumerate(items)}"
            clauses.append(f"{line} is {THAN[word]} {reference}")
        else:
            verb = "are" if len(items) > 1 else "is"
            clauses.append(f"{_enumerate(items)} {verb} {THAN[word]} {_with_accuracy(rows[0])}")
    if clauses:
        clauses[0] = f"in validation accuracy {clauses[0]}"
    clauses += [
        f"{row['diverged']} of {seeds} trainings of {row['model']} diverged"
        for row in rows
        if row["diverged"]
    ]
    if measure:
        values = [(measured_value(row, measure), row["model"]) for row in rows]
        if ranked := sorted((value, name) for value, name in values if value is not None):
            low, high = (
                f"{format_value(measure, value)} ({name})"
                for value, name in (ranked[0], ranked[-1])
            )
            clauses.append(f"{RANGE_CLAUSES[measure]} {low} and {high}")
    epochs = " or ".join(f"{n}" for n in dict.fromkeys(row["epochs"] for row in rows))
    return f"After {epochs} epochs, over {seeds} seeds, {'; '.join(clauses)}."


def _with_accuracy(row: dict) -> str:
    return f"{row['model']} ({100 * row['val_accuracy']:.1f} %)"


def _enumerate(items: list[str]) -> str:
    """Join items as in a sentence: a, b and c."""
    return ", ".join(items[:-1]) + " and " * (len(items) > 1) + items[-1]


def print_summary(question: str, rows: list[dict], measure: str | None) -> None:
    """Print the rows of a study as a table."""
    seeds = len(rows[0]["runs"])
    columns = [
        Column("model"),
        Column("train", numeric=True, drop=1),
        Column("validation", numeric=True),
        Column("difference", numeric=True),
        Column("interval", numeric=True, drop=3),
        Column("against", drop=2),
        Column("verdict"),
    ]
    if measure:
        columns.append(Column(LABELS[measure], numeric=True, drop=4))
    table = []
    for row in rows:
        cells = ["", "", "", "", "", "" if "against" in row else "reference"]
        if row["accuracy"] is not None:
            cells[:2] = f"{row['accuracy']:.4f}", f"{row['val_accuracy']:.4f}"
        if row["val_accuracy_sd"] is not None:
            cells[1] += f" ± {row['val_accuracy_sd']:.4f}"
        if "verdict" in row:
            interval = f"[{row['difference_low']:+.4f}, {row['difference_high']:+.4f}]"
            cells[2:] = f"{row['difference']:+.4f}", interval, row["against"], row["verdict"]
        if row["diverged"]:
            cells[5] = f"{row['diverged']} of {seeds} diverged"
        if measure:
            value = measured_value(row, measure)
            cells.append("" if value is None else format_value(measure, value))
        table.append([row["model"], *cells])
    print_table(columns, table, f"{question} ({seeds} seeds, {LEVEL:.0%} intervals)")
