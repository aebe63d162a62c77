"""Summarize the runs of a study as rows, one sentence and a table."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from scipy.stats import t

from pipeline.core.console import Column, print_table
from pipeline.stats.paired import LEVEL, PSEUDO_IMAGES
from pipeline.stats.verdict import THAN, verdict
from pipeline.trials.figure import LABELS


def paired(values: Sequence[float], reference: Sequence[float], images: int) -> dict:
    """Compare two models over the same seeds.

    Args:
        values: `(k,)` accuracies, k >= 2.
        reference: `(k,)` those of the other model, seed by seed.
        images: n, of which these are the accuracies.

    Returns:
        difference of the means with its interval, and a verdict: `better` or `worse` where the
        interval excludes 0, else `not distinguishable`. The interval is that of a paired t-test
        (Student 1908), with the variance that `PSEUDO_IMAGES` have among n + 2 images on top:
        it has a width where all seeds give the same difference, too. Degrees of freedom:
        Satterthwaite 1946.
    """
    # paired: a seed gives both the same training images in the same order
    gain = np.subtract(values, reference)
    mean, of_seeds = gain.mean(), gain.var(ddof=1) / len(gain)
    variance = of_seeds + np.square(PSEUDO_IMAGES).sum() / (images + len(PSEUDO_IMAGES)) ** 2
    with np.errstate(divide="ignore"):  # equal differences: infinitely many, a normal interval
        degrees = (len(gain) - 1) * (variance / of_seeds) ** 2
    half = t.ppf((1 + LEVEL) / 2, degrees) * np.sqrt(variance)
    return {
        "difference": float(mean),
        "difference_low": float(mean - half),
        "difference_high": float(mean + half),
        "verdict": verdict(mean, abs(mean) > half),
    }


def summarize(
    places: dict[str, tuple[str, Any]],
    epochs: dict[str, int],
    runs: dict[str, list],
    images: int,
) -> list[dict]:
    """Average over the seeds, and compare.

    A model with a diverged run is not compared: its remaining runs would be a biased sample.

    Args:
        places: Line and x of each model; x is None where the study has none.
        epochs: Of each model.
        runs: Of each model, as `measure.measure` returns them, seed by seed.
        images: That val_accuracy is measured on.

    Returns:
        A row for each model.
    """
    first = next(iter(runs))
    several = _several(places.values())
    rows = []
    for name, model_runs in runs.items():
        line, x = places[name]
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
        against = first
        if several:
            at_same_x = [other for other, place in places.items() if place == (places[first][0], x)]
            against = at_same_x[0] if at_same_x else name
        if against != name:
            row["against"] = against
            others = [run["val_accuracy"] for run in runs[against]]
            if None not in others and not row["diverged"]:
                row |= paired(accuracies, others, images)
        rows.append({**row, "runs": model_runs})
    return rows


def _several(places: Iterable[tuple[str, Any]]) -> bool:
    """Return whether models are compared at the same x instead of with the first model."""
    places_list = list(places)
    return len({line for line, _ in places_list}) > 1 and any(x is not None for _, x in places_list)


def stands_for(row: dict, measure: str) -> float | None:
    """Return the one number that stands for a measure: of gradients, that of the first layer."""
    return row["gradients"][0] if measure == "gradients" else row[measure]


def in_words(measure: str, value: float) -> str:
    if measure == "gap":
        return f"{100 * value:.1f} points"
    return f"{value:.3f} s" if measure == "seconds_per_epoch" else f"{value:.2g}"


BETWEEN = {
    "gap": "the gap between training and validation accuracy is between",
    "seconds_per_epoch": "an epoch takes between",
    "gradients": "before training, the gradient in the first layer has a norm between",
}


def sentence(rows: list[dict], measure: str | None, x: str | None) -> str:
    """Return the result in one sentence, generated from the rows."""
    several = _several((row["line"], row["x"]) for row in rows)
    seeds = len(rows[0]["runs"])
    groups: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if "verdict" not in row:
            continue
        points = f"{100 * row['difference']:+z.1f} points"
        if several:
            item = f"{row['x']:g} ({points})"
        else:
            interval = f"{100 * row['difference_low']:+.1f}, {100 * row['difference_high']:+.1f}"
            item = f"{_with_accuracy(row)[:-1]}, {points} [{interval}])"
        groups.setdefault((row["line"] if several else "", row["verdict"]), []).append(item)
    clauses = []
    for (line, word), items in groups.items():
        if several and x:
            setting = x.split(".")[1].replace("_", " ")
            than = f"{rows[0]['line']} at {setting} {_listed(items)}"
            clauses.append(f"{line} is {THAN[word]} {than}")
        else:
            are = "are" if len(items) > 1 else "is"
            than = _with_accuracy(rows[0])
            clauses.append(f"{_listed(items)} {are} {THAN[word]} {than}")
    if clauses:
        clauses[0] = f"in validation accuracy {clauses[0]}"
    clauses += [
        f"{row['diverged']} of {seeds} trainings of {row['model']} diverged"
        for row in rows
        if row["diverged"]
    ]
    if measure:
        values = {row["model"]: stands_for(row, measure) for row in rows}
        known = sorted((value, name) for name, value in values.items() if value is not None)
        ends = [f"{in_words(measure, value)} ({name})" for value, name in known]
        if known:
            clauses.append(f"{BETWEEN[measure]} {ends[0]} and {ends[-1]}")
    epochs = " or ".join(f"{n}" for n in dict.fromkeys(row["epochs"] for row in rows))
    return f"After {epochs} epochs, over {seeds} seeds, {'; '.join(clauses)}."


def _with_accuracy(row: dict) -> str:
    return f"{row['model']} ({100 * row['val_accuracy']:.1f} %)"


def _listed(items: list[str]) -> str:
    return ", ".join(items[:-1]) + " and " * (len(items) > 1) + items[-1]


def show(question: str, rows: list[dict], measure: str | None) -> None:
    """Print the rows as a table."""
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
            value = stands_for(row, measure)
            cells.append("" if value is None else in_words(measure, value))
        table.append([row["model"], *cells])
    print_table(columns, table, f"{question} ({seeds} seeds, {LEVEL:.0%} intervals)")
