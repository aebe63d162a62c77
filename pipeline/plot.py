"""Plot: draw samples, learning curves, confusion matrices and examples as PNG files.

Reads   data/arrays/{train,test}/…, data/arrays/info.json; for each model
        plots/history/MODEL/SEED.csv, data/predictions/MODEL/SEED.parquet and
        metrics/test/MODEL.json
Writes  plots/samples.png            training images with class names
        plots/learning_curves.csv    model, seed, split, epoch, accuracy, loss of all trainings
        plots/learning_curves.png    training and validation accuracy and loss of all models
        plots/test_accuracy.png      test accuracy of each training, with the mean and its interval
        plots/class_accuracy.png     test accuracy of each class (or the 20 lowest) and model
        plots/confusion/MODEL.png    confusion matrix of all trainings
        plots/examples/MODEL.png     5×5 test images with id, true and predicted class, errors in
                                     red, of the first training
Params  compare, seeds
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.config.params import load
from pipeline.core.errors import one_line, run
from pipeline.core.files import atomic_path, read_json
from pipeline.core.text import counted
from pipeline.data import arrays, tables
from pipeline.data.predictions import read_table
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

GRID = 5  # images per side
ERROR_COLOUR = "#d62728"
PERCENT = PercentFormatter(1, symbol="\N{NO-BREAK SPACE}%")  # decimals as needed

Rows = arrays.Images | np.ndarray


def draw_image(axes: Axes, image: np.ndarray, title: str, color: str = "black") -> None:
    """Draw an image `(h, w, c)` in [0, 1] with a title and a frame."""
    axes.imshow(image, cmap="gray", vmin=0, vmax=1)  # cmap applies to one channel only
    axes.set_title(title, fontsize=9, color=color)
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(edgecolor=color, linewidth=3 if color == ERROR_COLOUR else 0.5)


def alternate_classes(labels: np.ndarray, count: int) -> np.ndarray:
    """Return `(count,)` row numbers: the first image of each class, then the second, and so on."""
    position = np.empty(len(labels), int)  # of an image within its class
    for label in np.unique(labels):
        in_class = labels == label
        position[in_class] = np.arange(in_class.sum())
    return np.lexsort((labels, position))[:count]


def samples(images: Rows, labels: np.ndarray, preprocessor: Preprocessor) -> Figure:
    """Draw training images with their class names, alternating between classes."""
    figure, grid = plt.subplots(GRID, GRID, figsize=(8, 8.4), layout="constrained")
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, row in zip(grid.flat, alternate_classes(labels, GRID * GRID), strict=False):
        axes.set_axis_on()
        draw_image(axes, preprocessor.visible(images[row]), preprocessor.classes[labels[row]])
    figure.suptitle("Training images")
    return figure


def legend_handles(names: list[str]) -> list[Line2D]:
    """Return a mark with a label for each model."""
    return [
        Line2D(
            [],
            [],
            color=style.colour,
            marker=chart_style.SHAPES[style.shape],
            linestyle="none",
            label=chart_style.shorten(name),
        )
        for name, style in chart_style.styles(names).items()
    ]


def add_legend(figure: Figure, handles: list[Line2D], columns: int) -> None:
    """Place a legend below the axes, where it covers no data."""
    figure.legend(handles=handles, loc="outside lower center", ncols=min(columns, len(handles)))


def read_histories(folder: Path, models: list[str], seeds: list[int]) -> pd.DataFrame:
    """Read MODEL/SEED.csv of all trainings as one table: a row for each split and epoch."""
    parts = []
    for model in models:
        for seed in seeds:
            history = tables.read(folder / model / f"{seed}.csv")
            for split, prefix in (("train", ""), ("validation", "val_")):
                if f"{prefix}loss" not in history:  # there are no validation images
                    continue
                columns = {
                    "epoch": history["epoch"],
                    "accuracy": history[f"{prefix}accuracy"],
                    "loss": history[f"{prefix}loss"],
                }
                parts.append(
                    pd.DataFrame({"model": model, "seed": seed, "split": split, **columns})
                )
    return pd.concat(parts, ignore_index=True)


def learning_curves(histories: pd.DataFrame) -> Figure:
    """Draw accuracy and loss of all models over epochs, in training and validation, if any.

    Lines are means over the trainings of a model; bands reach from the lowest to the highest.
    """
    curves = chart_style.mean_curves(histories)
    names = list(curves["model"].unique())
    columns = 4
    legend_rows = -(-(len(names) + 2) // columns)
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(12, 4.3 + 0.25 * legend_rows), layout="constrained"
    )
    for name, style in chart_style.styles(names).items():
        for split, linestyle in (("train", "--"), ("validation", "-")):
            curve = curves[(curves["model"] == name) & (curves["split"] == split)]
            for axes, column in ((left, "accuracy"), (right, "loss")):
                axes.plot(
                    curve["epoch"], curve[column], linestyle, color=style.colour,
                    marker=chart_style.SHAPES[style.shape], markersize=3.5,
                    label=f"{name}, {split}",
                )  # fmt: skip
                axes.fill_between(
                    curve["epoch"], curve[f"{column}_low"], curve[f"{column}_high"],
                    color=style.colour, alpha=0.15, linewidth=0,
                )  # fmt: skip
    left.set(xlabel="epoch", ylabel="accuracy")
    left.yaxis.set_major_formatter(PERCENT)
    right.set(xlabel="epoch", ylabel="loss (nats)")
    ticks = chart_style.loss_ticks(histories["loss"].tolist())
    if ticks:
        right.set(ylabel="loss (nats), logarithmic", yscale="log")
        right.yaxis.set_major_locator(FixedLocator(ticks))
        # a log axis labels its ticks with TeX, which is not rendered while parse_math is off
        right.yaxis.set_major_formatter("{x:g}")
        right.yaxis.set_minor_locator(NullLocator())
        right.yaxis.set_minor_formatter(NullFormatter())
    epochs = chart_style.epoch_ticks(int(histories["epoch"].max()))
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.xaxis.set_major_locator(FixedLocator(epochs))
    solid = Line2D([], [], color="black", linestyle="-", label="validation")
    dashed = Line2D([], [], color="black", linestyle="--", label="train")
    lines = [solid, dashed] if "validation" in set(histories["split"]) else [dashed]
    add_legend(figure, [*legend_handles(names), *lines], columns)
    return figure


def test_accuracy(test: dict[str, dict]) -> Figure:
    """Draw the test accuracy of each training, and the mean and its interval of each model.

    Args:
        test: Of each model, metrics/test/MODEL.json.
    """
    figure, axes = plt.subplots(figsize=(9, 1.2 + 0.5 * len(test)), layout="constrained")
    for row, (name, style) in enumerate(chart_style.styles(list(test)).items()):
        metrics = test[name]
        accuracies = [training["accuracy"] for training in metrics["seeds"]]
        # trainings side by side, since their accuracies may be equal
        y = row + (np.arange(1, len(accuracies) + 1) / (len(accuracies) + 1) - 0.5) * 0.8
        axes.plot(accuracies, y, chart_style.SHAPES[style.shape], color=style.colour, markersize=5)
        axes.hlines(row, metrics["accuracy_low"], metrics["accuracy_high"], color=style.colour)
        axes.vlines(metrics["accuracy"], row - 0.3, row + 0.3, color=style.colour, linewidth=2.5)
    axes.set(xlabel="accuracy", title="Test accuracy: trainings, mean and 95 % interval")
    axes.set_yticks(range(len(test)), [chart_style.shorten(name) for name in test])
    axes.set_ylim(len(test) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_formatter(PERCENT)
    axes.grid(axis="x", alpha=0.3)
    return figure


def confusion(predictions: pd.DataFrame, classes: list[str], name: str) -> Figure:
    """Draw the confusion matrix of all trainings of a model, with counts if the classes are few."""
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
    unit = "class" if len(classes) <= chart_style.READABLE else "class index"
    axes.set(xlabel=f"predicted {unit}", ylabel=f"actual {unit}")
    trainings = predictions["seed"].nunique()
    of_trainings = "" if trainings == 1 else f", {trainings} trainings"
    axes.set_title(f"{chart_style.shorten(name)}: confusion matrix on the test split{of_trainings}")
    if len(classes) <= chart_style.READABLE:
        names = [chart_style.shorten(label) for label in classes]
        axes.set_xticks(range(len(classes)), names, rotation=45, ha="right")
        axes.set_yticks(range(len(classes)), names)
        for (row, column), count in np.ndenumerate(counts):
            if count:
                color = "white" if share[row, column] > 0.5 else "black"
                axes.text(
                    column, row, str(count), ha="center", va="center", fontsize=8, color=color
                )
    return figure


def examples(
    images: Rows, predictions: pd.DataFrame, preprocessor: Preprocessor, name: str
) -> Figure:
    """Draw evenly spaced test images with their ids and classes, errors in red.

    Args:
        images: `(n, h, w, c)`, the normalized test images.
        predictions: n rows of id, actual and predicted class.
        preprocessor: That normalized them.
        name: Name of the model.
    """
    figure, grid = plt.subplots(GRID, GRID, figsize=(9, 10.5), layout="constrained")
    for axes in grid.flat:
        axes.set_axis_off()
    # not selected by the result, so that the picture is representative
    rows = np.unique(np.linspace(0, len(images) - 1, GRID * GRID).astype(int))
    shown = predictions.iloc[rows]
    columns = (shown["id"], shown["actual"], shown["predicted"])
    for axes, row, id, actual, predicted in zip(grid.flat, rows, *columns, strict=False):
        wrong = actual != predicted
        title = f"true {actual}\npredicted {predicted}" + (" ✗" if wrong else "")
        axes.set_axis_on()
        axes.set_xlabel(chart_style.shorten_id(one_line(id)), fontsize=6)
        draw_image(
            axes, preprocessor.visible(images[row]), title, ERROR_COLOUR if wrong else "black"
        )
    mistakes = int((shown["actual"] != shown["predicted"]).sum())
    errors = f"{mistakes} misclassified (red)" if mistakes else "none misclassified"
    figure.suptitle(f"{chart_style.shorten(name)}: {counted(len(rows), 'test image')}, {errors}")
    return figure


def class_accuracy(predictions: dict[str, pd.DataFrame], classes: list[str]) -> Figure:
    """Draw the test accuracy of each class and model."""
    shares = chart_style.class_accuracy(predictions, classes)
    columns, names = 3, list(predictions)
    step = max(0.32, 0.07 * len(names) + 0.1)  # inches per class
    height = min(1.5 + step * len(shares), 14) + 0.25 * -(-len(names) // columns)
    figure, axes = plt.subplots(figsize=(9, height), layout="constrained")
    for number, (name, style) in enumerate(chart_style.styles(names).items()):
        y = np.arange(len(shares)) + (number + 0.5) / len(names) * 0.8 - 0.4
        marker = chart_style.SHAPES[style.shape]
        axes.plot(shares[name], y, marker, color=style.colour, label=name, markersize=5)
    axes.set(xlabel="accuracy", title=chart_style.class_accuracy_title(classes))
    axes.set_yticks(range(len(shares)), [chart_style.shorten(label) for label in shares.index])
    axes.set_yticks(np.arange(len(shares) + 1) - 0.5, minor=True)  # between the classes
    axes.set_ylim(len(shares) - 0.5, -0.5)
    axes.tick_params(axis="y", which="both", length=0)
    axes.xaxis.set_major_formatter(PERCENT)
    axes.grid(axis="x", alpha=0.3)
    axes.grid(axis="y", which="minor", alpha=0.3)
    add_legend(figure, legend_handles(names), columns)
    return figure


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    inputs = ("arrays", "history", "predictions", "test")
    outputs = (
        "samples", "curves", "learning-curves", "test-accuracy", "class-accuracy", "confusion",
        "examples",
    )  # fmt: skip
    for name in (*inputs, *outputs):
        parser.add_argument(f"--{name}", type=Path, required=True)
    args = parser.parse_args(argv)
    params = load()

    preprocessor = Preprocessor.of(read_json(args.arrays / "info.json"))
    names = params.compare
    histories = read_histories(args.history, names, params.seeds)
    predictions = {name: read_table(args.predictions / name, params.seeds) for name in names}
    test = {name: read_json(args.test / f"{name}.json") for name in names}
    images, labels = arrays.load(args.arrays / "train")
    with atomic_path(args.curves) as path:
        histories.to_csv(path, index=False)
    save(samples(images, labels, preprocessor), args.samples)
    save(learning_curves(histories), args.learning_curves)
    save(test_accuracy(test), args.test_accuracy)
    save(class_accuracy(predictions, preprocessor.classes), args.class_accuracy)
    images, _ = arrays.load(args.arrays / "test")
    for name, table in predictions.items():
        save(confusion(table, preprocessor.classes, name), args.confusion / f"{name}.png")
        first = table[table["seed"] == params.seeds[0]]
        save(examples(images, first, preprocessor, name), args.examples / f"{name}.png")
    print(f"plot: {4 + 2 * len(predictions)} pictures -> {args.samples.parent}")


if __name__ == "__main__":
    run(main)
