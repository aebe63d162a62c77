"""Gallery: which pictures are drawn of one network, and what is said with each."""

from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np
import pandas as pd

from pipeline.analysis import activation_maximization, figures
from pipeline.analysis.figures import Shown
from pipeline.analysis.grad_cam import grad_cam
from pipeline.analysis.layer_table import Row, total
from pipeline.analysis.network import CONVOLUTIONS, nodes, values_of
from pipeline.data.preprocessor import Preprocessor
from pipeline.reporting.drawing import Figure, save

COLOURS = (1, 3)  # channels of a kernel that can be drawn
ANSWER = ["actual", "predicted", "confidence"]


class Pictures:
    """Writes pictures into a folder, and lists them with what they show in words."""

    def __init__(self, folder: Path, name: str):
        self.folder, self.name = folder, name
        self.listed: list[dict[str, str]] = []

    def _add(self, file: str, figure: Figure, title: str, alt: str) -> None:
        save(figure, self.folder / file, dpi=100)
        self.listed.append({"file": file, "title": title, "alt": alt})

    def layers(self, rows: list[Row]) -> None:
        """Draw the table of layers."""
        sums = total(rows)
        alt = f"Bars of {len(rows)} layers: {sums['parameters']:,} parameters, {sums['macs']:,} "
        alt += "multiply-accumulates. The same numbers stand in the table of layers"
        self._add("layers.png", figures.layers(rows, self.name), "Layers", alt)

    def flow(self, table: pd.DataFrame) -> None:
        """Draw the table of `flow.table`, and keep it."""
        table.to_csv(self.folder / "flow.csv", float_format="%.6g")
        figure = figures.flow(table, self.name)
        self._add("flow.png", figure, "Gradients and weights", " ".join(_spoken(table)))

    def kernels(self, model: keras.Model) -> None:
        """Draw the kernels of the first convolution, where its images have colours or grey."""
        first = next((layer for layer in model.layers if isinstance(layer, CONVOLUTIONS)), None)
        if first and (kernel := first.get_weights()[0]).shape[2] in COLOURS:
            alt = f"{kernel.shape[-1]} kernels of {kernel.shape[0]} by {kernel.shape[1]} pixels"
            figure = figures.kernels(kernel, first.name)
            self._add("kernels.png", figure, f"{first.name}: kernels", alt)

    def filters(
        self, model: keras.Model, kept: Preprocessor, images: np.ndarray, seed: int
    ) -> None:
        """Draw what the filters of convolutions respond to.

        Args:
            model: Of one level; it is frozen.
            kept: How it takes its images.
            images: `(n, h, w, c)` as it takes them, to tell which filters are strong.
            seed: Of the noise that pictures start from.
        """
        every = activation_maximization.convolutions(model, images)
        painted = activation_maximization.paint(model, every, kept, seed)
        for number, (convolution, found) in enumerate(zip(every, painted, strict=True), 1):
            own = convolution.name
            self._add(
                f"filters/{number:02}_{own}.png",
                figures.filters(found, convolution.strongest, own),
                f"{own}: what filters respond to",
                f"{len(found)} pictures painted by gradient ascent, one a filter of {own}",
            )

    def feature_maps(
        self, model: keras.Model, images: np.ndarray, answers: pd.DataFrame, kept: Preprocessor
    ) -> None:
        """Draw feature maps of the surest right and of the surest wrong answer.

        Args:
            model: Of one level.
            images: `(n, h, w, c)` as it takes them, n at least 1.
            answers: n rows of actual, predicted and confidence, the surest of a kind first.
            kept: How it takes its images.
        """
        every = _shown(images, answers, kept)
        calls = [node for node in nodes(model) if isinstance(node.operation, CONVOLUTIONS)]
        names = [node.operation.name for node in calls]
        for kind, right in (("right", True), ("wrong", False)):
            rows = [
                i for i, shown in enumerate(every) if (shown.actual == shown.predicted) == right
            ]
            if rows and calls:
                shown = every[rows[0]]
                maps = values_of(
                    model, [node.output_tensors[0] for node in calls], images[rows[:1]]
                )
                own = {name: values[0] for name, values in zip(names, maps, strict=True)}
                self._add(
                    f"feature_maps_{kind}.png",
                    figures.feature_maps(shown, own),
                    f"Feature maps, surest {kind} answer",
                    f"The image and eight feature maps of each convolution: {shown.words}",
                )

    def grad_cam(
        self, model: keras.Model, images: np.ndarray, answers: pd.DataFrame, kept: Preprocessor
    ) -> None:
        """Draw where the network looked in each of some images: arguments of `feature_maps`."""
        every = _shown(images, answers, kept)
        heat = grad_cam(model, images, np.array([kept.classes.index(x.predicted) for x in every]))
        if heat is not None:
            words = "; ".join(shown.words for shown in every)
            self._add(
                "grad_cam.png",
                figures.attention(every, heat),
                "Where it looks",
                f"Test images with a heat map of what spoke for the answer: {words}",
            )


def _shown(images: np.ndarray, answers: pd.DataFrame, kept: Preprocessor) -> list[Shown]:
    visible = kept.visible(images)
    return [
        Shown(image, *answer)
        for image, answer in zip(visible, answers[ANSWER].to_numpy().tolist(), strict=True)
    ]


def _spoken(table: pd.DataFrame) -> Iterator[str]:
    """Yield in words what the picture of the flow shows."""
    yield "Norms of gradients and weights of each layer, at the start and at the end of training."
    for column, form in (
        ("silent", "Most silent ReLUs: {:.1%}, in {}."),
        ("mean", "Moving mean farthest from the batch's: {:.2g} σ, {}."),
    ):
        if table[column].notna().any():
            yield form.format(table[column].max(), table[column].idxmax())
