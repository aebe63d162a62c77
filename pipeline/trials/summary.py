"""Summary: summarize the runs of a study as rows, one sentence and a table."""

from collections.abc import Iterable
from operator import itemgetter
from typing import Any

import numpy as np

from pipeline.core.console import Column, print_table
from pipeline.core.text import decimal, signed
from pipeline.stats import crossed
from pipeline.stats.correctness import correct_table
from pipeline.trials.figure import LABELS, format_epochs


def summarize(
    positions: dict[str, tuple[str, Any]],
    epochs: dict[str, int],
    runs: dict[str, list],
    margin: float,
) -> list[dict]:
    """Average each model over its runs, and compare it with its reference model.

    The reference is the first model; in a study of several lines, it is the model of the first
    line at the same x. A model with a diverged run is not compared: its remaining runs would be a
    biased sample.

    Args:
        positions: Line and x of each model; x is None if the study has no x.
        epochs: Number of epochs of each model.
        runs: Runs of each model, one per seed, as returned by `measure.measure`.
        margin: Difference in accuracy that does not matter, in (0, 1).

    Returns:
        One row per model.
    """
    finished = {name: [run for run in runs[name] if "accuracy" in run] for name in runs}
    compared = {name for name in runs if len(finished[name]) == len(runs[name])}
    against = _references(positions)
    comparisons = crossed.compare_all(
        {name: correct_table(runs[name]) for name in compared},
        {name: other for name, other in against.items() if {name, other} <= compared},
        margin,
        "validation",
    )
    rows = []
    for name, (line, x) in positions.items():
        row: dict[str, Any] = {"model": name, "line": line, "x": x}
        row["epochs"] = epochs[name]
        row["diverged"] = len(runs[name]) - len(finished[name])
        for key in ("accuracy", "val_accuracy", "gap", "seconds_per_epoch"):
            values = [run[key] for run in finished[name]]
            row[key] = float(np.mean(values)) if values else None
        accuracies = [run["val_accuracy"] for run in finished[name]]
        row["val_accuracy_sd"] = float(np.std(accuracies, ddof=1)) if len(accuracies) > 1 else None
        if accuracies:
            interval = crossed.mean_interval(correct_table(finished[name]))
            row["val_accuracy_low"], row["val_accuracy_high"] = map(float, interval[1:3])
        by_layer = zip(*(run["gradients"] for run in runs[name]), strict=True)
        row["gradients"] = [None if None in norms else float(np.mean(norms)) for norms in by_layer]
        if name in against:
            row["against"] = against[name]
        rows.append({**row, **comparisons.get(name, {}), "runs": runs[name]})
    return rows


def _references(positions: dict[str, tuple[str, Any]]) -> dict[str, str]:
    """Return the reference of each model that has one."""
    first = next(iter(positions))
    if not _has_lines(positions.values()):
        return {name: first for name in positions if name != first}
    first_line = positions[first][0]
    at_x = {x: name for name, (line, x) in positions.items() if line == first_line}
    return {
        name: at_x[x] for name, (line, x) in positions.items() if line != first_line and x in at_x
    }


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
        return f"{decimal(100 * value)} points"
    return f"{value:.3f} s" if measure == "seconds_per_epoch" else f"{value:.2g}"


RANGE_CLAUSES = {
    "gap": "the gap between training and validation accuracy is between",
    "seconds_per_epoch": "an epoch takes between",
    "gradients": "before training, the gradient in the first layer has a norm between",
}


def sentence(rows: list[dict], measure: str | None, x: str | None, margin: float) -> str:
    """Return the result of a study in one sentence.

    Args:
        rows: One row per model, as returned by `summarize`.
        measure: The measure to report with accuracy, or None.
        x: The setting on the x axis, for example build.depth, or None.
        margin: As for `summarize`.
    """
    seeds = len(rows[0]["runs"])
    clauses = _comparison_clauses(rows, x, margin)
    if clauses:
        clauses[0] = f"in validation accuracy, {clauses[0]}"
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
    if x == "train.train_size":
        clauses += _learning_curve_clauses(rows, margin)
    return f"After {format_epochs(rows)}, {seeds} trainings each: {'; '.join(clauses)}."


