"""Figure: draw the validation accuracy of a study, and one more measure."""

import textwrap
from operator import itemgetter

import numpy as np

from pipeline.core.text import counted
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
    "gradients": "gradient norm, first layer, before training",
}
LOG_AXIS_RATIO = 10  # the x axis is logarithmic if the largest x exceeds the smallest by more


def draw(question: str, rows: list[dict], measure: str | None, x: str | None) -> Figure:
    """Draw the validation accuracy of each model, and optionally a second measure next to it.

    Args:
        question: Title of the figure.
        rows: One row per model, as returned by `summary.summarize`.
        measure: A key of LABELS, or None to draw only the accuracy.
        x: The setting on the x axis, for example build.depth, or None for one column per model.
    """
    measures = ["val_accuracy", *([measure] if measure else [])]
    figure, panels = plt.subplots(
        1, len(measures), figsize=(1 + 5.5 * len(measures), 4.8), squeeze=False
    )
    for axes, key in zip(panels[0], measures, strict=True):
        if key == "gradients" and x is None:
            _draw_gradients(axes, rows)
        elif x is None:
            _draw_columns(axes, rows, key)
        else:
            _draw_lines(axes, rows, key, x)
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
            # The default formatter writes TeX, which stays as it is while parse_math is off.
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
    handles, labels = panels[0, -1].get_legend_handles_labels()
    if len(handles) > 1:  # outside, since lines may fill the axes
        panels[0, -1].legend(handles, labels, loc="upper left", bbox_to_anchor=(1, 1))
    caption = f"Each dot is one of {len(rows[0]['runs'])} trainings of {format_epochs(rows)}, "
    caption += "each line is their mean" + ", each band its 95 % interval" * (x is not None)
    figure.suptitle(f"{textwrap.fill(question, 90)}\n{caption}", fontsize=12)
    figure.tight_layout()
    return figure


def format_epochs(rows: list[dict]) -> str:
    """Return the numbers of epochs of all models: 20 epochs, 10 or 20 epochs, 10 to 40 epochs."""
    *fewer, most = sorted({row["epochs"] for row in rows})
    first = f"{fewer[0]} {'or' if len(fewer) == 1 else 'to'} " if fewer else ""
    return first + counted(most, "epoch")


def _finite_values(row: dict, key: str) -> list[float]:
    """Return a measure of each run that has it; for gradients, the norm of the first layer."""
    values = [run[key][0] if key == "gradients" else run.get(key) for run in row["runs"]]
    return [value for value in values if value is not None]


def _draw_columns(axes: Axes, rows: list[dict], key: str) -> None:
    names = []
    for number, row in enumerate(rows):
        values = _finite_values(row, key)
        axes.plot(spread(number, 0.12, len(values)), values, "o", color=f"C{number}", alpha=0.6)
        if values:
            axes.hlines(np.mean(values), number - 0.3, number + 0.3, color=f"C{number}", lw=2)
        diverged = f"\n({row['diverged']} diverged)" if row["diverged"] else ""
        names.append(row["model"] + diverged)
    rotated = len("".join(names)) > 45
    axes.set_xticks(
        range(len(names)), names, rotation=30 if rotated else 0, ha="right" if rotated else "center"
    )
    axes.set(ylabel=LABELS[key], xlim=(-0.5, len(names) - 0.5))


def spread(center: float, width: float, count: int) -> np.ndarray:
    """Return `count` x positions around a center, so that equal values do not hide each other."""
    return center + np.linspace(-width, width, count) if count > 1 else np.full(count, center)


def _draw_lines(axes: Axes, rows: list[dict], key: str, x: str) -> None:
    for number, line in enumerate(dict.fromkeys(row["line"] for row in rows)):
        xs, means, lows, highs = [], [], [], []
        for row in sorted((row for row in rows if row["line"] == line), key=itemgetter("x")):
            values = _finite_values(row, key)
            axes.plot([row["x"]] * len(values), values, "o", color=f"C{number}", alpha=0.4, ms=4)
            if values:
                xs.append(row["x"])
                means.append(np.mean(values))
                lows.append(row["val_accuracy_low"])
                highs.append(row["val_accuracy_high"])
        axes.plot(xs, means, color=f"C{number}", lw=2, label=line)
        if key == "val_accuracy":
            axes.fill_between(xs, lows, highs, color=f"C{number}", alpha=0.15, lw=0)
    ticks = sorted({row["x"] for row in rows})
    if ticks[0] > 0 and ticks[-1] / ticks[0] > LOG_AXIS_RATIO:
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set(xlabel=x.split(".")[1].replace("_", " "), ylabel=LABELS[key])


def _draw_gradients(axes: Axes, rows: list[dict]) -> None:
    for number, row in enumerate(rows):
        for run in row["runs"]:
            axes.plot(range(1, len(run["gradients"]) + 1), _with_gaps(run["gradients"]),
                      "o", color=f"C{number}", alpha=0.4, ms=4)  # fmt: skip
        axes.plot(range(1, len(row["gradients"]) + 1), _with_gaps(row["gradients"]),
                  color=f"C{number}", lw=2, label=row["model"])  # fmt: skip
    axes.set(
        xlabel="layer, from input to output", ylabel="gradient norm of each layer, before training"
    )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _with_gaps(norms: list[float | None]) -> list[float]:
    """Return the norms with NaN in place of None, which matplotlib draws as a gap."""
    return [np.nan if norm is None else norm for norm in norms]
