"""Figures: the pictures of what one network has learned."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from pipeline.analysis.layer_table import Row
from pipeline.reporting.chart_style import percent
from pipeline.reporting.drawing import Axes, Figure, NullFormatter, PatchCollection, Rectangle, plt

COLUMNS = 8  # pictures side by side
WRONG = "#d62728"
FRAME = "#9a9a9a"


class Shown(NamedTuple):
    """A test image that is looked at."""

    image: np.ndarray
    """`(h, w, c)` in [0, 1]"""
    actual: str
    predicted: str
    confidence: float

    @property
    def title(self) -> str:
        return f"true {self.actual}\npredicted {self.predicted}, {percent(self.confidence)}"

    @property
    def words(self) -> str:
        return self.title.replace("\n", ", ")

    @property
    def color(self) -> str:
        return "black" if self.actual == self.predicted else WRONG


def stitched(pictures: Sequence[np.ndarray]) -> tuple[np.ndarray, list[tuple[float, float]]]:
    """Put pictures `(h, w, c)` in [0, 1] side by side, COLUMNS a line, on white.

    One array and not an axes each, which takes matplotlib seconds.

    Returns:
        The array, `(H, W, c)`, and where each picture's upper left corner is: x, y.
    """
    height, width, channels = pictures[0].shape
    gap = max(1, height // 4)
    lines = math.ceil(len(pictures) / COLUMNS)
    sheet = np.ones((lines * (height + gap), COLUMNS * (width + gap), channels))
    corners = []
    for number, picture in enumerate(pictures):
        y, x = (
            number // COLUMNS * (height + gap) + gap,
            number % COLUMNS * (width + gap),
        )
        sheet[y : y + height, x : x + width] = picture
        corners.append((x - 0.5, y - 0.5))
    return sheet, corners


def _sheet(axes: Axes, pictures: Sequence[np.ndarray], labels: Iterable[object] = ()) -> None:
    sheet, corners = stitched(pictures)
    # the colour map is for one channel only
    axes.imshow(sheet, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_axis_off()
    height, width, _ = pictures[0].shape
    frames = [Rectangle(corner, width, height) for corner in corners]  # white on white is seen
    axes.add_collection(PatchCollection(frames, facecolor="none", edgecolor=FRAME, linewidth=0.5))
    for (x, y), label in zip(corners, labels, strict=False):
        axes.text(x, y, str(label), fontsize=7, va="bottom")


def _figure(lines: float, title: str, color: str = "black") -> tuple[Figure, Axes]:
    figure, axes = plt.subplots(figsize=(8, 0.4 + lines), layout="constrained")
    figure.suptitle(title, fontsize=10, color=color)
    return figure, axes


def layers(rows: Sequence[Row], name: str) -> Figure:
    """Draw what each layer holds, costs and keeps."""
    figure, panels = plt.subplots(
        1, 3, figsize=(13, 1.6 + 0.3 * len(rows)), sharey=True, layout="constrained"
    )
    shapes = ["×".join(map(str, row.output_shape)) for row in rows]
    labels = [f"{row.name}  {shape}" for row, shape in zip(rows, shapes, strict=True)]
    measures = {
        "parameters": [row.parameters for row in rows],
        "multiply-accumulates": [row.macs for row in rows],
        "activation memory (bytes)": [row.activation_bytes for row in rows],
    }
    for axes, (title, values) in zip(panels, measures.items(), strict=True):
        bars = axes.barh(labels, values, color="#4c78a8")
        axes.bar_label(bars, [f"{v:,}" if v else "" for v in values], padding=3, fontsize=8)
        axes.set_title(f"{title}: {sum(values):,}", fontsize=11)
        axes.set_xlim(0, 1.3 * max(max(values), 1))
        axes.set_xticks([])
        for side in ("top", "right", "bottom"):
            axes.spines[side].set_visible(False)
    panels[0].invert_yaxis()
    panels[0].tick_params(axis="y", length=0, labelsize=9)
    last = [row for row in rows if row.stride][-1]
    image = rows[0].output_shape[:2]
    field = tuple(map(int, last.receptive_field.split("×")))
    whole = all(seen >= side for seen, side in zip(field, image, strict=True))
    reach = "the whole image" if whole else f"{last.receptive_field} pixels of the image"
    seen = f"; {last.name} sees {reach}"
    figure.suptitle(f"{name}: layers of one image{seen if last is not rows[0] else ''}")
    return figure


def kernels(weights: np.ndarray, name: str) -> Figure:
    """Draw the kernels `(kh, kw, c, k)` of a first layer as they are, c 1 or 3.

    Middle grey is 0; all share one scale.
    """
    count = weights.shape[-1]
    reach = np.abs(weights).max() or 1
    title = f"{name}: {count} kernels, grey is 0, white {reach:.2g}"
    figure, axes = _figure(math.ceil(count / COLUMNS), title)
    _sheet(axes, list(0.5 + np.moveaxis(weights, -1, 0) / (2 * reach)))
    return figure


def filters(pictures: np.ndarray, strongest: np.ndarray, name: str) -> Figure:
    """Draw what filters respond to, `(k, h, w, c)` in [0, 1], each with its number."""
    title = f"{name}: what its strongest filters respond to"
    figure, axes = _figure(math.ceil(len(pictures) / COLUMNS), title)
    _sheet(axes, list(pictures), strongest)
    return figure


def feature_maps(shown: Shown, maps: dict[str, np.ndarray]) -> Figure:
    """Draw one test image and, layer by layer, the channels that respond to it most.

    Args:
        shown: The image.
        maps: From a layer's name to its output for the image, `(h, w, channels)`.
    """
    lines_count = len(maps) + 1
    figure, lines = plt.subplots(
        lines_count, 1, figsize=(9, 0.4 + lines_count), squeeze=False, layout="constrained"
    )
    figure.suptitle(shown.words, fontsize=10, color=shown.color)
    _sheet(lines[0, 0], [shown.image])
    for axes, (name, values) in zip(lines[1:, 0], maps.items(), strict=True):
        order = np.argsort(-np.abs(values).mean(axis=(0, 1)), kind="stable")[:COLUMNS]
        _sheet(axes, [_brightened(values[..., channel, None]) for channel in order], order)
        axes.text(0, 0.5, f"{name}  ", ha="right", va="center", transform=axes.transAxes)
    return figure


def _brightened(values: np.ndarray) -> np.ndarray:
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else np.zeros_like(values)


def attention(every: Sequence[Shown], maps: np.ndarray) -> Figure:
    """Draw test images, and under each where the network looked for what it predicted.

    Args:
        every: n of them.
        maps: `(n, h, w)` in [0, 1].
    """
    figure, grid = plt.subplots(
        2, len(every), figsize=(1.6 * len(every), 4), squeeze=False, layout="constrained"
    )
    for column, (shown, heat) in enumerate(zip(every, maps, strict=True)):
        above, below = grid[:, column]
        above.imshow(shown.image, cmap="gray", vmin=0, vmax=1)
        above.set_title(shown.title, fontsize=7, color=shown.color)
        below.imshow(shown.image.mean(axis=-1), cmap="gray", vmin=0, vmax=1)
        below.imshow(heat, cmap="inferno", vmin=0, vmax=1, alpha=0.6)
        above.set_axis_off()
        below.set_axis_off()
    figure.suptitle("Where it looked (Grad-CAM; bright speaks for its answer)", fontsize=10)
    return figure


def flow(table: pd.DataFrame, name: str) -> Figure:
    """Draw norms, silent ReLUs and batch normalization, layer by layer.

    Args:
        table: Indexed by layer: gradient_start, gradient_end, weights_start, weights_end,
            silent, mean, variance; NaN where a layer has none.
    """
    parts = [_norms]
    parts += [_silent] if table["silent"].notna().any() else []
    parts += [_moving] if table["mean"].notna().any() else []
    figure, panels = plt.subplots(
        len(parts),
        1,
        figsize=(max(7.0, 0.5 * len(table) + 3), 1 + 2.6 * len(parts)),
        sharex=True,
        squeeze=False,
        layout="constrained",
    )
    x = np.arange(len(table))
    for axes, part in zip(panels[:, 0], parts, strict=True):
        part(axes, x, table)
        axes.grid(axis="y", alpha=0.3)
    figure.suptitle(f"{name}: where it learns")
    panels[-1, 0].set_xticks(x, table.index, rotation=60, ha="right", fontsize=8)
    return figure


def _norms(axes: Axes, x: np.ndarray, table: pd.DataFrame) -> None:
    kernels = table["mean"].isna()  # not of batch normalization, whose few weights do another job
    for column, style, label in (
        ("gradient_start", "o:C0", "gradient, at the start"),
        ("gradient_end", "o-C0", "gradient, at the end"),
        ("weights_start", "s:C1", "weights, at the start"),
        ("weights_end", "s-C1", "weights, at the end"),
    ):
        values = table[column].to_numpy(float)
        there = np.isfinite(values) & kernels
        axes.plot(x[there], values[there], style, label=label, markersize=4)
    axes.set(yscale="log", ylabel="L2 norm", title="Gradients and weights")
    # plain numbers: with parse_math off, those of a log axis would show as TeX
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))


def _silent(axes: Axes, x: np.ndarray, table: pd.DataFrame) -> None:
    axes.bar(x, table["silent"].fillna(0), color="C3")
    top = min(max(0.05, 1.15 * table["silent"].max()), 1.05)
    axes.set(ylim=(0, top), ylabel="share", title="ReLUs that no image makes positive")


def _moving(axes: Axes, x: np.ndarray, table: pd.DataFrame) -> None:
    axes.bar(x - 0.2, table["mean"].fillna(0), 0.4, color="C2", label="mean: distance in σ")
    ratio = np.nan_to_num(np.abs(np.log2(table["variance"].to_numpy(float))))
    axes.bar(x + 0.2, ratio, 0.4, color="C4", label="variance: factors of 2")
    axes.set(ylabel="moving against batch", title="Batch normalization, 0: as in training")
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