def _learning_curve_clauses(rows: list[dict], margin: float) -> list[str]:
    """Return for each line whether its largest number of images is better than the one before."""
    clauses = []
    lines = list(dict.fromkeys(row["line"] for row in rows))
    for line in lines:
        curve = sorted((row for row in rows if row["line"] == line), key=itemgetter("x"))
        if len(curve) < 2 or any(row["diverged"] for row in curve[-2:]):
            continue
        tables = {row["model"]: correct_table(row["runs"]) for row in curve[-2:]}
        fewer, more = tables
        result = crossed.compare_all(tables, {more: fewer}, margin, "validation")[more]
        sizes = " to ".join(_format_size(row["x"]) for row in curve[-2:])
        clause = {
            "better": "more images would probably help",
            "worse": "more images did not help",
            "as good as": f"more images would hardly help, within {crossed.points(margin)}",
            "cannot tell": "this study cannot tell whether more images would help",
        }[result["verdict"]]
        subject = f" {line}" if len(lines) > 1 else ""
        clauses.append(f"{clause}{subject}: from {sizes} of the training images, {_change(result)}")
    return clauses


def _format_size(size: int | float) -> str:
    """Return a value of train.train_size: a number of images, or a share of them."""
    return f"{size:,}" if isinstance(size, int) else f"{100 * size:g} %"


def _comparison_clauses(rows: list[dict], x: str | None, margin: float) -> list[str]:
    """Return a clause for each verdict, and for each line if models are compared at the same x."""
    has_lines = _has_lines((row["line"], row["x"]) for row in rows)
    groups: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if "verdict" in row:
            group = (row["line"] if has_lines else "", row["verdict"])
            item = f"{row['x']:g} (" if has_lines else f"{row['model']} ({_accuracy(row)}, "
            groups.setdefault(group, []).append(f"{item}{_change(row)})")
    clauses = []
    for (line, verdict), items in groups.items():
        if has_lines and x:
            setting = x.split(".")[1].replace("_", " ")
            subject, reference = line, f"{rows[0]['line']} at {setting} {_enumerate(items)}"
        else:
            subject, reference = _enumerate(items), f"{rows[0]['model']} ({_accuracy(rows[0])})"
        verb = "is" if line or len(items) == 1 else "are"
        clauses.append({
            "better": f"{subject} {verb} better than {reference}",
            "worse": f"{subject} {verb} worse than {reference}",
            "as good as":
                f"{subject} {verb} as good as {reference}, within {crossed.points(margin)}",
            "cannot tell": f"this study cannot tell {subject} from {reference}",
        }[verdict])  # fmt: skip
    return clauses


def _accuracy(row: dict) -> str:
    return f"{100 * row['val_accuracy']:.1f} %"


def _change(row: dict) -> str:
    keys = ("difference", "difference_low", "difference_high")
    difference, low, high = (signed(100 * row[key]) for key in keys)
    text = f"{difference} points [{low}, {high}]"
    # p is adjusted for the number of comparisons and the interval is not, so they may disagree
    if row["verdict"] == "cannot tell" and (
        row["difference_low"] > 0 or row["difference_high"] < 0
    ):
        text += f", adjusted p {row['p_holm']:.2g}"
    return text


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
            interval = f"[{signed(row['difference_low'], 4)}, {signed(row['difference_high'], 4)}]"
            cells[2:] = signed(row["difference"], 4), interval, row["against"], row["verdict"]
        if row["diverged"]:
            cells[5] = f"{row['diverged']} of {seeds} diverged"
        if measure:
            value = measured_value(row, measure)
            cells.append("" if value is None else format_value(measure, value))
        table.append([row["model"], *cells])
    print_table(
        columns, table, f"{question} ({seeds} trainings each, {crossed.LEVEL:.0%} intervals)"
    )
