"""Plot: the pictures, one PNG each.

Reads   data/arrays/{train,test}/…, data/arrays/info.json, and of every model
        plots/history/MODEL.csv and plots/predictions/MODEL.csv
Writes  plots/samples.png            training images with class names
        plots/learning_curves.png    train and validation accuracy and loss of all models
        plots/class_accuracy.png     test accuracy of each class, or of the lowest, by model
        plots/confusion/MODEL.png    confusion matrix
        plots/examples/MODEL.png     5×5 test images, true and predicted, wrong ones marked
Params  models, finetune, reference
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.config.params import load
from pipeline.core.errors import run
from pipeline.core.files import read_json
from pipeline.data import arrays, tables
from pipeline.data.preprocessor import Preprocessor
from pipeline.reporting import chart_style
from pipeline.reporting.drawing import (
    Axes,
    Figure,
    FixedLocator,
    Line2D,
    NullFormatter,
    NullLocator,
    PercentFormatter,
    plt,
    save,
)

GRID = 5  # images a side
WRONG = "#d62728"
PERCENT = PercentFormatter(1, symbol="\N{NO-BREAK SPACE}%")  # as many decimals as ticks need

Rows = arrays.Images | np.ndarray


def draw_image(axes: Axes, image: np.ndarray, title: str, color: str = "black") -> None:
    axes.imshow(image, cmap="gray", vmin=0, vmax=1)  # the colour map is for one channel only
    axes.set_title(title, fontsize=9, color=color)
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(edgecolor=color, linewidth=3 if color == WRONG else 0.5)


def pick(labels: np.ndarray, count: int) -> np.ndarray:
    """Return rows that take the classes in turn: first each one's first image, and so on."""
    turn = np.empty(len(labels), int)
    for label in np.unique(labels):
        own = labels == label
        turn[own] = np.arange(own.sum())
    return np.lexsort((labels, turn))[:count]


def samples(images: Rows, labels: np.ndarray, kept: Preprocessor) -> Figure:
    figure, grid = plt.subplots(GRID, GRID, figsize=(8, 8.4), layout="constrained")
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, row in zip(grid.flat, pick(labels, GRID * GRID), strict=False):
        axes.set_axis_on()
        draw_image(axes, kept.visible(images[row]), kept.classes[labels[row]])
    figure.suptitle("Training images")
    return figure


def legend(names: list[str], *more: Line2D) -> list[Line2D]:
    """Return a mark for each model, with its name."""
    return [
        Line2D(
            [],
            [],
            color=style.colour,
            marker=chart_style.SHAPES[style.shape],
            linestyle="none",
            label=chart_style.shortened(name),
        )
        for name, style in chart_style.styles(names).items()
    ] + list(more)


def beside(figure: Figure, handles: list[Line2D], columns: int) -> None:
    """Put a legend under the axes, in columns that even long names fill."""
    figure.legend(handles=handles, loc="outside lower center", ncols=min(columns, len(handles)))


def learning_curves(histories: dict[str, pd.DataFrame]) -> Figure:
    names = list(histories)
    columns = 4
    lines = -(-(len(names) + 2) // columns)
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(12, 4.3 + 0.25 * lines), layout="constrained"
    )
    for name, style in chart_style.styles(names).items():
        history = histories[name]
        marker = chart_style.SHAPES[style.shape]
        for axes, column in ((left, "accuracy"), (right, "loss")):
            for part, values, line in (
                ("train", history[column], "--"),
                ("validation", history[f"val_{column}"], "-"),
            ):
                axes.plot(
                    history["epoch"], values, line,
                    color=style.colour, marker=marker, markersize=3.5, label=f"{name}, {part}",
                )  # fmt: skip
    left.set(xlabel="epoch", ylabel="accuracy")
    left.yaxis.set_major_formatter(PERCENT)
    right.set(xlabel="epoch", ylabel="loss (nats)")
    losses = pd.concat([history[["loss", "val_loss"]] for history in histories.values()])
    ticks = chart_style.loss_ticks(losses.to_numpy().ravel().tolist())
    if ticks:
        right.set(ylabel="loss (nats), logarithmic", yscale="log")
        right.yaxis.set_major_locator(FixedLocator(ticks))
        # plain numbers: with parse_math off, those of a log axis would show as TeX
        right.yaxis.set_major_formatter("{x:g}")
        right.yaxis.set_minor_locator(NullLocator())
        right.yaxis.set_minor_formatter(NullFormatter())
    epochs = max(int(history["epoch"].max()) for history in histories.values())
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.xaxis.set_major_locator(FixedLocator(chart_style.epoch_ticks(epochs)))
    solid = Line2D([], [], color="black", linestyle="-", label="validation")
    dashed = Line2D([], [], color="black", linestyle="--", label="train")
    beside(figure, legend(names, solid, dashed), columns)
    return figure


