"""Charts: Vega-Lite specifications of the report's charts, and the rows of data they draw.

A chart refers to its rows by name, so the page contains them once. Colours of text and axes come
from the page, which is light or dark.
"""

import math
from functools import partial
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from pipeline.reporting import chart_style

BINS = 15  # as in the calibration error of evaluate
COVERAGES = [number / 20 for number in range(1, 21)]  # of the curve of accuracy over coverage
MIN_IMAGES = 10  # the accuracy in a bin with fewer images is too uncertain
LABEL_WIDTH = 120  # pixels, of a class name; the tables show it in full
MAX_HEIGHT = 1600  # pixels
PERCENT = "percent"  # a JavaScript function of the page, with the format of the text
SELECTED = alt.param(name="selected", value="")  # the model selected in the page's legend
OPACITY = (
    alt.when("!selected || datum.model === selected").then(alt.value(1)).otherwise(alt.value(0.12))
)
PERCENT_AXIS = alt.Axis(labelExpr="percent(datum.value, 'axis')", tickCount=6)

Rows = list[dict[str, Any]]
Specification = dict[str, Any]  # of Vega-Lite


def accuracy_rows(test: dict[str, dict[str, Any]]) -> Rows:
    """Return a row for each training: its accuracy, and the mean and interval of its model.

    Args:
        test: Of each model, metrics/test/MODEL.json.
    """
    return [
        {
            "model": name,
            "seed": training["seed"],
            "accuracy": training["accuracy"],
            "mean": metrics["accuracy"],
            "low": metrics["accuracy_low"],
            "high": metrics["accuracy_high"],
        }
        for name, metrics in test.items()
        for training in metrics["seeds"]
    ]


def confusion_rows(predictions: dict[str, pd.DataFrame]) -> Rows:
    """Return a row for each model and each pair of actual and predicted class that occurs.

    Predictions of all trainings of a model are counted.
    """
    rows = []
    for name, table in predictions.items():
        counts = table.groupby(["actual", "predicted"]).size().reset_index(name="predictions")
        totals = counts.groupby("actual")["predictions"].transform("sum")
        counts["share"] = counts["predictions"] / totals
        rows += [
            {
                "model": name,
                "actual": row["actual"],
                "predicted": row["predicted"],
                "predictions": row["predictions"],
                "share": row["share"],
            }
            for row in counts.to_dict("records")
        ]
    return rows


def reliability_rows(predictions: dict[str, pd.DataFrame]) -> Rows:
    """Return a row for each model and non-empty bin of confidence.

    Bins have equal width and are open on the left: (0, 1/15], …, (14/15, 1]. Predictions of all
    trainings of a model are counted; `images` is their number per training.
    """
    rows = []
    for name, table in predictions.items():
        confidence = table["confidence"].to_numpy(float)
        correct = (table["actual"] == table["predicted"]).to_numpy()
        trainings = table["seed"].nunique()
        bins = np.ceil(confidence * BINS).astype(int)  # (n,), from 1
        for number in np.unique(bins).tolist():
            inside = bins == number
            rows.append(
                {
                    "model": name,
                    "over": (number - 1) / BINS,
                    "up_to": number / BINS,
                    "images": float(inside.sum() / trainings),
                    "confidence": float(confidence[inside].mean()),
                    "accuracy": float(correct[inside].mean()),
                }
            )
    return rows


def coverage_rows(predictions: dict[str, pd.DataFrame]) -> Rows:
    """Return a row for each model and coverage: the accuracy of the most confident images.

    Coverages are 5 %, 10 %, …, 100 % of the test images. Accuracies are means over the trainings of
    a model.
    """
    rows = []
    for name, table in predictions.items():
        correct = [
            (training["actual"] == training["predicted"]).to_numpy()[
                np.argsort(-training["confidence"].to_numpy(float), kind="stable")
            ]
            for _, training in table.groupby("seed")
        ]
        accuracies = np.mean(correct, axis=0).cumsum() / np.arange(1, len(correct[0]) + 1)
        for coverage in COVERAGES:
            images = math.ceil(coverage * len(accuracies))
            rows.append(
                {
                    "model": name,
                    "coverage": coverage,
                    "images": images,
                    "accuracy": float(accuracies[images - 1]),
                }
            )
    return rows


def class_rows(shares: pd.DataFrame) -> Rows:
    """Return a row for each class and model."""
    return [
        {"class": name, "model": model, "accuracy": float(share)}
        for name, row in shares.iterrows()
        for model, share in row.items()
    ]


def _model_channels(names: list[str]) -> dict[str, Any]:
    """Return the channels that distinguish models; the page draws their legend itself."""
    styles = chart_style.styles(names).values()
    colours = alt.Scale(domain=names, range=[style.colour for style in styles])
    shapes = alt.Scale(domain=names, range=[style.shape for style in styles])
    return {
        "color": alt.Color("model:N", scale=colours, legend=None),
        "stroke": alt.Stroke("model:N", scale=colours, legend=None),
        "shape": alt.Shape("model:N", scale=shapes, legend=None),
    }


