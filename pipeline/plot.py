"""Plot: the pictures, one PNG each.

Reads   data/arrays/{train,test}/…, data/arrays/info.json, and of every model
        plots/history/MODEL.csv and plots/predictions/MODEL.csv
Writes  plots/samples.png            training images with class names
        plots/learning_curves.png    train and validation accuracy and loss of all models
        plots/class_accuracy.png     test accuracy of each class, models side by side
        plots/confusion/MODEL.png    confusion matrix
        plots/examples/MODEL.png     5×5 test images, true and predicted, wrong ones marked
Params  models, finetune
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline import arrays, tables
from pipeline.drawing import Axes, Figure, LogLocator, NullFormatter, PercentFormatter, plt
from pipeline.errors import run
from pipeline.files import read_json, replacing
from pipeline.params import load
from pipeline.preprocessing import Preprocessing

GRID = 5  # images a side
READABLE = 20  # classes up to which every cell and tick is labelled
WRONG = "#d62728"

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


def samples(images: Rows, labels: np.ndarray, kept: Preprocessing) -> Figure:
    figure, grid = plt.subplots(GRID, GRID, figsize=(8, 8.4), layout="constrained")
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, row in zip(grid.flat, pick(labels, GRID * GRID), strict=False):
        axes.set_axis_on()
        draw_image(axes, kept.visible(images[row]), kept.classes[labels[row]])
    figure.suptitle("Training images")
    return figure


def learning_curves(histories: dict[str, pd.DataFrame]) -> Figure:
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.5))
    for number, (name, history) in enumerate(histories.items()):
        color = f"C{number}"
        for axes, column in ((left, "accuracy"), (right, "loss")):
            epoch, train, validation = (history[c] for c in ("epoch", column, f"val_{column}"))
            axes.plot(epoch, train, ".--", color=color, label=f"{name}, train")
            axes.plot(epoch, validation, ".-", color=color, label=f"{name}, validation")
    left.set(xlabel="epoch", ylabel="accuracy")
    left.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    right.set(xlabel="epoch", ylabel="loss (nats)", yscale="log")
    # plain numbers: with parse_math off, those of a log axis would show as TeX
    right.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    right.yaxis.set_major_formatter("{x:g}")
    right.yaxis.set_minor_formatter(NullFormatter())
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
    left.legend()
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
    figure.colorbar(
        image, label="share of the actual class", format=PercentFormatter(1, decimals=0)
    )
    axes.set(xlabel="predicted", ylabel="actual", title=f"{name}: confusion matrix, test set")
    if len(classes) <= READABLE:
        axes.set_xticks(range(len(classes)), classes, rotation=45, ha="right")
        axes.set_yticks(range(len(classes)), classes)
        for (row, column), count in np.ndenumerate(counts):
            if count:
                color = "white" if share[row, column] > 0.5 else "black"
                axes.text(
                    column, row, str(count), ha="center", va="center", fontsize=8, color=color
                )
    return figure


def examples(images: Rows, predictions: pd.DataFrame, kept: Preprocessing, name: str) -> Figure:
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
    figure.suptitle(f"{name}: {len(rows)} test images, {mistakes} wrong (marked red)")
    return figure


def class_accuracy(predictions: dict[str, pd.DataFrame], classes: list[str]) -> Figure:
    figure, axes = plt.subplots(figsize=(max(8, min(0.9 * len(classes), 30)), 4.5))
    width = 0.8 / len(predictions)
    for number, (name, table) in enumerate(predictions.items()):
        right = table["actual"] == table["predicted"]
        share = right.groupby(table["actual"]).mean().reindex(classes)
        axes.bar(np.arange(len(classes)) + (number + 0.5) * width - 0.4, share, width, label=name)
    axes.set(ylabel="accuracy", title="Test accuracy of each class")
    rotation = 0 if max(map(len, classes)) * len(classes) < 90 else 45
    axes.set_xticks(
        range(len(classes)), classes, rotation=rotation, ha="right" if rotation else "center"
    )
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))  # beside, since bars fill the frame
    axes.grid(axis="y", alpha=0.3)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a PNG, without the version of matplotlib in it, and free the figure."""
    with replacing(path) as beside:
        figure.savefig(
            beside, format="png", dpi=120, bbox_inches="tight", metadata={"Software": None}
        )
    plt.close(figure)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    inputs = ("arrays", "history", "predictions")
    outputs = ("samples", "learning-curves", "class-accuracy", "confusion", "examples")
    for path in (*inputs, *outputs):
        parser.add_argument(f"--{path}", type=Path, required=True)
    args = parser.parse_args(argv)
    params = load()

    kept = Preprocessing.of(read_json(args.arrays / "info.json"))
    histories = {name: tables.read(args.history / f"{name}.csv") for name in params.all_models}
    predictions = {
        name: tables.read(args.predictions / f"{name}.csv") for name in params.all_models
    }
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
