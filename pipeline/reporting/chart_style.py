"""Chart style: what the report and the pictures share, so that a model looks the same in all."""

import math
from typing import NamedTuple

import pandas as pd

# Each has a contrast of 3 or more on white and on the report's dark cards (WCAG 2.2, 1.4.11).
# From the eleventh on, each is the one farthest from all before it in OKLab (Ottosson 2020).
COLOURS = (
    "#2f7ed8", "#d97706", "#17966b", "#c2529f", "#7c6ae0", "#d64545", "#7d8b1f", "#0d94ab",
    "#a36f3f", "#75808f", "#f800f8", "#a800e0", "#c868f0", "#207800", "#c88090", "#f80080",
    "#00a800", "#805898", "#0058f8", "#087090", "#587050", "#a088d0", "#a05060", "#f850c8",
)  # fmt: skip
# As Vega and as matplotlib call them.
SHAPES = {
    "circle": "o", "square": "s", "triangle-up": "^", "diamond": "D", "cross": "P",
    "triangle-down": "v",
}  # fmt: skip
READABLE = 20  # classes up to which each is drawn and labelled
TICKS = 10  # on an axis of epochs at most, about as many on one of losses


class Style(NamedTuple):
    """How a model is drawn."""

    colour: str
    shape: str
    """One of SHAPES"""


def styles(names: list[str]) -> dict[str, Style]:
    """Return how each model is drawn, the reference first.

    No other model ever has the reference's colour. The colours of the others repeat after 23 and
    their shapes after 6, so that colour and shape together repeat after 138.
    """
    others = COLOURS[1:]
    colours = [COLOURS[0], *(others[number % len(others)] for number in range(len(names) - 1))]
    shapes = list(SHAPES)
    return {
        name: Style(colour, shapes[number % len(shapes)])
        for number, (name, colour) in enumerate(zip(names, colours, strict=True))
    }


def shortened(name: str, length: int = 32) -> str:
    """Return a name with its middle left out where it is long: names often differ at the end."""
    if len(name) <= length:
        return name
    end = length // 3
    return f"{name[: length - end - 1]}…{name[-end:]}"


def epoch_ticks(epochs: int) -> list[int]:
    """Return whole numbers for the axis of epochs: every one, or every second, fifth, tenth, …"""
    step = next(
        digit * 10**power
        for power in range(len(str(epochs)) + 1)
        for digit in (1, 2, 5)
        if epochs <= TICKS * digit * 10**power
    )
    return list(range(step, epochs + 1, step))


def loss_ticks(losses: list[float]) -> list[float] | None:
    """Return two or more ticks for a logarithmic axis, or None where a loss of 0 forbids one.

    At 1, 2 and 5, at powers of 10 where the losses span many, and closer where they span few.
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
    # all are nearly the same: the axis needs a width
    return [float(f"{low / 2:.1g}"), float(f"{high * 2:.1g}")]


def _tenths(decimals: int) -> list[float]:
    scale = 10**decimals
    return [number / scale for number in range(scale, 10 * scale)]


def percent(share: float, decimals: int = 1) -> str:
    """Return a share in percent; only 1 itself is shown as 100, and only 0 as 0."""
    value = round(100 * share, decimals)
    step = 10**-decimals
    value = min(value, 100 - step) if share < 1 else value
    value = max(value, step) if share > 0 else value
    return f"{value:.{decimals}f}\N{NO-BREAK SPACE}%"


def class_accuracy(predictions: dict[str, pd.DataFrame], classes: list[str]) -> pd.DataFrame:
    """Return the share of each class that each model gets right: classes in rows, models beside.

    Classes without test images are left out. Of more than can be read, those with the lowest mean
    over the models are kept, the lowest first.
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
    if len(classes) <= READABLE:
        return "Test accuracy of each class"
    return f"Test accuracy: the {READABLE} lowest of {len(classes):,} classes"
