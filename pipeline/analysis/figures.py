"""Figures: draw the layers, filters, feature maps and gradients of one network."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from pipeline.analysis.layer_table import Row
from pipeline.core.errors import one_line
from pipeline.core.text import percent
from pipeline.reporting.chart_style import shorten_id
from pipeline.reporting.drawing import Axes, Figure, NullFormatter, PatchCollection, Rectangle, plt

COLUMNS = 8  # pictures per line
ID_LENGTH = 22  # characters of an id that fit above a picture
MISCLASSIFIED_COLOR = "#d62728"
FRAME_COLOR = "#9a9a9a"


class Example(NamedTuple):
    """A test image and its prediction."""

    image: np.ndarray
    """`(h, w, c)` in [0, 1]"""
    id: str
    """Path of its file, or its name in the data set"""
    actual: str
    predicted: str
    confidence: float
    """Probability of the predicted class"""

    @property
    def title(self) -> str:
        """Three lines: the actual class, the predicted class with its confidence, and the id."""
        return "\n".join([*self._classes, shorten_id(one_line(self.id), ID_LENGTH)])

    @property
    def description(self) -> str:
        """The id and the classes, on one line."""
        return f"{one_line(self.id)}: {', '.join(self._classes)}"

    @property
    def _classes(self) -> list[str]:
        return [f"true {self.actual}", f"predicted {self.predicted}, {percent(self.confidence)}"]

    @property
    def is_correct(self) -> bool:
        return self.actual == self.predicted

    @property
    def color(self) -> str:
        return "black" if self.is_correct else MISCLASSIFIED_COLOR


def montage(pictures: Sequence[np.ndarray]) -> tuple[np.ndarray, list[tuple[float, float]]]:
    """Arrange pictures in lines of COLUMNS on a white background.

    A single array is much faster to draw in matplotlib than one axes per picture.

    Args:
        pictures: Of equal shape `(h, w, c)`, in [0, 1].

    Returns:
        The montage, `(H, W, c)`, and the upper left corner (x, y) of each picture.
    """
    height, width, channels = pictures[0].shape
    gap = max(1, height // 4)
    lines = math.ceil(len(pictures) / COLUMNS)
    image = np.ones((lines * (height + gap), COLUMNS * (width + gap), channels))
    corners = []
    for number, picture in enumerate(pictures):
        line, column = divmod(number, COLUMNS)
        y, x = line * (height + gap) + gap, column * (width + gap)
        image[y : y + height, x : x + width] = picture
        corners.append((x - 0.5, y - 0.5))
    return image, corners


def _draw_montage(
    axes: Axes, pictures: Sequence[np.ndarray], labels: Iterable[object] = ()
) -> None:
    """Draw pictures in lines, with a frame around each, since some are white at their edges."""
    image, corners = montage(pictures)
    # matplotlib ignores the color map for images with three channels
    axes.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_axis_off()
    height, width, _ = pictures[0].shape
    frames = [Rectangle(corner, width, height) for corner in corners]
    axes.add_collection(
        PatchCollection(frames, facecolor="none", edgecolor=FRAME_COLOR, linewidth=0.5)
    )
    for (x, y), label in zip(corners, labels, strict=False):
        axes.text(x, y, str(label), fontsize=7, va="bottom")


def _figure(count: int, title: str) -> tuple[Figure, Axes]:
    """Return a figure with room for a montage of `count` pictures."""
    lines = math.ceil(count / COLUMNS)
    figure, axes = plt.subplots(figsize=(8, 0.4 + lines), layout="constrained")
    figure.suptitle(title, fontsize=10)
    return figure, axes


def layers(rows: Sequence[Row], name: str) -> Figure:
    """Draw the parameters, multiply-accumulates and activation memory of each layer as bars."""
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
    covers_image = all(pixels >= side for pixels, side in zip(field, image, strict=True))
    region = "the whole image" if covers_image else f"{last.receptive_field} pixels of the image"
    receptive_field = f"; receptive field of {last.name}: {region}" if last is not rows[0] else ""
    figure.suptitle(f"{name}: layers, for one image{receptive_field}")
    return figure


def kernels(weights: np.ndarray, name: str) -> Figure:
    """Draw the kernels of the first convolution.

    All kernels share one scale, on which 50 % grey is 0.

    Args:
        weights: `(kh, kw, c, k)`; c is 1 or 3.
        name: Name of the layer.
    """
    count = weights.shape[-1]
    limit = np.abs(weights).max() or 1
    figure, axes = _figure(count, f"{name}: {count} kernels; grey is 0, white is {limit:.2g}")
    _draw_montage(axes, list(0.5 + np.moveaxis(weights, -1, 0) / (2 * limit)))
    return figure


def filters(pictures: np.ndarray, strongest: np.ndarray, name: str) -> Figure:
    """Draw the pictures that the strongest filters of a layer respond to.

    Args:
        pictures: `(k, h, w, c)` in [0, 1].
        strongest: `(k,)` int, number of each filter.
        name: Name of the layer.
    """
    figure, axes = _figure(len(pictures), f"{name}: what its strongest filters respond to")
    _draw_montage(axes, list(pictures), strongest)
    return figure


def feature_maps(example: Example, maps: dict[str, np.ndarray]) -> Figure:
    """Draw a test image and the strongest feature maps of each layer.

    Args:
        example: The image and its prediction.
        maps: From layer name to the output for this image, `(h, w, channels)`.
    """
    lines = len(maps) + 1
    figure, panels = plt.subplots(
        lines, 1, figsize=(9, 0.4 + lines), squeeze=False, layout="constrained"
    )
    figure.suptitle(example.description, fontsize=10, color=example.color)
    _draw_montage(panels[0, 0], [example.image])
    for axes, (name, values) in zip(panels[1:, 0], maps.items(), strict=True):
        order = np.argsort(-np.abs(values).mean(axis=(0, 1)), kind="stable")[:COLUMNS]
        _draw_montage(axes, [_rescale(values[..., channel, None]) for channel in order], order)
        axes.text(0, 0.5, f"{name}  ", ha="right", va="center", transform=axes.transAxes)
    return figure


def _rescale(values: np.ndarray) -> np.ndarray:
    """Scale values linearly to [0, 1]; constant values become 0."""
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else np.zeros_like(values)


def heat_maps(examples: Sequence[Example], maps: np.ndarray) -> Figure:
    """Draw test images, and below each its heat map for the predicted class.

    Args:
        examples: n images with their predictions.
        maps: Heat maps, `(n, h, w)` in [0, 1].
    """
    figure, grid = plt.subplots(
        2, len(examples), figsize=(1.6 * len(examples), 4), squeeze=False, layout="constrained"
    )
    for column, (example, heat_map) in enumerate(zip(examples, maps, strict=True)):
        above, below = grid[:, column]
        above.imshow(example.image, cmap="gray", vmin=0, vmax=1)
        above.set_title(example.title, fontsize=7, color=example.color)
        below.imshow(example.image.mean(axis=-1), cmap="gray", vmin=0, vmax=1)
        below.imshow(heat_map, cmap="inferno", vmin=0, vmax=1, alpha=0.6)
        above.set_axis_off()
        below.set_axis_off()
    figure.suptitle("Grad-CAM: bright regions support the predicted class", fontsize=10)
    return figure


def gradient_flow(table: pd.DataFrame, name: str) -> Figure:
    """Draw gradient and weight norms, inactive ReLUs and moving averages of each layer.

    Args:
        table: As returned by `gradient_flow.table`.
        name: Name of the model.
    """
    draw_panels = [_draw_norms]
    if table["silent"].notna().any():
        draw_panels.append(_draw_inactive_relus)
    if table["mean"].notna().any():
        draw_panels.append(_draw_moving_averages)
    count = len(draw_panels)
    figure, panels = plt.subplots(
        count,
        1,
        figsize=(max(7.0, 0.5 * len(table) + 3), 1 + 2.6 * count),
        sharex=True,
        squeeze=False,
        layout="constrained",
    )
    x = np.arange(len(table))
    for axes, draw in zip(panels[:, 0], draw_panels, strict=True):
        draw(axes, x, table)
        axes.grid(axis="y", alpha=0.3)
    figure.suptitle(f"{name}: gradient flow")
    panels[-1, 0].set_xticks(x, table.index, rotation=60, ha="right", fontsize=8)
    return figure


def _draw_norms(axes: Axes, x: np.ndarray, table: pd.DataFrame) -> None:
    # without batch normalization: the norms of its scales and shifts compare with no kernel's
    is_kernel = table["mean"].isna()
    for column, style, label in (
        ("gradient_start", "o:C0", "gradient, before training"),
        ("gradient_end", "o-C0", "gradient, after training"),
        ("weights_start", "s:C1", "weights, before training"),
        ("weights_end", "s-C1", "weights, after training"),
    ):
        values = table[column].to_numpy(float)
        visible = np.isfinite(values) & is_kernel
        axes.plot(x[visible], values[visible], style, label=label, markersize=4)
    axes.set(yscale="log", ylabel="L2 norm", title="Gradients and weights")
    # The default formatter writes TeX, which stays as it is while parse_math is off.
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))


def _draw_inactive_relus(axes: Axes, x: np.ndarray, table: pd.DataFrame) -> None:
    axes.bar(x, table["silent"].fillna(0), color="C3")
    top = min(max(0.05, 1.15 * table["silent"].max()), 1.05)
    axes.set(ylim=(0, top), ylabel="share", title="ReLUs that are 0 for every image")


def _draw_moving_averages(axes: Axes, x: np.ndarray, table: pd.DataFrame) -> None:
    axes.bar(x - 0.2, table["mean"].fillna(0), 0.4, color="C2", label="mean: distance in σ")
    ratio = np.nan_to_num(np.abs(np.log2(table["variance"].to_numpy(float))))
    axes.bar(x + 0.2, ratio, 0.4, color="C4", label="variance: |log₂ ratio|")
    axes.set(ylabel="difference", title="Batch normalization: moving averages against the batch")
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
