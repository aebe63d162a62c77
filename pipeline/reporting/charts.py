"""Charts: Altair's specifications, and the rows that they draw.

A chart names its rows, and the page holds them once. Colours come from the page, light or dark.
"""

from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from pipeline.reporting import chart_style

BINS = 15  # as evaluate's calibration error
FEW = 10  # images: fewer in a bin say little
LABEL = 120  # pixels, of the name of a class; the whole name is in the tables
TALLEST = 1600  # pixels
PERCENT = "percent"  # a function of the page, which writes shares as the text around does
CHOSEN = alt.param(name="chosen", value="")  # the model that the page's legend singles out
FADED = alt.when("!chosen || datum.model === chosen").then(alt.value(1)).otherwise(alt.value(0.12))
PERCENT_AXIS = alt.Axis(labelExpr="percent(datum.value, 'axis')", tickCount=6)

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


def class_rows(shares: pd.DataFrame) -> Rows:
    """Return a row for each class and model."""
    return [
        {"class": name, "model": model, "accuracy": float(share)}
        for name, own in shares.iterrows()
        for model, share in own.items()
    ]


def _of_model(names: list[str]) -> dict[str, Any]:
    """Return the channels that tell models apart; the page has one legend for all charts."""
    own = chart_style.styles(names)
    ranges = list(zip(*own.values(), strict=True))
    scales = [alt.Scale(domain=names, range=list(values)) for values in ranges]
    return {
        "color": alt.Color("model:N", scale=scales[0], legend=None),
        "stroke": alt.Stroke("model:N", scale=scales[0], legend=None),
        "shape": alt.Shape("model:N", scale=scales[1], legend=None),
    }


def _loss_axis(losses: list[float]) -> tuple[str, alt.Axis, alt.Scale]:
    ticks = chart_style.loss_ticks(losses)
    if ticks is None:
        return "loss (nats)", alt.Axis(format="~g"), alt.Scale()
    domain = [min(ticks[0], *losses), max(ticks[-1], *losses)]
    axis = alt.Axis(format="~g", values=ticks)
    return "loss (nats), logarithmic", axis, alt.Scale(type="log", nice=False, domain=domain)


def learning_curve(rows: Rows, names: list[str], measure: str) -> Specification:
    """Draw accuracy or loss over epochs."""
    title, axis, scale = measure, PERCENT_AXIS, alt.Scale(zero=False)
    if measure == "loss":
        title, axis, scale = _loss_axis([row["loss"] for row in rows])
    model = _of_model(names)
    epochs = max(row["epoch"] for row in rows)
    base = alt.Chart(alt.NamedData("history")).encode(
        x=alt.X(
            "epoch:Q",
            axis=alt.Axis(
                values=chart_style.epoch_ticks(epochs),
                format="d",
                grid=False,
                labelFlush=False,
                labelOverlap=True,
                labelSeparation=6,
            ),
            scale=alt.Scale(zero=False, nice=False),
        ),
        y=alt.Y(f"{measure}:Q", title=title, axis=axis, scale=scale),
        color=model["color"],
        opacity=FADED,
        tooltip=[
            "model:N",
            "part:N",
            "epoch:Q",
            alt.Tooltip(f"{measure}:Q", format=".4f")
            if measure == "loss"
            else alt.Tooltip(f"{measure}:Q", formatType=PERCENT),
        ],
    )
    lines = base.mark_line(strokeWidth=2).encode(
        strokeDash=alt.StrokeDash(
            "part:N",
            scale=alt.Scale(domain=["validation", "train"], range=[[1, 0], [4, 4]]),
            legend=None,
        )
    )
    points = base.mark_point(filled=True, size=28).encode(shape=model["shape"])
    chart = alt.layer(lines, points).properties(
        width="container",
        height=280,
        description=f"Line chart of {title} over epochs: {', '.join(names)}, each in training "
        "and in validation.",
    )
    return _specification(chart.add_params(CHOSEN))


