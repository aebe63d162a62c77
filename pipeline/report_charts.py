"""Report charts: Altair's specifications, and the rows that they draw.

A chart names its rows, and the page holds them once. Colours come from the page, light or dark.
"""

import math
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

BINS = 15  # as evaluate's calibration error
LABELLED = 20  # classes up to which every cell shows its count

Rows = list[dict[str, Any]]
Specification = dict[str, Any]  # of Vega-Lite


def history_rows(histories: dict[str, pd.DataFrame]) -> Rows:
    """Return a row for each model, part and epoch."""
    parts = {"train": "", "validation": "val_"}
    return [
        {
            "model": name,
            "part": part,
            "epoch": int(row["epoch"]),
            "accuracy": float(row[f"{prefix}accuracy"]),
            "loss": float(row[f"{prefix}loss"]),
        }
        for name, history in histories.items()
        for part, prefix in parts.items()
        for row in history.to_dict("records")
    ]


def confusion_rows(predictions: dict[str, pd.DataFrame]) -> Rows:
    """Return a row for each model and pair of classes that occurs, by the actual class."""
    rows = []
    for name, table in predictions.items():
        counts = table.groupby(["actual", "predicted"], as_index=False).size()
        counts["share"] = counts["size"] / counts.groupby("actual")["size"].transform("sum")
        rows += [
            {
                "model": name,
                "actual": row["actual"],
                "predicted": row["predicted"],
                "images": row["size"],
                "share": row["share"],
            }
            for row in counts.to_dict("records")
        ]
    return rows


def reliability_rows(predictions: dict[str, pd.DataFrame]) -> Rows:
    """Return a row for each model and bin of confidence that holds images, open on the left."""
    rows = []
    for name, table in predictions.items():
        confidence = table["confidence"].to_numpy(float)
        right = (table["actual"] == table["predicted"]).to_numpy()
        number = np.ceil(confidence * BINS).astype(int)
        for each in np.unique(number).tolist():
            own = number == each
            rows.append(
                {
                    "model": name,
                    "over": (each - 1) / BINS,
                    "up_to": each / BINS,
                    "images": int(own.sum()),
                    "confidence": float(confidence[own].mean()),
                    "accuracy": float(right[own].mean()),
                }
            )
    return rows


def _by_model(names: list[str]) -> alt.Color:
    legend = alt.Legend(title=None, orient="bottom")
    return alt.Color("model:N", scale=alt.Scale(domain=names), legend=legend)


def loss_axis(losses: list[float]) -> tuple[alt.Axis, alt.Scale]:
    """Return a logarithmic axis with ticks at 1, 2 and 5, where there is no loss of 0."""
    low, high = min(losses), max(losses)
    if low <= 0:
        return alt.Axis(format="~g"), alt.Scale()
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [float(f"{digit}e{decade}") for decade in decades for digit in (1, 2, 5)]
    return alt.Axis(format="~g", values=ticks), alt.Scale(type="log", nice=False)


def learning_curve(rows: Rows, names: list[str], measure: str) -> Specification:
    """Draw accuracy or loss over epochs; a click on the legend singles a model out."""
    chosen = alt.selection_point(name="chosen", fields=["model"], bind="legend")
    axis, scale = alt.Axis(format="%"), alt.Scale(zero=False)
    if measure == "loss":
        axis, scale = loss_axis([row["loss"] for row in rows])
    title = {"accuracy": "accuracy", "loss": "loss (nats)"}[measure]
    chart = (
        alt.Chart(alt.NamedData("history"))
        .mark_line(point=alt.OverlayMarkDef(size=24), strokeWidth=2)
        .encode(
            x=alt.X(
                "epoch:Q",
                axis=alt.Axis(tickMinStep=1, format="d", grid=False),
                scale=alt.Scale(zero=False, nice=False),
            ),
            y=alt.Y(f"{measure}:Q", title=title, axis=axis, scale=scale),
            color=_by_model(names),
            strokeDash=alt.StrokeDash(
                "part:N",
                scale=alt.Scale(domain=["validation", "train"], range=[[1, 0], [4, 4]]),
                legend=None,
            ),
            opacity=alt.when(chosen).then(alt.value(1)).otherwise(alt.value(0.15)),
            tooltip=["model:N", "part:N", "epoch:Q", alt.Tooltip(f"{measure}:Q", format=".4f")],
        )
        .add_params(chosen)
        .properties(
            width="container",
            height=280,
            description=f"Line chart of {title} over epochs: {', '.join(names)}, each in training "
            "and in validation.",
        )
    )
    return _specification(chart)