def _loss_axis(losses: list[float]) -> tuple[str, alt.Axis, alt.Scale]:
    """Return title, axis and scale for losses; logarithmic if all are above 0."""
    ticks = chart_style.loss_ticks(losses)
    if ticks is None:
        return "loss (nats)", alt.Axis(format="~g"), alt.Scale()
    domain = [min(ticks[0], *losses), max(ticks[-1], *losses)]
    axis = alt.Axis(format="~g", values=ticks)
    return "loss (nats), logarithmic", axis, alt.Scale(type="log", nice=False, domain=domain)


def accuracies(rows: Rows) -> Specification:
    """Return a dot chart of test accuracy: each training, and each model's mean and interval."""
    names = list(dict.fromkeys(row["model"] for row in rows))
    channels = _model_channels(names)
    scale = alt.Scale(domain=names, padding=0.2)
    axis = alt.Axis(labelLimit=LABEL_WIDTH, ticks=False, domain=False, grid=False)
    columns = [
        alt.Tooltip(f"{name}:Q", formatType=PERCENT) for name in ("accuracy", "mean", "low", "high")
    ]
    base = alt.Chart(alt.NamedData("accuracies")).encode(
        y=alt.Y("model:N", title=None, scale=scale, axis=axis),
        color=channels["color"],
        opacity=OPACITY,
    )
    # the mean and interval of a model are in the row of each of its trainings, and drawn once
    model = base.transform_aggregate(groupby=["model", "mean", "low", "high"])
    x = alt.X("low:Q", title="test accuracy", axis=PERCENT_AXIS, scale=alt.Scale(zero=False))
    interval = model.mark_rule(strokeWidth=2).encode(
        x=x, x2="high:Q", tooltip=["model:N", *columns[1:]]
    )
    mean = model.mark_tick(thickness=3, size=24).encode(
        x="mean:Q", tooltip=["model:N", *columns[1:]]
    )
    # trainings side by side, since their accuracies may be equal
    dots = base.mark_point(filled=True, size=45).encode(
        x="accuracy:Q",
        yOffset=alt.YOffset("seed:N", scale=alt.Scale(padding=0.5)),
        shape=channels["shape"],
        tooltip=["model:N", "seed:N", columns[0]],
    )
    chart = alt.layer(interval, mean, dots).properties(
        width="container",
        height=max(80, 40 * len(names)),
        description="Dot chart of the test accuracy of each training, with mean and interval, of "
        f"{', '.join(names)}.",
    )
    return _specification(chart.add_params(SELECTED))


def learning_curve(rows: Rows, names: list[str], metric: str) -> Specification:
    """Return a line chart of accuracy or loss over epochs: means, and bands of all trainings.

    Args:
        rows: Of `chart_style.mean_curves`.
        names: Of the models.
        metric: accuracy or loss.
    """
    title, axis, scale = metric, PERCENT_AXIS, alt.Scale(zero=False)
    tooltip = partial(alt.Tooltip, formatType=PERCENT)
    if metric == "loss":
        ends = [row[f"loss_{end}"] for row in rows for end in ("low", "high")]
        title, axis, scale = _loss_axis(ends)
        tooltip = partial(alt.Tooltip, format=".4f")
    channels = _model_channels(names)
    epochs = max(row["epoch"] for row in rows)
    splits = dict.fromkeys(row["split"] for row in rows)
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
        color=channels["color"],
        opacity=OPACITY,
    )
    bands = base.mark_area(fillOpacity=0.15).encode(
        y=alt.Y(f"{metric}_low:Q", title=title, axis=axis, scale=scale),
        y2=f"{metric}_high:Q",
        detail="split:N",
    )
    curves = base.encode(
        y=f"{metric}:Q",
        tooltip=[
            "model:N",
            "split:N",
            "epoch:Q",
            *(tooltip(f"{metric}{suffix}:Q") for suffix in ("", "_low", "_high")),
        ],
    )
    lines = curves.mark_line(strokeWidth=2).encode(
        strokeDash=alt.StrokeDash(
            "split:N",
            scale=alt.Scale(domain=["validation", "train"], range=[[1, 0], [4, 4]]),
            legend=None,
        )
    )
    points = curves.mark_point(filled=True, size=28).encode(shape=channels["shape"])
    chart = alt.layer(bands, lines, points).properties(
        width="container",
        height=280,
        description=f"Line chart of mean {title} over epochs, in {' and '.join(splits)}, of "
        f"{', '.join(names)}.",
    )
    return _specification(chart.add_params(SELECTED))


def class_accuracy(shares: pd.DataFrame) -> Specification:
    """Return a dot chart of the accuracy of each class, with the models of a class side by side."""
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
                axis=alt.Axis(grid=True, tickBand="extent", labelLimit=LABEL_WIDTH),
            ),
            yOffset=alt.YOffset("model:N", scale=alt.Scale(domain=names, padding=0.9)),
            tooltip=["class:N", "model:N", alt.Tooltip("accuracy:Q", formatType=PERCENT)],
            opacity=OPACITY,
            **_model_channels(names),
        )
    )
    chart = alt.layer(dots).properties(
        width="container",
        height=min(height, MAX_HEIGHT),
        description=f"Dot chart of the test accuracy in {len(shares)} classes, of "
        f"{', '.join(names)}.",
    )
    return _specification(chart.add_params(SELECTED))


