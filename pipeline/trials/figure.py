"""Draw the figure of a study: validation accuracy and its other measure."""

import textwrap

import numpy as np

from pipeline.reporting.drawing import (
    Axes,
    Figure,
    MaxNLocator,
    NullFormatter,
    NullLocator,
    PercentFormatter,
    plt,
)

LABELS = {
    "val_accuracy": "validation accuracy",
    "gap": "training − validation accuracy, points",
    "seconds_per_epoch": "seconds per epoch",
    "gradients": "gradient norm, first layer, at the start",
}
FACTOR = 10  # between smallest and largest x, from which on the axis is logarithmic


def draw(question: str, rows: list[dict], measure: str | None, x: str | None) -> Figure:
    """Draw validation accuracy, and a measure next to it.

    Args:
        question: The title.
        rows: Of `study.summarize`.
        measure: A key of LABELS, or None: accuracy alone.
        x: The setting to draw over, or None: a column for each model.
    """
    measures = ["val_accuracy", *([measure] if measure else [])]
    figure, panels = plt.subplots(
        1, len(measures), figsize=(1 + 5.5 * len(measures), 4.8), squeeze=False
    )
    for axes, key in zip(panels[0], measures, strict=True):
        if key == "gradients" and x is None:
            layers(axes, rows)
        elif x is None:
            columns(axes, rows, key)
        else:
            lines(axes, rows, key, x)
        axes.grid(alpha=0.3)
        axes.set_title(axes.get_ylabel(), fontsize=11)
        axes.set_ylabel("")
        if key == "val_accuracy":
            axes.yaxis.set_major_formatter(PercentFormatter(1))
        elif key == "gap":
            axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=None))
        elif key == "seconds_per_epoch":
            axes.set_ylim(bottom=0)
        else:
            axes.set_yscale("log")
    handles, labels = panels[0, -1].get_legend_handles_labels()
    if len(handles) > 1:  # beside, since lines fill the frame
        panels[0, -1].legend(handles, labels, loc="upper left", bbox_to_anchor=(1, 1))
    first = rows[0]
    dots = f"A dot is one of {len(first['runs'])} trainings of {first['epochs']} epochs, "
    dots += "a line is their mean"
    figure.suptitle(f"{textwrap.fill(question, 90)}\n{dots}", fontsize=12)
    figure.tight_layout()
    return figure


def values(row: dict, key: str) -> list[float]:
    """Return a measure of every run that has it; of gradients, that of the first layer."""
    numbers = [run[key][0] if key == "gradients" else run[key] for run in row["runs"]]
    return [value for value in numbers if value is not None]


def columns(axes: Axes, rows: list[dict], key: str) -> None:
    names = []
    for number, row in enumerate(rows):
        numbers = values(row, key)
        axes.plot(beside(number, 0.12, len(numbers)), numbers, "o", color=f"C{number}", alpha=0.6)
        if numbers:
            axes.hlines(np.mean(numbers), number - 0.3, number + 0.3, color=f"C{number}", lw=2)
        lost = f"\n({row['diverged']} diverged)" if row["diverged"] else ""
        names.append(row["model"] + lost)
    rotated = len("".join(names)) > 45
    axes.set_xticks(
        range(len(names)), names, rotation=30 if rotated else 0, ha="right" if rotated else "center"
    )
    axes.set(ylabel=LABELS[key], xlim=(-0.5, len(names) - 0.5))


def beside(center: float, width: float, count: int) -> np.ndarray:
    """Return so many places around a center, so that equal values do not hide each other."""
    return center + np.linspace(-width, width, count) if count > 1 else np.full(count, center)


def lines(axes: Axes, rows: list[dict], key: str, x: str) -> None:
    places = sorted({row["x"] for row in rows})
    log = places[0] > 0 and places[-1] / places[0] > FACTOR
    for number, line in enumerate(dict.fromkeys(row["line"] for row in rows)):
        own = sorted((row for row in rows if row["line"] == line), key=lambda row: row["x"])
        for row in own:
            numbers = values(row, key)
            axes.plot([row["x"]] * len(numbers), numbers, "o", color=f"C{number}", alpha=0.4, ms=4)
        known = [row for row in own if values(row, key)]
        means = [np.mean(values(row, key)) for row in known]
        axes.plot([row["x"] for row in known], means, color=f"C{number}", lw=2, label=line)
    if log:
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xticks(places, [f"{place:g}" for place in places])
    axes.set(xlabel=x.split(".")[1].replace("_", " "), ylabel=LABELS[key])


def layers(axes: Axes, rows: list[dict]) -> None:
    for number, row in enumerate(rows):
        for run in row["runs"]:
            axes.plot(range(1, len(run["gradients"]) + 1), _gaps(run["gradients"]),
                      "o", color=f"C{number}", alpha=0.4, ms=4)  # fmt: skip
        axes.plot(range(1, len(row["gradients"]) + 1), _gaps(row["gradients"]),
                  color=f"C{number}", lw=2, label=row["model"])  # fmt: skip
    axes.set(
        xlabel="layer, from input to output", ylabel="gradient norm of each layer, at the start"
    )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _gaps(norms: list[float | None]) -> list[float]:
    return [np.nan if norm is None else norm for norm in norms]