def confusion(predictions: pd.DataFrame, classes: list[str], name: str) -> Figure:
    counts = (
        pd.crosstab(predictions["actual"], predictions["predicted"])
        .reindex(index=classes, columns=classes, fill_value=0)
        .to_numpy()
    )  # (actual, predicted)
    totals = counts.sum(axis=1, keepdims=True)
    share = counts / np.maximum(totals, 1)
    side = min(5 + 0.35 * len(classes), 16)
    figure, axes = plt.subplots(figsize=(side + 1, side))
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, label="share of the actual class", format=PERCENT)
    number = "" if len(classes) <= chart_style.READABLE else ": number of the class, from 0"
    axes.set(xlabel=f"predicted{number}", ylabel=f"actual{number}")
    axes.set_title(f"{chart_style.shortened(name)}: confusion matrix, test set")
    if len(classes) <= chart_style.READABLE:
        names = [chart_style.shortened(each) for each in classes]
        axes.set_xticks(range(len(classes)), names, rotation=45, ha="right")
        axes.set_yticks(range(len(classes)), names)
        for (row, column), count in np.ndenumerate(counts):
            if count:
                color = "white" if share[row, column] > 0.5 else "black"
                axes.text(
                    column, row, str(count), ha="center", va="center", fontsize=8, color=color
                )
    return figure


def examples(images: Rows, predictions: pd.DataFrame, kept: Preprocessor, name: str) -> Figure:
    figure, grid = plt.subplots(GRID, GRID, figsize=(9, 10.5), layout="constrained")
    for axes in grid.flat:
        axes.set_axis_off()
    # evenly spaced and not chosen by result: the picture must not look better than the model
    rows = np.unique(np.linspace(0, len(images) - 1, GRID * GRID).astype(int))
    shown = predictions.iloc[rows]
    for axes, row, actual, predicted in zip(
        grid.flat, rows, shown["actual"], shown["predicted"], strict=False
    ):
        wrong = actual != predicted
        title = f"true {actual}\npredicted {predicted}" + (" ✗" if wrong else "")
        axes.set_axis_on()
        draw_image(axes, kept.visible(images[row]), title, WRONG if wrong else "black")
    mistakes = int((shown["actual"] != shown["predicted"]).sum())
    wrong = f"{mistakes} wrong (marked red)" if mistakes else "none wrong"
    figure.suptitle(f"{chart_style.shortened(name)}: {len(rows)} test images, {wrong}")
    return figure


def class_accuracy(predictions: dict[str, pd.DataFrame], classes: list[str]) -> Figure:
    shares = chart_style.class_accuracy(predictions, classes)
    columns, names = 3, list(predictions)
    step = max(0.32, 0.07 * len(names) + 0.1)  # inches: a line for each model
    height = min(1.5 + step * len(shares), 14) + 0.25 * -(-len(names) // columns)
    figure, axes = plt.subplots(figsize=(9, height), layout="constrained")
    for number, (name, style) in enumerate(chart_style.styles(names).items()):
        y = np.arange(len(shares)) + (number + 0.5) / len(names) * 0.8 - 0.4
        marker = chart_style.SHAPES[style.shape]
        axes.plot(shares[name], y, marker, color=style.colour, label=name, markersize=5)
    axes.set(xlabel="accuracy", title=chart_style.class_accuracy_title(classes))
    axes.set_yticks(range(len(shares)), [chart_style.shortened(each) for each in shares.index])
    axes.set_yticks(np.arange(len(shares) + 1) - 0.5, minor=True)  # between the classes
    axes.set_ylim(len(shares) - 0.5, -0.5)
    axes.tick_params(axis="y", which="both", length=0)
    axes.xaxis.set_major_formatter(PERCENT)
    axes.grid(axis="x", alpha=0.3)
    axes.grid(axis="y", which="minor", alpha=0.3)
    beside(figure, legend(names), columns)
    return figure


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    inputs = ("arrays", "history", "predictions")
    outputs = ("samples", "learning-curves", "class-accuracy", "confusion", "examples")
    for path in (*inputs, *outputs):
        parser.add_argument(f"--{path}", type=Path, required=True)
    args = parser.parse_args(argv)
    params = load()

    kept = Preprocessor.of(read_json(args.arrays / "info.json"))
    # in the order of metrics/comparison.json
    names = sorted(params.all_models, key=lambda name: name != params.reference)
    histories = {name: tables.read(args.history / f"{name}.csv") for name in names}
    predictions = {name: tables.read(args.predictions / f"{name}.csv") for name in names}
    images, labels = arrays.load(args.arrays / "train")
    save(samples(images, labels, kept), args.samples)
    save(learning_curves(histories), args.learning_curves)
    save(class_accuracy(predictions, kept.classes), args.class_accuracy)
    images, _ = arrays.load(args.arrays / "test")
    for name, table in predictions.items():
        save(confusion(table, kept.classes, name), args.confusion / f"{name}.png")
        save(examples(images, table, kept, name), args.examples / f"{name}.png")
    print(f"plot: {3 + 2 * len(predictions)} pictures -> {args.samples.parent}")


if __name__ == "__main__":
    run(main)