def confusion(champion: str, classes: list[str]) -> Specification:
    """Return a confusion matrix of the champion; a control on the page selects another model."""
    model = alt.param(name="model", value=champion)
    order = alt.Scale(domain=classes)
    angle = 0 if max(map(len, classes)) * len(classes) < 60 else -45
    many = len(classes) > chart_style.READABLE
    x_axis = alt.Axis(labelAngle=angle, labelOverlap=many, labelLimit=LABEL_WIDTH, ticks=not many)
    y_axis = alt.Axis(labelOverlap=many, labelLimit=LABEL_WIDTH, ticks=not many)
    cells = (
        alt.Chart(alt.NamedData("confusion"))
        .transform_filter(alt.datum.model == model)
        .encode(
            x=alt.X("predicted:N", scale=order, axis=x_axis),
            y=alt.Y("actual:N", scale=order, axis=y_axis),
            tooltip=[
                "actual:N",
                "predicted:N",
                "predictions:Q",
                alt.Tooltip("share:Q", formatType=PERCENT),
            ],
        )
    )
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
    text_color = alt.when("datum.share > 0.5").then(alt.value("white"))
    layers: list[alt.Chart] = [boxes]
    if not many:
        layers.append(cells.mark_text().encode(text="predictions:Q", color=text_color))
    chart = alt.layer(*layers).properties(
        width="container",
        height=max(240, min(32 * len(classes), 640)),
        description="Confusion matrix: predictions by actual class, in rows, and predicted class, "
        "in columns.",
    )
    return _specification(chart.add_params(model))


def reliability(names: list[str]) -> Specification:
    """Return a reliability diagram: accuracy over mean confidence in bins of confidence.

    A model on the diagonal is perfectly calibrated.
    """
    scale, channels = alt.Scale(domain=[0, 1]), _model_channels(names)
    base = alt.Chart(alt.NamedData("reliability")).encode(
        x=alt.X("confidence:Q", title="mean confidence", scale=scale, axis=PERCENT_AXIS),
        y=alt.Y("accuracy:Q", title="accuracy", scale=scale, axis=PERCENT_AXIS),
        color=channels["color"],
        opacity=OPACITY,
    )
    enough_images = f"datum.images >= {MIN_IMAGES}"
    dots = base.mark_point(filled=True).encode(
        stroke=channels["stroke"],  # the outline of a hollow mark
        shape=channels["shape"],
        size=alt.Size("images:Q", scale=alt.Scale(range=[40, 400]), legend=None),
        fillOpacity=alt.when(enough_images).then(alt.value(0.9)).otherwise(alt.value(0)),
        tooltip=[
            "model:N",
            alt.Tooltip("images:Q", format=",.1~f", title="images per training"),
            alt.Tooltip("confidence:Q", formatType=PERCENT),
            alt.Tooltip("accuracy:Q", formatType=PERCENT),
        ],
    )
    lines = base.transform_filter(enough_images).mark_line(strokeWidth=1.5)
    corners = alt.InlineData([{"confidence": 0, "accuracy": 0}, {"confidence": 1, "accuracy": 1}])
    diagonal = (
        alt.Chart(corners)
        .mark_line(strokeDash=[4, 4], strokeWidth=1, color="gray", aria=False)
        .encode(x="confidence:Q", y="accuracy:Q")
    )
    chart = alt.layer(diagonal, lines, dots).properties(
        width="container",
        height=360,
        description=f"Reliability diagram: accuracy over mean confidence in {BINS} bins, of "
        f"{', '.join(names)}.",
    )
    return _specification(chart.add_params(SELECTED))


def coverage(names: list[str]) -> Specification:
    """Return a line chart of the accuracy of the most confident images over their share."""
    channels = _model_channels(names)
    base = alt.Chart(alt.NamedData("coverage")).encode(
        x=alt.X("coverage:Q", axis=PERCENT_AXIS, scale=alt.Scale(domain=[0, 1])),
        y=alt.Y("accuracy:Q", axis=PERCENT_AXIS, scale=alt.Scale(zero=False)),
        color=channels["color"],
        opacity=OPACITY,
    )
    points = base.mark_point(filled=True, size=28).encode(
        shape=channels["shape"],
        tooltip=[
            "model:N",
            alt.Tooltip("coverage:Q", formatType=PERCENT),
            "images:Q",
            alt.Tooltip("accuracy:Q", formatType=PERCENT),
        ],
    )
    chart = alt.layer(base.mark_line(strokeWidth=2), points).properties(
        width="container",
        height=360,
        description="Line chart of the accuracy of the most confident images over their share of "
        f"the test images, of {', '.join(names)}.",
    )
    return _specification(chart.add_params(SELECTED))


def _specification(chart: alt.TopLevelMixin) -> Specification:
    """Return the Vega-Lite specification without Altair's theme, since the page has its own."""
    spec = chart.to_dict()
    del spec["config"]
    return spec
