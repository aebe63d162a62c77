"""Chart style: colours, markers, ticks and number formats that the report and pictures share."""

import math
from typing import NamedTuple

import pandas as pd

# Each colour has a contrast of at least 3 on white and on the report's dark cards (WCAG 2.2,
# 1.4.11). From the eleventh on, each is the one farthest from all earlier ones in OKLab
# (Ottosson 2020).
COLOURS = (
    "#2f7ed8", "#d97706", "#17966b", "#c2529f", "#7c6ae0", "#d64545", "#7d8b1f", "#0d94ab",
    "#a36f3f", "#75808f", "#f800f8", "#a800e0", "#c868f0", "#207800", "#c88090", "#f80080",
    "#00a800", "#805898", "#0058f8", "#087090", "#587050", "#a088d0", "#a05060", "#f850c8",
)  # fmt: skip
# Vega's name of each shape, and matplotlib's marker for it.
SHAPES = {
    "circle": "o", "square": "s", "triangle-up": "^", "diamond": "D", "cross": "P",
    "triangle-down": "v",
}  # fmt: skip
READABLE = 20  # the most classes that are all drawn and labelled
TICKS = 10  # the most ticks on an axis of epochs or losses


class Style(NamedTuple):
    """Colour and shape of a model's marks."""

    colour: str
    shape: str
    """One of SHAPES"""


def styles(names: list[str]) -> dict[str, Style]:
    """Return the style of each model.

    The first name is the reference, and no other model has its colour. The colours of the others
    repeat after 23 models and the shapes after 6, so a colour and shape together repeat after 138.
    """
    others = COLOURS[1:]
    colours = [COLOURS[0], *(others[number % len(others)] for number in range(len(names) - 1))]
    shapes = list(SHAPES)
    return {
        name: Style(colour, shapes[number % len(shapes)])
        for number, (name, colour) in enumerate(zip(names, colours, strict=True))
    }


def shorten(name: str, length: int = 32) -> str:
    """Shorten a long name in the middle, since names often differ at the end."""
    if len(name) <= length:
        return name
    end = length // 3
    return f"{name[: length - end - 1]}…{name[-end:]}"


def shorten_id(id: str, length: int = 32) -> str:
    """Shorten the id of an image at its start, since files in a folder differ at the end."""
    return id if len(id) <= length else f"…{id[1 - length :]}"


def epoch_ticks(epochs: int) -> list[int]:
    """Return ticks for an axis of epochs: every one, every second, fifth, tenth, …"""
    step = next(
        digit * 10**power
        for power in range(len(str(epochs)) + 1)
        for digit in (1, 2, 5)
        if epochs <= TICKS * digit * 10**power
    )
    return list(range(step, epochs + 1, step))


def loss_ticks(losses: list[float]) -> list[float] | None:
    """Return at least two ticks for a logarithmic axis, or None if a loss is 0.

    The ticks are powers of 10 if the losses span many, otherwise multiples of them by 1, 2 and 5,
    and finer steps if the losses span little.
    """
    low, high = min(losses), max(losses)
    if low <= 0:
        return None
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ([1], [1, 2, 5], range(1, 10), *(_tenths(count) for count in (1, 2, 3))):
        ticks = sorted({float(f"{digit}e{decade}") for decade in decades for digit in digits})
        within = [tick for tick in ticks if low <= tick <= high]
        if len(within) >= (4 if len(digits) == 1 else 3):
            return within[:: math.ceil(len(within) / TICKS)]
    # all losses are nearly equal, but the axis needs a width
    return [float(f"{low / 2:.1g}"), float(f"{high * 2:.1g}")]


def _tenths(decimals: int) -> list[float]:
    """Return the numbers in [1, 10) with the given number of decimals."""
    scale = 10**decimals
    return [number / scale for number in range(scale, 10 * scale)]


def mean_curves(histories: pd.DataFrame) -> pd.DataFrame:
    """Return the mean, lowest and highest accuracy and loss of each model, split and epoch.

    Args:
        histories: model, seed, split, epoch, accuracy and loss.

    Returns:
        model, split, epoch, trainings (those that reached the epoch), accuracy, accuracy_low,
        accuracy_high, loss, loss_low and loss_high, in the order of `histories`.
    """
    values = {
        f"{column}{suffix}": (column, statistic)
        for column in ("accuracy", "loss")
        for suffix, statistic in (("", "mean"), ("_low", "min"), ("_high", "max"))
    }
    groups = histories.groupby(["model", "split", "epoch"], sort=False)
    return groups.agg(trainings=("seed", "size"), **values).reset_index()


def class_accuracy(predictions: dict[str, pd.DataFrame], classes: list[str]) -> pd.DataFrame:
    """Return the accuracy of each class, with classes as rows and models as columns.

    Classes without test images are omitted. If there are more than READABLE classes, those with
    the lowest mean accuracy over the models are returned, in ascending order.
    """
    shares = {
        name: (table["actual"] == table["predicted"]).groupby(table["actual"]).mean()
        for name, table in predictions.items()
    }
    table = pd.DataFrame(shares).reindex(classes).dropna()
    if len(table) > READABLE:
        table = table.loc[table.mean(axis=1).sort_values(kind="stable").index[:READABLE]]
    return table


def class_accuracy_title(classes: list[str]) -> str:
    """Return the title for a chart of `class_accuracy`."""
    if len(classes) <= READABLE:
        return "Test accuracy of each class"
    return f"Test accuracy: the {READABLE} lowest of {len(classes):,} classes"