def confusion(first: str, classes: list[str]) -> Specification:
    """Draw the confusion matrix of a model, until the page's own control names another."""
    model = alt.param(name="model", value=first)
    order = alt.Scale(domain=classes)
    angle = 0 if max(map(len, classes)) * len(classes) < 60 else -45
    cells = (
        alt.Chart(alt.NamedData("confusion"))
        .transform_filter(alt.datum.model == model)
        .encode(
            x=alt.X("predicted:N", scale=order, axis=alt.Axis(labelAngle=angle, labelOverlap=True)),
            y=alt.Y("actual:N", scale=order, axis=alt.Axis(labelOverlap=True)),
            tooltip=[
                "actual:N", "predicted:N", "images:Q", alt.Tooltip("share:Q", format=".1%"),
            ],
        )
    )  # fmt: skip
    boxes = cells.mark_rect().encode(
        color=alt.Color(
            "share:Q",
            scale=alt.Scale(domain=[0, 1]),
            legend=alt.Legend(
                title="share of the actual class", format=".0%", orient="bottom", values=[0, 0.5, 1]
            ),
        )
    )
    white = alt.when("datum.share > 0.5").then(alt.value("white"))
    layers: list[alt.Chart] = [boxes]
    if len(classes) <= LABELLED:
        layers.append(cells.mark_text().encode(text="images:Q", color=white))
    chart = alt.layer(*layers).properties(
        width="container",
        height=max(240, min(32 * len(classes), 640)),
        description="Confusion matrix: test images by actual class, in rows, and predicted class, "
        "in columns.",
    )
    return _specification(chart.add_params(model))


def reliability(names: list[str]) -> Specification:
    """Draw accuracy over confidence; on the diagonal, the model knows how sure it may be."""
    scale, axis = alt.Scale(domain=[0, 1]), alt.Axis(format="%", tickCount=5)
    base = alt.Chart(alt.NamedData("reliability")).encode(
        x=alt.X("confidence:Q", title="mean confidence", scale=scale, axis=axis),
        y=alt.Y("accuracy:Q", title="share that is right", scale=scale, axis=axis),
        color=_by_model(names),
    )
    dots = base.mark_circle(opacity=0.9).encode(
        size=alt.Size("images:Q", scale=alt.Scale(range=[30, 400]), legend=None),
        tooltip=[
            "model:N",
            "images:Q",
            alt.Tooltip("confidence:Q", format=".1%"),
            alt.Tooltip("accuracy:Q", format=".1%"),
        ],
    )
    corners = alt.InlineData([{"confidence": 0, "accuracy": 0}, {"confidence": 1, "accuracy": 1}])
    diagonal = (
        alt.Chart(corners)
        .mark_line(strokeDash=[4, 4], strokeWidth=1, color="gray", aria=False)
        .encode(x="confidence:Q", y="accuracy:Q")
    )
    chart = alt.layer(diagonal, base.mark_line(strokeWidth=1.5), dots).properties(
        width="container",
        height=360,
        description=f"Reliability diagram: share of right answers over mean confidence, in {BINS} "
        f"bins, of {', '.join(names)}.",
    )
    return _specification(chart)


def _specification(chart: alt.TopLevelMixin) -> Specification:
    """Leave out Altair's own theme: the page has one."""
    spec = chart.to_dict()
    del spec["config"]
    return spec