def class_accuracy(shares: pd.DataFrame) -> Specification:
    """Draw the accuracy of each class, a line of the chart for each model in it."""
    names = list(shares.columns)
    height = max(24, 5 * len(names) + 10) * max(2, len(shares))
    dots = (
        alt.Chart(alt.NamedData("classes"))
        .mark_point(filled=True, size=44)
        .encode(
            x=alt.X("accuracy:Q", axis=PERCENT_AXIS, scale=alt.Scale(zero=False)),
            y=alt.Y(
                "class:N",
                title=None,
                scale=alt.Scale(domain=list(shares.index), padding=0),
                axis=alt.Axis(grid=True, tickBand="extent", labelLimit=LABEL),
            ),
            yOffset=alt.YOffset("model:N", scale=alt.Scale(domain=names, padding=0.9)),
            tooltip=["class:N", "model:N", alt.Tooltip("accuracy:Q", formatType=PERCENT)],
            opacity=FADED,
            **_of_model(names),
        )
    )
    chart = alt.layer(dots).properties(
        width="container",
        height=min(height, TALLEST),
        description=f"Dot chart of the test accuracy of {len(shares)} classes: {', '.join(names)}.",
    )
    return _specification(chart.add_params(CHOSEN))


def confusion(first: str, classes: list[str]) -> Specification:
    """Draw the confusion matrix of a model, until the page's own control names another."""
    model = alt.param(name="model", value=first)
    order = alt.Scale(domain=classes)
    angle = 0 if max(map(len, classes)) * len(classes) < 60 else -45
    many = len(classes) > chart_style.READABLE
    across = alt.Axis(labelAngle=angle, labelOverlap=many, labelLimit=LABEL, ticks=not many)
    down = alt.Axis(labelOverlap=many, labelLimit=LABEL, ticks=not many)
    cells = (
        alt.Chart(alt.NamedData("confusion"))
        .transform_filter(alt.datum.model == model)
        .encode(
            x=alt.X("predicted:N", scale=order, axis=across),
            y=alt.Y("actual:N", scale=order, axis=down),
            tooltip=[
                "actual:N", "predicted:N", "images:Q", alt.Tooltip("share:Q", formatType=PERCENT),
            ],
        )
    )  # fmt: skip
    boxes = cells.mark_rect().encode(
        color=alt.Color(
            "share:Q",
            scale=alt.Scale(domain=[0, 1]),
            legend=alt.Legend(
                title="share of the actual class",
                labelExpr="percent(datum.value, 'axis')",
                orient="bottom",
                values=[0, 0.5, 1],
            ),
        )
    )
    white = alt.when("datum.share > 0.5").then(alt.value("white"))
    layers: list[alt.Chart] = [boxes]
    if not many:
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
    scale, model = alt.Scale(domain=[0, 1]), _of_model(names)
    base = alt.Chart(alt.NamedData("reliability")).encode(
        x=alt.X("confidence:Q", title="mean confidence", scale=scale, axis=PERCENT_AXIS),
        y=alt.Y("accuracy:Q", title="share that is right", scale=scale, axis=PERCENT_AXIS),
        color=model["color"],
        opacity=FADED,
    )
    enough = f"datum.images >= {FEW}"
    dots = base.mark_point(filled=True).encode(
        stroke=model["stroke"],  # what is left of a hollow mark
        shape=model["shape"],
        size=alt.Size("images:Q", scale=alt.Scale(range=[40, 400]), legend=None),
        fillOpacity=alt.when(enough).then(alt.value(0.9)).otherwise(alt.value(0)),
        tooltip=[
            "model:N",
            "images:Q",
            alt.Tooltip("confidence:Q", formatType=PERCENT),
            alt.Tooltip("accuracy:Q", formatType=PERCENT),
        ],
    )
    lines = base.transform_filter(enough).mark_line(strokeWidth=1.5)
    corners = alt.InlineData([{"confidence": 0, "accuracy": 0}, {"confidence": 1, "accuracy": 1}])
    diagonal = (
        alt.Chart(corners)
        .mark_line(strokeDash=[4, 4], strokeWidth=1, color="gray", aria=False)
        .encode(x="confidence:Q", y="accuracy:Q")
    )
    chart = alt.layer(diagonal, lines, dots).properties(
        width="container",
        height=360,
        description=f"Reliability diagram: share of right answers over mean confidence, in {BINS} "
        f"bins, of {', '.join(names)}.",
    )
    return _specification(chart.add_params(CHOSEN))


def _specification(chart: alt.TopLevelMixin) -> Specification:
    """Leave out Altair's own theme: the page has one."""
    spec = chart.to_dict()
    del spec["config"]
    return spec
